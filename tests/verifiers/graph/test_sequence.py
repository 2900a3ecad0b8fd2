"""Sequences written down from their layers are the graphs that torch.export captures."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode

from certkd.networks.builders.build import Normalize
from verifiers.graph import capture
from verifiers.graph.exported import Exported
from verifiers.graph.sequence import written

SEQUENCES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Flatten(1), nn.Identity()), nn.Sequential(nn.Linear(16, 3))),
    "cnn": lambda: nn.Sequential(
        Normalize([0.3], [0.5]),
        nn.Conv2d(1, 2, 3, stride=2, padding=1, dilation=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 3),
    ),
    "groups": lambda: nn.Sequential(nn.Conv2d(1, 4, (2, 1)), nn.Conv2d(4, 4, 2, groups=2, bias=False), nn.Flatten()),
    "one layer": lambda: nn.Linear(4, 3),
}


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, fx.Node) else tuple(value) if isinstance(value, list) else value


def _steps(found: Exported) -> list[Any]:
    """Operators with all their arguments: the image, weights by their names, earlier operators by number."""
    nodes, order = found.nodes, {**found.weights, **dict.fromkeys(found.images, "image")}
    order |= {node.name: str(i) for i, node in enumerate(node for node in nodes if node.op == "call_function")}
    steps = []
    for node in nodes:
        if node.op == "call_function":
            schema, given = node.target._schema.arguments, list(node.args)
            full = given + [argument.default_value for argument in schema[len(given) :]]
            steps.append((str(node.target), [order.get(_plain(v), _plain(v)) for v in full]))
    return steps


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_graph_is_what_torch_export_captures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SEQUENCES[name]().double().eval().requires_grad_(False)
    x = torch.rand(1, 4, dtype=torch.float64) if name == "one layer" else torch.rand(1, 1, 4, 4, dtype=torch.float64)
    ours = written(model)
    monkeypatch.setattr(capture, "written", lambda model: None)
    theirs = capture.export(model, x)
    assert ours is not None, "a plain sequence is left to torch.export"
    assert _steps(ours) == _steps(theirs)
    assert ours.state.keys() == theirs.state.keys()
    assert all(torch.equal(ours.state[key], theirs.state[key]) for key in ours.state)


class _Branching(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if bool(x.sum() > 0) else -x)


class _Backwards(nn.Sequential):
    def __iter__(self) -> Iterator[nn.Module]:
        return reversed(list(super().__iter__()))


class _Odd(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(lambda module, given, output: -output)
    return model


def _patched() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].forward = lambda x: x  # type: ignore[method-assign]
    return model


def _twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


STRANGE: dict[str, Callable[[], nn.Module]] = {
    "own forward": lambda: _Branching(nn.Linear(4, 3)),
    "own order": lambda: _Backwards(nn.Linear(4, 4), nn.ReLU()),
    "subclass of a layer": lambda: nn.Sequential(_Odd(4, 3)),
    "hook": _hooked,
    "patched": _patched,
    "parametrised": lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
    "one layer twice": _twice,
    "circular padding": lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")),
    "padding by name": lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")),
    "another layer": lambda: nn.Sequential(nn.Linear(4, 3), nn.GELU()),
    "sequence as an attribute": lambda: nn.ModuleList([nn.Linear(4, 3)]),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_has_code_of_its_own_is_left_to_torch_export(name: str) -> None:
    assert written(STRANGE[name]()) is None


def test_a_hook_on_every_module_is_seen() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, output: None)
    try:
        assert written(SEQUENCES["mlp"]()) is None
    finally:
        handle.remove()
    assert written(SEQUENCES["mlp"]()) is not None


def doubled(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return 2 * x


class Doubling(TorchFunctionMode):
    """Doubles what every function of torch gives."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 2 * func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (nn.Linear, "forward"),
        (nn.ReLU, "forward"),
        (nn.Conv2d, "_conv_forward"),
        (nn.Module, "__call__"),
        (nn.Linear, "_call_impl"),
        (nn.Sequential, "forward"),
        (torch.nn.functional, "linear"),
        (torch.nn.functional, "relu"),
        (torch, "relu"),
    ],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_layers_that_a_package_replaced_are_not_torchs(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    assert written(model) is not None
    monkeypatch.setattr(owner, name, doubled)
    assert written(model) is None, "torch.export sees what runs"
    monkeypatch.undo()
    with Doubling():
        assert written(model) is None
    assert written(model) is not None
