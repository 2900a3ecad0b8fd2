"""Choose one tensor of a network that gives several."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from verifiers.core.errors import InputError, quoted
from verifiers.runtime.outputs import described


class Output(nn.Module):
    """Give one output of a network: an entry of a dict, a field of a named tuple, or one of several by number.

    Args:
        network: gives a dict, a tuple or an object with fields.
        which: the name or the number.

    Example:
        >>> network = certkd.Output(model, "logits")
    """

    def __init__(self, network: nn.Module, which: str | int) -> None:
        super().__init__()
        self.network, self.which = network, which

    def forward(self, x: Tensor) -> Tensor:
        return chosen(self.network(x), self.which)

    def extra_repr(self) -> str:
        return repr(self.which)


def chosen(output: Any, which: str | int) -> Tensor:
    """Return one tensor of an output.

    Raises:
        InputError: there is none of this name or number; the message lists the others.
    """
    found = None
    if isinstance(output, Mapping):
        found = output.get(which)
    elif isinstance(output, tuple | list) and str(which).isdigit():
        found = output[int(which)] if int(which) < len(output) else None
    elif isinstance(which, str) and not isinstance(output, Tensor):
        found = getattr(output, which, None)
    if not isinstance(found, Tensor):
        raise InputError(
            f"the network gives {described(output)}, with no tensor {quoted(which)}: choose another output"
        )
    return found
