"""torch's recurrent layers are programs of plain operators: the same function, with bounds that hold."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.marks import thin
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import InputError, Unsupported
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.graph.program import Program
from verifiers.graph.recurrent import MOST_STEPS, passed, rnn_step

LENGTH, FEATURES, HIDDEN, CLASSES, EPS = 2, 2, 2, 2, 0.05


class Layers(nn.Module):
    """Read a sequence by recurrent layers, the batch in front or behind the steps; its end gives the scores."""

    def __init__(self, kind: Callable[..., nn.Module], *, batch_first: bool = True, **settings: Any) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.read = kind(FEATURES, HIDDEN, batch_first=batch_first, **settings)
        width = settings.get("proj_size", HIDDEN) * (2 if settings.get("bidirectional") else 1)
        self.last = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.batch_first:
            return self.last(self.read(x)[0][:, -1])
        return self.last(self.read(x.transpose(0, 1))[0][-1])


class States(nn.Module):
    """The scores come from the last states of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.LSTM(FEATURES, HIDDEN, bidirectional=True, batch_first=True)
        self.last = nn.Linear(4 * HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, cell) = self.read(x)
        return self.last(torch.cat([*hidden, *cell], 1))


class Cells(nn.Module):
    """A loop of the user's own over single steps."""

    def __init__(self, kind: Callable[..., nn.Module], *, states: int = 1) -> None:
        super().__init__()
        self.cell, self.last, self.states = kind(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES), states

    def forward(self, x: Tensor) -> Tensor:
        state: Any = x.new_zeros(len(x), HIDDEN)
        state = (state, state) if self.states == 2 else state
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.last(state[0] if self.states == 2 else state)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "RNN": lambda: Layers(nn.RNN),
    "LSTM": lambda: Layers(nn.LSTM),
    "LSTM, two layers, both directions": lambda: Layers(nn.LSTM, num_layers=2, bidirectional=True),
    "LSTM, steps first, without biases": lambda: Layers(nn.LSTM, batch_first=False, bias=False),
    "GRU": lambda: Layers(nn.GRU),
    "LSTM with a projection, without biases": lambda: Layers(nn.LSTM, proj_size=1, bias=False),
    "LSTM, its last states": States,
    "GRU, steps first, both directions": lambda: Layers(nn.GRU, batch_first=False, bidirectional=True),
    "GRU, two layers with dropout": lambda: Layers(nn.GRU, num_layers=2, dropout=0.5),
    "RNN with relu, two layers": lambda: Layers(nn.RNN, num_layers=2, nonlinearity="relu"),
    "LSTM cells": lambda: Cells(nn.LSTMCell, states=2),
    "GRU cells": lambda: Cells(nn.GRUCell),
    "RNN cells": lambda: Cells(nn.RNNCell),
}


def made(network: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network in eval mode with larger weights than torch's, so that gates open and close."""
    torch.manual_seed(seed)
    found = network().eval()
    for weight in found.parameters():
        weight.data = 0.8 * torch.randn_like(weight)
    return found


def sequences(count: int) -> Tensor:
    return torch.rand(count, LENGTH, FEATURES, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", thin(NETWORKS, every=20))
def test_it_is_the_same_function_and_its_bounds_hold(name: str) -> None:
    network, x = made(NETWORKS[name]), sequences(2)
    program = Program(network)
    module = program.hold(x)
    assert program.refusal is None
    centre, generator = x[:1], torch.Generator().manual_seed(1)
    steps = 2 * torch.rand(60, LENGTH, FEATURES, generator=generator) - 1
    points = (centre + EPS * torch.cat([steps, steps.sign()])).clamp(0, 1)
    with torch.no_grad():
        values, expected = module(points), network(points)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    engine, balls = Native(program, centre), Balls.around(centre.double(), EPS, Norm.LINF)
    rows, width = torch.eye(CLASSES, dtype=torch.float64)[None], values.amax(0) - values.amin(0)
    for method in ("ibp", "crown"):
        low, high = (sense * engine.ask(balls, sense * rows, method).bound[0] for sense in (1, -1))
        assert bool((values >= low).all()) and bool((values <= high).all()), f"{method} loses a point"
        if method == "crown":
            assert bool((high - low < 6 * width + 0.01).all()), f"{high - low} around values that span {width}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_float32_stays_within_its_bounds(kind: Callable[..., nn.Module]) -> None:
    """torch's kernel and the program differ from the exact network by less than the rounding allowed."""
    torch.manual_seed(3)
    network = Layers(kind).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    x = torch.rand(1, 4, FEATURES)
    program = Program(network)
    module = program.hold(torch.cat([x, x / 2]))
    rows = torch.eye(CLASSES, dtype=torch.float64)[None]
    engine = Native(program, x, arithmetic=Arithmetic.FLOAT32)
    signs = torch.rand(64, 4, FEATURES, generator=torch.Generator().manual_seed(1)).sub(0.5).sign()
    points = (x + 1e-6 * signs).clamp(0, 1)
    low, high = (sense * engine.ask(Balls.around(x.double(), 1.1e-6, Norm.LINF), sense * rows, "crown").bound[0]
                 for sense in (1, -1))  # fmt: skip
    assert bool((high - low < 1e-2).all()), f"the rounding allowed is {high - low}"
    with torch.no_grad():
        for values in (network(points), module(points), torch.cat([network(point[None]) for point in points])):
            assert bool((values >= low).all()) and bool((values <= high).all()), "float32 leaves its bounds"


class Mixing(nn.Module):
    """The images of a batch are read as the steps of one sequence."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.read, self.last = kind(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.read(x)[0][:, -1])


@pytest.mark.parametrize("kind", thin([nn.RNN, nn.LSTM, nn.GRU]))
def test_a_layer_that_reads_the_batch_as_its_steps_is_refused(kind: Callable[..., nn.Module]) -> None:
    with pytest.raises(InputError, match="mixes the images of a batch"):
        Program(made(lambda: Mixing(kind))).hold(sequences(2))


def closed_form(x: Sequence[float], weight: float, again: float) -> list[float]:
    """The states of one relu unit."""
    states, state = [], 0.0
    for value in x:
        state = max(0.0, weight * value + again * state)
        states.append(state)
    return states


@pytest.mark.parametrize("backwards", [False, True])
def test_one_unit_by_hand(backwards: bool) -> None:
    x, weights = [0.5, -1.0, 2.0, 0.25], [torch.tensor([[2.0]]), torch.tensor([[-0.5]]), None, None]
    given = torch.tensor(x).reshape(-1, 1, 1)
    found, (end,) = passed(rnn_step(torch.relu), given, (torch.zeros(1, 1),), weights, backwards=backwards)
    expected = closed_form(x[::-1] if backwards else x, 2.0, -0.5)
    assert float(end) == expected[-1]
    assert found.flatten().tolist() == (expected[::-1] if backwards else expected)


@pytest.mark.parametrize("steps", [0, MOST_STEPS + 1])
def test_sequences_without_steps_or_with_too_many_are_refused(steps: int) -> None:
    weights = [torch.ones(1, 1), torch.ones(1, 1), None, None]
    with pytest.raises(Unsupported, match=f"a recurrent layer of {steps} steps: 1 to {MOST_STEPS} are supported"):
        passed(rnn_step(torch.tanh), torch.zeros(steps, 1, 1), (torch.zeros(1, 1),), weights)
