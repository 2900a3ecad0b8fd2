"""Recurrent layers as plain operators, step by step, for sequences of the length that they have."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx

from verifiers.core.errors import Unsupported

#: Most steps of a sequence.
MOST_STEPS = 512
States = tuple[Tensor, ...]
#: A step: the gates of the input, the state, the recurrent weights and bias; returns the next state.
Step = Callable[[Tensor, States, Tensor, Tensor | None], States]


def lstm_step(order: str = "ifco") -> Step:
    """Build the step of an LSTM whose gates have this order: input, forget, cell, output."""

    def step(gates: Tensor, state: States, weight: Tensor, bias: Tensor | None) -> States:
        hidden, cell = state
        parts = dict(zip(order, (gates + F.linear(hidden, weight, bias)).chunk(4, -1), strict=True))
        cell = torch.sigmoid(parts["f"]) * cell + torch.sigmoid(parts["i"]) * torch.tanh(parts["c"])
        return torch.sigmoid(parts["o"]) * torch.tanh(cell), cell

    return step


def gru_step(order: str = "rzn") -> Step:
    """Build the step of a GRU whose gates have this order: reset, update, new.

    The reset gate weighs the product with the state, as torch and keras compute it.
    """

    def step(gates: Tensor, state: States, weight: Tensor, bias: Tensor | None) -> States:
        (hidden,) = state
        given = dict(zip(order, gates.chunk(3, -1), strict=True))
        again = dict(zip(order, F.linear(hidden, weight, bias).chunk(3, -1), strict=True))
        kept = torch.sigmoid(given["z"] + again["z"])
        new = torch.tanh(given["n"] + torch.sigmoid(given["r"] + again["r"]) * again["n"])
        return (new + kept * (hidden - new),)

    return step


def rnn_step(activation: Callable[[Tensor], Tensor]) -> Step:
    """Build the step of a layer without gates."""

    def step(gates: Tensor, state: States, weight: Tensor, bias: Tensor | None) -> States:
        return (activation(gates + F.linear(state[0], weight, bias)),)

    return step


def passed(
    step: Step,
    x: Float[Tensor, "length batch features"],
    state: States,
    weights: Sequence[Tensor | None],
    *,
    backwards: bool = False,
) -> tuple[Float[Tensor, "length batch hidden"], States]:
    """Pass a sequence through one layer in one direction; return the hidden states in its order, and the last state.

    Args:
        weights: of the input and of the state, their biases, and the matrix that projects an LSTM's hidden state.

    Raises:
        Unsupported: the sequence is empty or too long.
    """
    if not 0 < len(x) <= MOST_STEPS:
        raise Unsupported(f"a recurrent layer of {len(x)} steps: 1 to {MOST_STEPS} are supported")
    into, again, bias_in, bias_again, projection = [*weights, None][:5]
    assert into is not None and again is not None
    gates, found = F.linear(x, into, bias_in), []
    for index in range(len(x))[:: -1 if backwards else 1]:
        state = step(gates[index], state, again, bias_again)
        if projection is not None:
            state = (F.linear(state[0], projection), *state[1:])
        found.append(state[0])
    return torch.stack(found[::-1] if backwards else found), state


def _layers(step: Step) -> Callable[..., tuple[Tensor, ...]]:
    """Build torch's layers with this step: several, in one direction or both, the batch first or second."""

    def _torch_layers(  # with the arguments of torch's operators
        x: Tensor,
        first: Sequence[Tensor] | Tensor,
        weights: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        if train and dropout:
            raise Unsupported("a recurrent layer in training mode draws random numbers")
        states = [first] if isinstance(first, Tensor) else list(first)
        directions = 2 if bidirectional else 1
        each = len(weights) // (num_layers * directions)
        x, last = x.transpose(0, 1) if batch_first else x, []
        for layer in range(num_layers):
            outputs = []
            for place in range(layer * directions, (layer + 1) * directions):
                own: list[Tensor | None] = list(weights[place * each : (place + 1) * each])
                own = own if has_biases else [*own[:2], None, None, *own[2:]]
                given = tuple(state[place] for state in states)
                found, end = passed(step, x, given, own, backwards=bidirectional and place % 2 == 1)
                outputs.append(found)
                last.append(end)
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
        ends = (torch.stack(state) for state in zip(*last, strict=True))
        return x.transpose(0, 1) if batch_first else x, *ends

    return _torch_layers


def _cell(step: Step) -> Callable[..., Any]:
    """Build torch's single step, which returns one state, or an LSTM's two."""

    def cell(
        x: Tensor,
        state: Sequence[Tensor] | Tensor,
        into: Tensor,
        again: Tensor,
        bias_in: Tensor | None = None,
        bias_again: Tensor | None = None,
    ) -> Any:
        states = (state,) if isinstance(state, Tensor) else tuple(state)
        found = step(F.linear(x, into, bias_in), states, again, bias_again)
        return found[0] if isinstance(state, Tensor) else found

    return cell


_STEPS = {
    "lstm": lstm_step(),
    "gru": gru_step(),
    "rnn_tanh": rnn_step(torch.tanh),
    "rnn_relu": rnn_step(F.relu),
}
#: torch's recurrent operators, and what they are written as in a program.
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **{getattr(torch.ops.aten, name).input: _layers(step) for name, step in _STEPS.items()},
    **{getattr(torch.ops.aten, f"{name}_cell").default: _cell(step) for name, step in _STEPS.items()},
}


def has_recurrent(graph: fx.Graph) -> bool:
    """Return whether a graph has a recurrent layer as one operator."""
    return any(node.target in DECOMPOSITIONS for node in graph.nodes)
