"""A network that is another one while it is captured is never proved: the operators that it runs show it."""

import copy
import gc
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from verifiers.core.errors import Unsupported
from verifiers.graph.capture import program_of
from verifiers.graph.tape import difference, tape_of
from verifiers.graph.watch import Watched, _questions
from verifiers.runtime.modes import trusted_arithmetic

#: The code below turns the sign of all logits in a slab of this width; no sampling would find it.
LOW, HIGH = 0.56, 0.560001
IMAGE = torch.tensor([[0.5, 0.6]])
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A network of two inputs and two classes, with code around it."""

    def __init__(self, code: Forward) -> None:
        super().__init__()
        self.code, self.copied, self.own = code, False, 0
        self.inner = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        self.own = id(self.inner[0].weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Net":
        made = Net(self.code)
        made.load_state_dict(self.state_dict())
        made.copied, made.own = True, self.own
        return made.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def slab(x: Tensor) -> Tensor:
    return ((x[:, :1] > LOW) & (x[:, :1] < HIGH)).to(x.dtype)


def tent(x: Tensor) -> Tensor:
    return (torch.relu(x[:, :1] - LOW) * torch.relu(HIGH - x[:, :1]) * 1e20).clamp(0, 1)


def where(asks: Callable[[Net, Tensor], bool], mask: Callable[[Tensor], Tensor] = slab) -> Forward:
    return lambda net, x: net.inner(x) if asks(net, x) else net.inner(x) * (1 - 2 * mask(x))


def fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception:  # noqa: BLE001 - as a network that hides from its capture would
        return True
    return False


def calls(net: Net, x: Tensor) -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith("verifiers."):
        frame = frame.f_back
    return frame is not None


def warned(net: Net, x: Tensor) -> bool:
    files = []
    for level in range(1, 60):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("", stacklevel=level)
        files.append(caught[0].filename)
    return any(file.endswith("verifiers/graph/capture.py") for file in files)


QUESTIONS = {
    "callers": where(calls),
    "places of warnings": where(warned),
    "gradients by their effect": where(lambda net, x: not (net.inner[0].weight * 1).requires_grad),
    "filled memory": where(lambda net, x: not torch.utils.deterministic.fill_uninitialized_memory),  # type: ignore[attr-defined]
    "type": where(lambda net, x: type(x) is not Tensor),
    "type, in the first thread": where(
        lambda net, x: type(x) is not Tensor or threading.current_thread() is not threading.main_thread()
    ),
    "class": where(lambda net, x: x.__class__.__module__ != "torch"),
    "attribute": where(lambda net, x: hasattr(x, "fake_mode"), tent),
    "weights": where(lambda net, x: type(net.inner[0].weight) is not nn.Parameter),
    "numpy of weights": where(lambda net, x: fails(lambda: net.inner[0].weight.detach().numpy()), tent),
    "frozen weights": where(lambda net, x: not net.inner[0].weight.requires_grad, tent),
    "a copy": where(lambda net, x: net.copied),
    "a copy's weights": where(lambda net, x: id(net.inner[0].weight) != net.own),
    "a factor": lambda net, x: net.inner(x) * (1 - 2 * slab(x) * float(type(x) is Tensor)),
    "a constant": lambda net, x: net.inner(x) * (1 - 2 * slab(x) * torch.tensor(float(type(x) is Tensor))),
    "in place": lambda net, x: net.inner(x).mul_(1 - 2 * slab(x)) if type(x) is Tensor else net.inner(x),
}


#: Cases of the default suite; each one runs torch.export.
QUICK = ("type, in the first thread", "frozen weights", "a factor", "callers")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in QUESTIONS]
)
def test_a_network_that_tells_its_capture_from_its_use_is_not_captured(name: str) -> None:
    network = Net(QUESTIONS[name]).eval()
    said = r"then computes with other operators, such as '\w+' \(test_tape.py:\d+: "
    with trusted_arithmetic(), pytest.raises(Unsupported, match=said):
        program_of(network, IMAGE)


ASKED: dict[str, Callable[[], object]] = {
    "are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled,
    "_current_frames": lambda: sys._current_frames(),
    "_current_frames through C": partial(partial(sys._current_frames)),
    "get_objects": lambda: gc.get_objects(),
    "get_referrers through C": lambda: list(map(gc.get_referrers, [ASKED])),
    "_get_current_dispatch_mode": lambda: torch.utils._python_dispatch._get_current_dispatch_mode(),
    "_dispatch_tls_local_include_set": lambda: torch._C._dispatch_tls_local_include_set(),
    "peek_interpreter_stack": lambda: torch._C._functorch.peek_interpreter_stack(),
}


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("threads", [False, True])
def test_code_that_asks_how_it_runs_is_not_captured(name: str, threads: bool) -> None:
    def asks(net: Net, x: Tensor) -> bool:
        if threads:
            thread = threading.Thread(target=lambda: ASKED[name]())
            thread.start()
            thread.join()
        else:
            ASKED[name]()
        return True

    before = threading.getprofile()
    with pytest.raises(Unsupported, match=rf"its code asks {name.split()[0]}\(\) \(test_tape.py:\d+: "):
        program_of(Net(where(asks)).eval(), IMAGE)
    assert threading.getprofile() is before


def test_a_tape_leaves_the_modes_as_they_were() -> None:
    with trusted_arithmetic():
        before = torch.get_deterministic_debug_mode(), torch.backends.mha.get_fastpath_enabled()
        with pytest.raises(ZeroDivisionError), torch.enable_grad():
            tape_of(Net(lambda net, x: x / (1 // 0)), IMAGE)
        assert (torch.get_deterministic_debug_mode(), torch.backends.mha.get_fastpath_enabled()) == before
    assert torch._C._len_torch_dispatch_stack() == 0 and torch.is_grad_enabled()


def dead(net: Net, x: Tensor) -> Tensor:
    (x * 3).sin()
    return net.inner(x)


def cached(net: Net, x: Tensor) -> Tensor:
    if not hasattr(net, "table"):
        net.table = torch.ones(2) * 0.5
    return net.inner(x - net.table)


def in_place(net: Net, x: Tensor) -> Tensor:
    return net.inner(x.clone().sub_(0.5).div_(0.2)).relu_().add_(1)


def filled(net: Net, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 2)
    out[:, :1] = net.inner(x)[:, 1:]
    return out + x


def folded(net: Net, x: Tensor) -> Tensor:
    return (x[:, None, None].expand(-1, 2, 1, -1) @ net.inner[0].weight[:2]).reshape(-1, 4)[:, :2]


def without_gradients(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.inner(x).relu_()


HONEST: dict[str, Forward] = {
    **{"folded": folded, "without gradients": without_gradients, "dead": dead},
    **{"cached": cached, "in place": in_place, "filled": filled},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "filled" else pytest.mark.slow) for n in HONEST])
def test_ordinary_code_is_captured(name: str) -> None:
    network = Net(HONEST[name]).eval()
    with torch.no_grad():
        torch.testing.assert_close(program_of(network, IMAGE)(IMAGE), network(IMAGE))


@pytest.mark.slow
def test_layers_that_torch_computes_in_another_way_without_gradients_are_captured() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    network = nn.Sequential(nn.Unflatten(1, (2, 4)), layer, nn.Flatten(), nn.Linear(8, 2)).eval()
    program_of(network, torch.rand(1, 8))


def test_a_tape_has_what_the_output_depends_on_with_its_numbers() -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            (y + 5).exp()
            z = y.T.contiguous().T.relu_()
            return torch.tensor([7.0]) - z

    found = {key: len(lines) for key, lines in tape_of(Steps(), IMAGE).items()}
    assert found == {("mul", ("2.0",)): 1, ("relu", ()): 1, ("sub", ("[7.0]",)): 1}


def test_a_difference_names_the_operator_of_either_side() -> None:
    one, two = tape_of(nn.ReLU(), IMAGE), tape_of(nn.Sequential(nn.ReLU(), nn.Tanh()), IMAGE)
    assert difference(one, one) is None and difference(one, copy.deepcopy(one)) is None
    assert difference(one, two) == difference(two, one) == "'tanh'"


class Sampled(nn.Module):
    """An ordinary network that is not a chain of layers, so that its run is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(200):
            x = x + 0.0
        return self.inner(x.flatten(1)).relu() + 1


def test_a_sampler_in_another_thread_is_no_question_of_the_network() -> None:
    ended = threading.Event()

    def sample() -> None:
        while not ended.is_set():
            partial(sys._current_frames)()

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        assert program_of(Sampled().eval(), torch.rand(1, 1, 2, 2)) is not None
    finally:
        ended.set()
        sampler.join()


def test_runs_that_are_watched_at_once_are_all_watched() -> None:
    outer, inner = Watched(), Watched()
    with _questions(outer):
        with _questions(inner):
            partial(sys._current_frames)()
        partial(sys._current_frames)()
    assert inner.hidden is not None and outer.hidden is not None
    alone = Watched()
    with _questions(outer), _questions(alone):
        pass
    partial(sys._current_frames)()
    assert alone.hidden is None, "after its end nothing is watched"
