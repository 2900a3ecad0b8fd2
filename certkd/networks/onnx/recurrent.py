"""Translate recurrent layers, step by step, for sequences of the length that they have; see ``operators``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from certkd.networks.onnx.call import Call, Value, integers, tensor
from verifiers.graph.recurrent import MOST_STEPS, Step, gru_step, lstm_step, passed, rnn_step


def _gru_reset_first(
    gates: Tensor, state: tuple[Tensor, ...], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """Apply the step of a GRU whose reset gate weighs the state before the product."""
    (hidden,), size = state, 2 * state[0].shape[-1]
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    z, r, h = gates.chunk(3, -1)
    again_z, again_r = F.linear(hidden, weight[:size], bias[:size]).chunk(2, -1)
    kept, reset = torch.sigmoid(z + again_z), torch.sigmoid(r + again_r)
    new = torch.tanh(h + F.linear(reset * hidden, weight[size:], bias[size:]))
    return (new + kept * (hidden - new),)


def _layer(
    call: Call, steps: Sequence[Step], values: Sequence[Value], attributes: dict[str, Any], states: int
) -> tuple[Tensor, ...]:
    """Run a layer in one direction or in both, from states of zeros or given ones.

    Args:
        steps: a step per direction.
        values: the sequence (length, batch, features) or with ``layout`` (batch, length, features), the weights of the
            input and of the state and the biases, then the lengths and the first states, which may be missing.
        states: the number of states: 2 for an LSTM.
    """
    whole: list[Any] = [*values, *[None] * (5 + states - len(values))]
    (x, weights, again, biases, lengths), first = whole[:5], whole[5:]
    layout = attributes.get("layout", 0)
    x = x.transpose(0, 1) if layout else x
    length, batch, hidden = int(x.shape[0]), x.shape[1], again.shape[-1]
    if lengths is not None and (isinstance(lengths, Tensor) or set(integers(lengths)) != {length}):
        raise call.refuse("has sequences of several lengths")
    if not 0 < length <= MOST_STEPS:
        raise call.refuse(f"has {length} steps: at most {MOST_STEPS} are supported")
    outputs, last = [], []
    for place, step in enumerate(steps):
        weight, recurrent = weights[place], again[place]
        into, back = weight.new_zeros(2, len(weight)) if biases is None else biases[place].chunk(2)
        given = [None if one is None else tensor(one, x) for one in first[:states]]
        given = [one if one is None else one[:, place] if layout else one[place] for one in given]
        state = tuple(x.new_zeros(batch, hidden) if one is None else one.expand(batch, -1) for one in given)
        backwards = attributes.get("direction", "forward") == "reverse" or bool(place)
        found, state = passed(step, x, state, (weight, recurrent, into, back), backwards=backwards)
        outputs.append(found)
        last.append(state)
    every = torch.stack(outputs, 1)  # length, direction, batch, hidden
    ends = [torch.stack(each) for each in zip(*last, strict=True)]
    return (every.permute(2, 0, 1, 3), *(end.transpose(0, 1) for end in ends)) if layout else (every, *ends)


def _recurrent(
    states: int, usual: Sequence[str], step_of: Callable[[Call, str, dict[str, Any]], Step]
) -> Callable[..., Any]:
    known = {"hidden_size", "direction", "layout", "activations", "linear_before_reset", "input_forget"}

    def apply(call: Call, *values: Value, **attributes: Any) -> tuple[Tensor, ...]:
        unknown = attributes.keys() - known
        if unknown or attributes.get("input_forget"):
            raise call.refuse(f"attribute {min(unknown or {'input_forget'})!r} is not supported")
        if len(values) > 5 + states:
            raise call.refuse("has peepholes: they are not supported")
        names, width = attributes.get("activations") or [], len(usual)
        count = 2 if attributes.get("direction") == "bidirectional" else 1
        names = [_text(name) for name in names] or list(usual) * count
        parts = [names[place * width : (place + 1) * width] for place in range(count)]
        if any(part[1:] != list(usual[1:]) or (part[0] != usual[0] and states + width > 2) for part in parts):
            raise call.refuse(f"activations={names} are not the usual ones")
        return _layer(call, [step_of(call, part[0], attributes) for part in parts], values, attributes, states)

    return apply


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def _gru(call: Call, name: str, attributes: dict[str, Any]) -> Step:
    return gru_step("zrn") if attributes.get("linear_before_reset") else _gru_reset_first


def _rnn(call: Call, name: str, attributes: dict[str, Any]) -> Step:
    steps = {"Tanh": rnn_step(torch.tanh), "Relu": rnn_step(F.relu)}
    if name not in steps:
        raise call.refuse(f"activation {name!r} is not supported")
    return steps[name]


lstm = _recurrent(2, ("Sigmoid", "Tanh", "Tanh"), lambda call, name, attributes: lstm_step("iofc"))
gru = _recurrent(1, ("Sigmoid", "Tanh"), _gru)
rnn = _recurrent(1, ("Tanh",), _rnn)
