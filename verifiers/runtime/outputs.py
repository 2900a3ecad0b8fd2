"""Read a network's output as one row of scores per image."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from verifiers.core.errors import InputError


def rows_of(output: Any, count: int) -> Float[Tensor, "batch scores"]:
    """Return one row of scores per image; a network with one score may leave out the last axis, or both.

    Args:
        output: the network's output.
        count: the number of images.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(output, Tensor):
        raise InputError(f"the network must give one tensor of logits, it gives {described(output)}: {_ADVICE}")
    if output.shape == (count,) or (count == 1 and output.dim() == 0):
        return output.reshape(count, 1)
    if output.dim() != 2 or len(output) != count or output.shape[1] < 1:
        raise InputError(
            f"the network must give one row of logits per image, got shape {tuple(output.shape)} for {count}: "
            "keep the axis of the images, and flatten or average the others"
        )
    return output


_ADVICE = "choose one of them with certkd.Output(network, which)"


def described(output: Any) -> str:
    """Describe an output that is no tensor: ``a dict (logits, aux)``."""
    names = _names(output)
    kind = type(output).__name__
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    return f"{article} {kind} ({', '.join(names)})" if names else f"{article} {kind}"


def _names(output: Any) -> list[str]:
    """Name the parts of an output, or number them; a few of them."""
    if isinstance(output, Mapping):
        found = [str(name)[:40] for name in output]
    elif hasattr(output, "_fields"):
        found = [str(name)[:40] for name in output._fields]
    elif is_dataclass(output):
        found = [field.name for field in fields(output)]
    elif isinstance(output, tuple | list):
        found = [str(number) for number in range(len(output))]
    else:
        found = []
    return found if len(found) <= 8 else [*found[:8], "..."]


def as_logits(scores: Float[Tensor, "batch scores"]) -> Float[Tensor, "batch classes"]:
    """Read one score z as the logits (0, z); several are logits already."""
    return F.pad(scores, (1, 0)) if scores.shape[1] == 1 else scores
