"""Arguments outside the domain of a relaxation are refused in one line, and wrong relaxations are found on capture."""

import pytest
import torch
from torch import Tensor, nn

from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import Unsupported
from verifiers.graph.lowering.activations import holds
from verifiers.graph.relaxations.lines import Alpha, Lines
from verifiers.graph.relaxations.piecewise import Relu

REFUSED: dict[str, nn.Module] = {
    "a softplus that is concave": nn.Softplus(beta=-1.0),
    "a softplus without a slope": nn.Softplus(beta=0.0),
    "an ELU that falls": nn.ELU(-1.0),
    "a CELU that falls": nn.CELU(-1.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_without_a_relaxation_are_refused(name: str) -> None:
    network = nn.Sequential(nn.Linear(4, 5), REFUSED[name], nn.Linear(5, 3)).eval()
    with pytest.raises(Unsupported, match=r"at '1'") as refusal:
        Native(network, torch.rand(2, 4))
    assert "\n" not in str(refusal.value), "more than one line"


class Slanted(Relu):
    """A relaxation that is too tight on one side by a little."""

    def __init__(self, below: float = 0.0, above: float = 0.0, span: float = 0.0) -> None:
        self.below, self.above, self.span = below, above, span

    def lines(self, low: Tensor, high: Tensor, alpha: Alpha | None = None) -> Lines:
        known = super().lines(low, high, alpha)
        return Lines(
            known.lower_slope, known.lower_offset + self.below, known.upper_slope, known.upper_offset - self.above
        )

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        bottom, top = super().interval(low, high)
        return bottom, top - self.span


@pytest.mark.parametrize("wrong", [{"below": 1e-6}, {"above": 1e-6}, {"span": 1e-6}], ids=str)
def test_a_relaxation_that_does_not_hold_is_noticed(wrong: dict[str, float]) -> None:
    like = torch.zeros(1, dtype=torch.float64)
    assert holds(Slanted(), like), "the honest one is refused"
    assert not holds(Slanted(**wrong), like), f"{wrong} is not noticed"
