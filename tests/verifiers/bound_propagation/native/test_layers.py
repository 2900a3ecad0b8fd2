"""Intervals of inner values: sound, the rest of a network computes its logits, and what cannot be split is refused."""

import pytest
import torch
from torch import Tensor, nn

from verifiers.bound_propagation import activation_boxes, ball, lower_margins, margins_and_features, split_before
from verifiers.core.errors import InputError

X, Y = torch.rand((3, 1, 4, 4), generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1])


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 9)]
        return nn.Sequential(*first, nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).eval()


class Shortcut(nn.Module):
    """x + f(x), with the shortcut past all activations."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1) + self.body(x))


def points(eps: float) -> list[Tensor]:
    low, high = ball(X, eps)
    draws = torch.Generator().manual_seed(1)
    shares = [torch.rand(X.shape, generator=draws) for _ in range(20)]
    return [low + share * (high - low) for share in (*shares, *(share.round() for share in shares))]


def test_no_point_of_the_ball_has_inner_values_outside_their_box() -> None:
    model, box = network(), ball(X, 0.1)
    margins, (low, high) = margins_and_features(model, box, Y)
    torch.testing.assert_close(margins, lower_margins(model, box, Y, "ibp"))
    inputs = activation_boxes(model, box)
    assert [each[0][0].numel() for each in inputs] == [48, 9, 7]
    for z in points(0.1):
        features = model[:8](z)
        assert bool(((low - 1e-5 <= features) & (features <= high + 1e-5)).all())
        for place, (below, above) in zip((2, 5, 7), inputs, strict=True):
            values = model[:place](z).reshape(below.shape)
            assert bool(((below - 1e-5 <= values) & (values <= above + 1e-5)).all()), f"before layer {place}"


@pytest.mark.parametrize(("activations", "cut"), [(1, 6), (2, 3), (3, 0), (9, 0)])
def test_the_rest_of_a_split_network_computes_its_logits(activations: int, cut: int) -> None:
    model = network()
    split = split_before(model, ball(X, 0.05), Y, activations)
    inner = model[:cut](X) if cut else X
    torch.testing.assert_close(split.rest(inner.reshape(split.box[0].shape)), model(X), atol=1e-5, rtol=1e-4)
    assert bool((split.box[0] <= inner.reshape(split.box[0].shape) + 1e-5).all())
    torch.testing.assert_close(split.margins, lower_margins(model, ball(X, 0.05), Y, "ibp"))


def test_inner_bounds_move_with_the_weights() -> None:
    model = network()
    split = split_before(model, ball(X, 0.05), Y, 1)
    (slope,) = torch.autograd.grad(split.box[1].sum(), model[0].weight)
    assert bool(slope.any())


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(InputError, match="a shortcut leads past the last 1 activations: take another number"):
        split_before(Shortcut(), ball(X, 0.05), Y, 1)
    squashed = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Sigmoid())
    with pytest.raises(InputError, match="this network does not end in one"):
        margins_and_features(squashed, ball(X, 0.05), Y)
