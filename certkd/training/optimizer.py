"""The optimiser of a student's weights and the learning rate of every step, both by timm."""

from math import ceil
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from certkd.config.settings import OptimizerConfig
from verifiers.core.errors import InputError, one_line

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler


def optimizer_of(student: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Build the optimiser of the weights that are not frozen; a network of timm names those without weight decay.

    Raises:
        InputError: all weights are frozen, the network has no layers in an order that ``layer_decay`` could follow, or
            the optimiser needs a package that is missing.
    """
    from timm.optim import create_optimizer_v2

    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise InputError("the student has no weights to train: set requires_grad on some of them")
    ordered = _in_order(student)
    if config.layer_decay is not None and ordered is None:
        raise InputError("optimizer.layer_decay needs a network of timm, whose layers have an order: leave it out")
    try:
        return create_optimizer_v2(
            student if ordered is None else ordered,
            opt=config.kind,
            lr=config.rate,
            weight_decay=config.weight_decay,
            momentum=0.9,
            filter_bias_and_bn=not config.decay_norms,
            layer_decay=config.layer_decay,
        )
    except (ImportError, RuntimeError, TypeError, AssertionError) as error:
        raise InputError(f"optimizer.kind {config.kind!r} cannot be built: {one_line(error)}") from None


def schedule_of(optimizer: Optimizer, config: OptimizerConfig, epochs: int, steps: int) -> "Scheduler":
    """Build the schedule of the rate; ``step_update(number)`` sets the rate of a step, counted from 0.

    Args:
        epochs: of the training.
        steps: of an epoch.
    """
    from timm.scheduler.cosine_lr import CosineLRScheduler
    from timm.scheduler.multistep_lr import MultiStepLRScheduler

    rising = round(config.warmup * steps)
    shared: dict[str, Any] = {"warmup_t": rising, "warmup_lr_init": config.rate / (rising + 1), "t_in_epochs": False}
    if config.schedule == "cosine":
        return CosineLRScheduler(optimizer, epochs * steps, warmup_prefix=False, **shared)
    shares = config.milestones if config.schedule == "steps" else ()
    firsts = [ceil(share * epochs - 1e-9) * steps + 1 for share in sorted(shares)]  # timm compares with the next step
    return MultiStepLRScheduler(optimizer, firsts, config.drop, warmup_prefix=False, **shared)


def rate_of(optimizer: Optimizer) -> float:
    """Return the largest learning rate of an optimiser's groups."""
    return float(max(group["lr"] for group in optimizer.param_groups))


def _in_order(student: nn.Module) -> nn.Module | None:
    """Return the part of a student that has all weights to train and whose layers timm can order; None if none is."""
    wanted = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    for module in student.modules():
        if callable(getattr(module, "group_matcher", None)) and wanted <= {id(p) for p in module.parameters()}:
            return module
    return None
