"""Check that a network is one fixed function of each image, whatever other images are in the batch or came before."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from verifiers.core.errors import InputError, one_line
from verifiers.runtime.dispatch import DispatchMode
from verifiers.runtime.oom import fits, out_of_memory, pass_on_memory
from verifiers.runtime.outputs import rows_of

#: Images of the first batch, and made images, at most.
MOST = 256
#: Floating-point operations of all comparisons together, from which the number of images follows: never from the clock.
WORK = 2e10
#: Images whose gradients are compared.
FEW = 3
#: Evaluations of each image.
PASSES = 8
#: Logits of one image in two batches may differ by this share of the largest one: kernels sum in other orders.
TOLERANCE = 1e-4
#: The same for a network without a program, whose float32 error cannot be measured.
COARSE = 1e-3
#: Logits may also differ by this many times the measured float32 error.
SAFETY = 64.0
#: In float64 differences by rounding shrink to 2^-29 of those in float32; other differences stay.
SHRINKS = 1e-4
#: Standard deviation of the noise on copies of images, in pixel units.
SIGMA = 0.25

Rounding = Callable[[Tensor], Tensor | None]


def probes(network: nn.Module, first: Float[Tensor, "batch *shape"]) -> Float[Tensor, "images *shape"]:
    """Choose the images of the comparison: the first of a batch, noisy copies of them, random images and corners.

    The number depends on the size of the network alone, and is halved until one pass fits into memory.
    """
    with torch.no_grad():
        each = operations(network, first[:2]) / min(2, len(first))
    count = int(max(2, min(MOST, WORK / (2 * PASSES * max(each, 1.0)))))
    given, generator = first[:count], torch.Generator().manual_seed(0)
    shape = (count, *first.shape[1:])
    random = torch.rand(shape, generator=generator)
    corners = torch.randint(0, 2, shape, generator=generator).float()
    copies = given.cpu().float()[torch.arange(count) // 8 % len(given)]
    copies = copies + SIGMA * torch.randn(shape, generator=generator)
    parts = torch.cat([copies[: -(-count // 4)], corners[: -(-count // 4)], random])[:count]
    images = torch.cat([given.float(), parts.clamp(0.0, 1.0).to(first.device)])
    while len(images) > 1 and not fits(partial(logits_of, network, images)):
        images = images[::2]
    return images


def logits_alone(network: nn.Module, points: Float[Tensor, "points *shape"]) -> Float[Tensor, "points classes"]:
    """Run each point alone, as a person would run it; the logits are the network's own, in float64."""
    with torch.no_grad():
        return torch.cat([network(point) for point in points.split(1)]).double()


def check_alone(
    network: nn.Module, images: Float[Tensor, "batch *shape"], rounding: Rounding = lambda x: None
) -> Float[Tensor, "batch classes"]:
    """Compare each image's logits alone with those in batches of 2, 3 and all, in order and reversed.

    Args:
        network: maps images to logits, in eval mode.
        images: the images.
        rounding: measures the float32 error of each image's logits.

    Returns:
        The logits of each image alone.

    Raises:
        InputError: the network fails, keeps state between calls, is too sensitive for float32, or mixes the images of a
            batch; the message names the layer if it can be found.
    """
    together = logits_of(network, images)
    before = _state(network)
    again = logits_of(network, images)
    if not torch.equal(again.nan_to_num(), together.nan_to_num()):
        difference = float((again - together).abs().max())
        raise InputError(
            f"the network is not one fixed function: two passes differ by {difference:.3g} in eval mode: does it draw "
            "noise, or drop values out without regard to self.training?"
        )
    if changed := _changed(before, _state(network)):
        raise InputError(f"the network keeps state between calls: {changed} changes whenever it runs")
    alone = torch.cat([logits_of(network, image, len(images)) for image in images.split(1)])
    _refuse_slope(network, images[:FEW])
    for order in _batches(len(images)):
        found = again if len(order) == len(images) and int(order[0]) == 0 else logits_of(network, images[order])
        wrong = differing(found, alone[order], images[order], rounding)
        if wrong is not None:
            row, gap = wrong
            _refuse_coarse(network, images, len(order), gap)
            raise InputError(
                f"the network mixes the images of a batch: the logits of an image differ by {gap:.3g} between a batch "
                f"of {len(order)} and the image alone{_layer(network, images[order], row)}; certificates need a "
                "network that answers each image by itself"
            )
    return alone


def _refuse_slope(network: nn.Module, images: Tensor) -> None:
    """Refuse a network in which logits of one image have a gradient with respect to another image of the batch.

    It is exactly zero if images are not mixed, so mixing that is smaller than rounding is found too. Networks without
    gradients are only compared.

    Raises:
        InputError: the network mixes the images of a batch.
    """
    batch = images.detach().clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            logits = rows_of(network(batch), len(batch))
            weights = torch.linspace(1.0, 2.0, logits[0].numel()).to(logits).reshape(logits[0].shape)
            ends = {row: (logits[row] * weights).sum() for row in (0, len(batch) - 1)}
            slopes = {row: torch.autograd.grad(end, batch, retain_graph=True)[0] for row, end in ends.items()}
    except Exception as error:  # noqa: BLE001 - of a network without derivatives
        pass_on_memory(error)
        return
    for row, slope in slopes.items():
        others = slope.detach().abs().nan_to_num(0.0)
        others[row] = 0
        if bool(others.any()):
            raise InputError(
                "the network mixes the images of a batch: the logits of an image change with another image"
                f"{_layer(network, images, row)}; certificates need a network that answers each image by itself"
            )


def _refuse_coarse(network: nn.Module, images: Tensor, count: int, gap: float) -> None:
    """Refuse a network whose answers differ between batches because of rounding alone.

    Its float32 logits have no value that all batches share, so a prediction, a vote or an attack in one batch says
    nothing about another one.

    Raises:
        InputError: in float64, in the same order of calls, all differences all but vanish.
    """

    def exactly() -> Tensor:
        exact, given = in_float64(network), images.double()
        with torch.no_grad():
            alone = torch.cat([exact(image) for image in given.split(1)])
            return torch.stack(
                [(exact(given[order]) - alone[order]).abs().max() for order in _batches(len(given))]
            ).max()

    left = tried(exactly)
    if left is not None and left <= SHRINKS * gap:
        raise InputError(
            f"float32 is too coarse for the network: the logits of an image differ by {gap:.3g} between a batch of "
            f"{count} and the image alone, and by {left:.3g} in float64, so they do not mix but round; scale down "
            "the weights whose products cancel"
        )


def in_float64(network: nn.Module) -> nn.Module:
    """Make a float64 copy of a network in eval mode."""
    return copy.deepcopy(network).double().eval()


def tried(call: Callable[[], Tensor]) -> float | None:
    """Return a number that code of the network gives in float64; None if it does not run so."""
    try:
        return float(call())
    except Exception as error:  # noqa: BLE001 - of code that was not written for float64
        pass_on_memory(error)
        return None


def differing(
    found: Float[Tensor, "batch classes"], expected: Tensor, images: Tensor, rounding: Rounding
) -> tuple[int, float] | None:
    """Return the first image whose logits differ by more than rounding, and by how much; None if there is none."""
    if found.shape != expected.shape:
        return 0, float("nan")
    same = (found == expected) | (found.isnan() & expected.isnan())
    gap = (found.double() - expected.double()).abs().where(~same, 0.0).nan_to_num(nan=float("inf")).amax(1)
    scale = expected.abs().nan_to_num(0.0, 0.0, 0.0).amax(1).double().clamp_min(1.0)
    if bool((gap <= TOLERANCE * scale).all()):
        return None
    measured = rounding(images)
    allowed = COARSE * scale if measured is None else TOLERANCE * scale + SAFETY * measured.nan_to_num(nan=float("inf"))
    wrong = (~(gap <= allowed)).nonzero()
    return (int(wrong[0]), float(gap[wrong[0]])) if len(wrong) else None


def _batches(count: int) -> Iterator[Tensor]:
    """Yield the positions of batches of 2, of 3, and of all in order and reversed."""
    positions = torch.arange(count)
    for size in (2, 3):
        yield from positions.split(size)
    yield positions
    yield positions.flip(0)


def logits_of(network: nn.Module, images: Float[Tensor, "batch *shape"], others: int = 0) -> Tensor:
    """Run a network and check the shape of its scores.

    Args:
        network: maps images to logits, in eval mode.
        images: the images.
        others: the size of a batch on which it ran before.

    Raises:
        InputError: it fails, or does not give one row of scores per image.
    """
    try:
        with torch.no_grad():
            logits = network(images)
    except Exception as error:  # of the network's own code
        if out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {one_line(error)}"
        if others > 1:
            raise InputError(
                f"the network mixes the images of a batch: it runs on {others} images and not on one alone ({said})"
            ) from error
        raise InputError(f"the network fails on a batch of {len(images)} images ({said})") from error
    return rows_of(logits, len(images))


# State


def _state(network: nn.Module) -> dict[str, Any]:
    """Copy everything that a network could remember: buffers, tensors and numbers among its modules' attributes."""
    usual, found = vars(nn.Module()).keys(), dict[str, Any]()
    for path, module in network.named_modules():
        own = {name: value for name, value in vars(module).items() if name not in usual}
        for name, value in {**own, **module._buffers}.items():
            found[f"{path}.{name}".lstrip(".")] = _copy(value)
        for name, weight in module._parameters.items():
            found[f"{path}.{name}".lstrip(".")] = None if weight is None else weight._version
    return found


def _copy(value: Any, depth: int = 3) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, int | float | str | None):
        return value
    if depth and isinstance(value, list | tuple) and len(value) <= 1000:
        return [_copy(part, depth - 1) for part in value]
    if depth and isinstance(value, dict) and len(value) <= 1000:
        return [(str(key), _copy(part, depth - 1)) for key, part in value.items()]
    return None


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Return the first name whose value changed."""
    return next((repr(name) for name, value in after.items() if not _equal(before.get(name), value)), None)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and bool(one == other or one != one)


# The layer that mixes


def _layer(network: nn.Module, batch: Tensor, row: int) -> str:
    """Name the innermost module whose input for an image is the same in a batch and alone, and whose output is not."""
    there, here = _traffic(network, batch), _traffic(network, batch[row : row + 1])
    for (path, kind, *given), (_, _, *own) in zip(there, here, strict=False):
        sizes = [value.shape[:1] == batch.shape[:1] for value in given]
        if all(sizes) and [_near(value[row : row + 1], alone) for value, alone in zip(given, own, strict=True)] == [
            True,
            False,
        ]:
            return f" (layer {path!r}, {kind})" if path else f" ({kind}.forward)"
    return ""


def _traffic(network: nn.Module, x: Tensor) -> list[tuple[Any, ...]]:
    """Record path, type, input and output of every module with one of each, in the order in which they finish."""
    found: list[tuple[Any, ...]] = []
    paths = {module: path for path, module in network.named_modules()}

    def see(module: nn.Module, given: Any, output: Any) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(output, Tensor) and given[0].dim() and output.dim():
            found.append((paths[module], type(module).__name__, given[0].detach().clone(), output.detach().clone()))

    hooks = [module.register_forward_hook(see) for module in paths]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=COARSE, atol=COARSE, equal_nan=True)


# Size


class _Counter(DispatchMode):
    """Count the operations of matrix products and convolutions, and the entries of all other results."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        entries = sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        name = str(func.name())
        tensors = [leaf for leaf in args if isinstance(leaf, Tensor)]
        if "convolution" in name:
            entries *= 2 * tensors[1][0].numel()
        elif name.startswith(("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")):
            entries *= 2 * tensors[-1].shape[-2]
        self.total += entries
        return result


def operations(network: nn.Module, x: Tensor) -> float:
    """Count the floating-point operations of one pass."""
    with _Counter() as counter, torch.no_grad():
        try:
            network(x)
        except Exception:  # noqa: BLE001 - of the network's own code; the comparison reports it
            return 1.0
    return counter.total
