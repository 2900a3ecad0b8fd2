"""How far float64's last places move a value, and when that explains a broken bound."""

import pytest
import torch
from torch import Tensor, nn

from verifiers.core.errors import Unsupported
from verifiers.runtime.last_places import nudged, refuse_coarse


def linear(size: float) -> nn.Linear:
    """A pixel times a number, less that pixel times nearly the same number."""
    layer = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[size, -size]]))
    return layer


def test_a_copy_differs_by_last_places_alone() -> None:
    layer = linear(3.0)
    other = nudged(layer)
    assert torch.equal(layer.weight, torch.tensor([[3.0, -3.0]]).double()), "the network itself was changed"
    share = ((other.weight - layer.weight) / layer.weight).abs()
    assert bool(((share > 0) & (share <= 2.0**-51)).all())


@pytest.mark.parametrize(("size", "excess", "coarse"), [(1.0, 1e-9, False), (1e8, 1e-9, True), (1e8, 1e-3, False)])
def test_rounding_explains_as_much_as_it_makes(size: float, excess: float, coarse: bool) -> None:
    layer, x = linear(size), torch.tensor([[0.3, 0.3]]).double()

    def value(network: nn.Module) -> Tensor:
        return network(x)  # type: ignore[no-any-return]

    if not coarse:
        refuse_coarse("native", excess, layer, value)
        return
    with pytest.raises(
        Unsupported, match=r"native: float64 is too coarse for this network: .* exceeds its bound by 1e-09"
    ):
        refuse_coarse("native", excess, layer, value)


def test_a_value_that_is_no_number_is_not_explained() -> None:
    refuse_coarse("native", float("nan"), linear(1e8), lambda network: network(torch.ones(1, 2).double()))
