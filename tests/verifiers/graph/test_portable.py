"""A program in another process is the same program."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certkd.networks.builders.own import own_network
from tests.verifiers.graph.nets import VALUES
from verifiers.core.errors import InputError, Unsupported
from verifiers.graph.last_layer import Scores
from verifiers.graph.portable import Operators, Portable
from verifiers.graph.program import Captured, Program

IMAGES = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Odd(nn.Module):
    """Operators of every kind of argument: lists, axes, dtypes, slices of a constant, several results, names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(32, 3)
        self.register_buffer("shift", torch.linspace(-1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norm(self.conv(x)).relu().chunk(2, 1)
        h = torch.cat([a, b.tanh() * self.shift[2:6].to(torch.float64).float()], 1)
        h = h.mean((2,), keepdim=False).flatten(1)
        return self.last(torch.cat([h, h.abs().clamp(max=0.5)], 1)).softmax(1)


class Reads(nn.Module):
    """Reads a value of its image, which cannot be captured."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.sum((1, 2, 3)), x.amax((1, 2, 3)) * (1.0 if float(x.sum()) > 0 else 2.0)], 1)


def sent(program: Program, images: Tensor = IMAGES) -> Program:
    return pickle.loads(pickle.dumps(Portable.of(program, images))).program()


def assert_same(one: Program, other: Program, images: Tensor = IMAGES) -> None:
    assert one.sha256 == other.sha256 != ""
    assert one.last_layer == other.last_layer
    assert one.captured is not None and other.captured is not None
    with torch.no_grad():
        for batch in (images, images[:1]):
            assert torch.equal(one.module(batch), other.module(batch))
            assert torch.equal(one.exact(batch.double()), other.exact(batch.double()))
            assert torch.equal(one.captured.whole(batch), other.captured.whole(batch))
    notes = [
        [(n.op, n.target, n.name, n.meta.get("half")) for n in p.captured.single.graph.nodes] for p in (one, other)
    ]
    assert notes[0] == notes[1]
    kinds = [[(node.kind, node.path) for node in p.graph(images).nodes] for p in (one, other)]
    assert kinds[0] == kinds[1], "the graphs that are bounded differ"


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(Odd(), marks=pytest.mark.slow),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3)),
    ],
    ids=["odd", "plain"],
)
def test_a_program_is_the_same_to_the_last_bit(network: nn.Module) -> None:
    program = Program(network.eval())
    program.hold(IMAGES)
    made = sent(program)
    assert_same(program, made)
    assert (made.captured is not None and made.captured.plain) == isinstance(network, nn.Sequential)


def test_what_cannot_be_captured_keeps_its_reason() -> None:
    program = Program(Reads().eval())
    program.hold(IMAGES)
    made = sent(program)
    assert program.refusal and made.refusal == program.refusal
    assert torch.equal(made.module(IMAGES), program.module(IMAGES))
    with pytest.raises(Unsupported):
        made.graph(IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*VALUES][::4])
def test_operators_of_every_kind_are_the_same(name: str) -> None:
    """Attention, shortcuts, quotients: operators whose arguments are lists, nothing, or other operators."""
    shape, make = VALUES[name]
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    program = Program(nn.Sequential(make(), nn.Flatten()).eval())
    captured = program.capture(images)
    made = pickle.loads(pickle.dumps(Operators.of(captured.single))).program()
    other = Captured.of(Scores(made, made), program.given, images[:1])
    assert other.sha256 == captured.sha256
    with torch.no_grad():
        assert torch.equal(other.module(images), captured.module(images))
    for one, two in zip(captured.graph.nodes, other.graph.nodes, strict=True):
        assert (one.kind, one.path, tuple(one.shape)) == (two.kind, two.path, tuple(two.shape))


OWN = """
from torch import nn
class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    def forward(self, x):
        return self.body(x - 0.5)
"""


def test_a_class_of_a_file_is_found_again(tmp_path: Path) -> None:
    """The file is loaded by a person's command, and no import finds it; another process has not loaded it."""
    (tmp_path / "mine.py").write_text(OWN)
    network = own_network(f"{tmp_path / 'mine.py'}:Net", {}, 3).eval()
    program, name = Program(network), type(network).__module__
    program.hold(IMAGES)
    portable = pickle.loads(pickle.dumps(Portable.of(program, IMAGES)))
    del sys.modules[name]
    assert_same(program, portable.program())
    assert [file for _, file in portable.files] == [str(tmp_path / "mine.py")]


def test_last_layers_are_left_out_there_too() -> None:
    program = Program(nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Sigmoid()).eval())
    program.hold(IMAGES)
    made = sent(program)
    assert_same(program, made)
    assert made.captured is not None and made.captured.scores.one and made.captured.scores.left_out == ("sigmoid",)


class Forgets(Reads):
    """Is pickled without its scale, as code does that leaves out what it takes for a cache."""

    scale = 1.0

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "scale"}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def test_a_network_that_is_another_function_after_pickling_is_refused() -> None:
    """It cannot be captured, so votes and attacks in another process would be those of the other function."""
    network = Forgets().eval()
    sent(Program(network))
    network.scale = -1.0
    program = Program(network)
    program.hold(IMAGES)
    assert program.refusal
    with pytest.raises(InputError, match=r"another function after pickling \(logits differ by .*\): use one process"):
        sent(program)


class Unbuilt(Reads):
    """Can be pickled, and not be built again."""

    def __setstate__(self, state: Any) -> None:
        raise LookupError("no such thing")


def test_a_network_that_cannot_be_sent_or_built_is_said_in_a_line() -> None:
    network = Reads().eval()
    network.score = lambda x: x  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"cannot be sent to other processes \(.*lambda.*\): use one"):
        Portable.of(Program(network), IMAGES)
    portable = Portable.of(Program(Unbuilt().eval()), IMAGES)
    with pytest.raises(InputError, match=r"cannot be built in other processes \(no such thing\): use one"):
        portable.program()
