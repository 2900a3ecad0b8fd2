"""Rows that leave once a sign is known: the final bounds are those of rows that go all the way."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.verifiers.graph.nets import FLAT, IMAGE, Net, deep_dense, deep_residual, settled
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification
from verifiers.graph.graph import Graph


def _read_twice() -> nn.Module:
    def function(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = net.second(net.first(x).relu())
        return torch.cat([y.relu(), y.tanh()], 1)

    return settled(Net(function, first=nn.Linear(6, 20), second=nn.Linear(20, 20)), FLAT, 1.5)


@pytest.mark.parametrize("build", [deep_residual, deep_dense, _read_twice])
@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("intersect", [True, False])
@pytest.mark.thin(5)
def test_bounds_are_the_same(
    build: Callable[[], nn.Module], norm: Norm, intersect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network, shape = build(), IMAGE if build is deep_residual else FLAT
    x = torch.rand(6, *shape, dtype=torch.float64)
    engine = Native(network, x.float(), intersect=intersect)
    rows = margin_specification(engine.model(x).argmax(1), 3, torch.float64)
    for eps in (0.003, 0.03, 0.1):
        radius = torch.full((6,), eps, dtype=torch.float64)
        found = engine.ask(Balls(x, radius, norm), rows, "crown").bound
        with monkeypatch.context() as patch:
            patch.setattr(Graph, "signs_suffice", [False] * len(engine.graph.nodes))
            patch.delitem(engine.graph.__dict__, "signs_suffice", raising=False)
            whole = engine.ask(Balls(x, radius, norm), rows, "crown").bound
        gap = (found - whole).abs().max().item()
        assert gap < 1e-9 * max(1.0, whole.abs().max().item()), f"{eps}: apart by {gap}"


def test_which_nodes_need_only_signs() -> None:
    torch.manual_seed(0)

    def needed(network: nn.Module, shape: tuple[int, ...]) -> list[str]:
        graph = Native(network, torch.rand(2, *shape)).graph
        return [node.kind for node, enough in zip(graph.nodes, graph.signs_suffice, strict=True) if not enough]

    assert needed(deep_residual(), IMAGE) == [] and needed(deep_dense(), FLAT) == []
    assert needed(_read_twice(), FLAT) == ["linear"], "a node that tanh reads needs exact bounds"
    smooth = settled(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU()), FLAT)
    assert needed(smooth, FLAT) == ["linear"]
