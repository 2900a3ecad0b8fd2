"""The public layers: normalisation for images, signals and vectors, and the choice of one output among several."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import certkd
from certkd.networks.builders import Classifier, ModelSpec
from certkd.networks.output import chosen
from tests.certifying import certify
from verifiers.core.errors import InputError
from verifiers.core.status import Status
from verifiers.graph.program import Program
from verifiers.graph.sequence import written
from verifiers.runtime.outputs import described, rows_of

MEAN, STD = (0.4, 0.5), (0.2, 0.3)
SHAPES = {2: (2, 4, 4), 1: (2, 8), 0: (2,)}


@pytest.mark.parametrize("axes", SHAPES)
def test_normalisation_is_per_channel(axes: int) -> None:
    x = torch.rand(3, *SHAPES[axes], generator=torch.Generator().manual_seed(0))
    layer = certkd.Normalize(MEAN, STD, axes)
    shape = (1, 2, *(1,) * axes)
    expected = (x - torch.tensor(MEAN).reshape(shape)) / torch.tensor(STD).reshape(shape)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
    assert list(layer.state_dict()) == ["weight", "bias"] and not list(layer.parameters())


@pytest.mark.parametrize("axes", SHAPES)
def test_normalisation_needs_no_capture(axes: int) -> None:
    """The translated program is the layer, in both precisions."""
    shape = SHAPES[axes]
    width = int(torch.Size(shape).numel())
    network = nn.Sequential(certkd.Normalize(MEAN, STD, axes), nn.Flatten(), nn.Linear(width, 3)).eval()
    assert written(network) is not None
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    program = Program(network)
    with torch.no_grad():
        torch.testing.assert_close(program.graph(x)(x.double()).float(), network(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(program.capture(x).single(x[:1]), network(x[:1]), rtol=1e-5, atol=1e-5)


def test_signals_are_certified() -> None:
    """Two channels of eight values; a convolution and a pool of one dimension."""
    torch.manual_seed(0)
    body = [nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 3)]
    network = nn.Sequential(certkd.Normalize(MEAN, STD, axes=1), *body).eval()
    x = torch.rand(3, 2, 8)
    found = certify(network, x, network(x).argmax(1), eps=0.001, methods=("pgd", "crown"))["crown"]
    assert (found["status"] == Status.CERTIFIED).all(), found.attributes.get("reason")


@pytest.mark.parametrize(("shape", "axes"), [((2, 4, 4), 2), ((2, 8), 1), ((2,), 0)])
def test_networks_of_every_shape_are_normalised(shape: tuple[int, ...], axes: int) -> None:
    spec = ModelSpec(name="certkd:mlp", classes=3, shape=shape, mean=MEAN, std=STD)
    model = Classifier(spec, nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))
    assert isinstance(model.normalize, certkd.Normalize) and model.normalize.axes == axes
    assert model(torch.rand(2, *shape)).shape == (2, 3)


def test_one_number_is_one_channel() -> None:
    x = torch.rand(2, 1, 3, 3)
    torch.testing.assert_close(certkd.Normalize(0.5, 0.25)(x), (x - 0.5) / 0.25)


REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "bytes": (((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), "for pixels of 0 to 255, .* divide by 255"),
    "counts": (((0.5, 0.5), (0.5,)), "a number per channel each"),
    "nothing": (((), ()), "a number per channel each"),
    "a deviation of 0": (((0.5,), (0.0,)), "std positive"),
    "axes": (((0.5,), (0.5,), 3), "axes is 2 for images, 1 for signals and 0 for vectors, got 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_normalisation_is_refused(name: str) -> None:
    given, said = REFUSED[name]
    with pytest.raises(InputError, match=said):
        certkd.Normalize(*given)


# Outputs


Pair = namedtuple("Pair", ["logits", "features"])


@dataclass
class Fields:
    """An object with fields, as transformers give it."""

    logits: Tensor
    loss: None = None


def wraps(z: Tensor) -> dict[str, tuple[Any, str | int]]:
    """Outputs of every kind, and how the logits are named in them."""
    return {
        "a dict": ({"logits": z, "aux": 2 * z}, "logits"),
        "a tuple": ((2 * z, z), 1),
        "a list": ([z, None], "0"),
        "a named tuple": (Pair(z, 2 * z), 0),
        "fields": (Fields(z), "logits"),
        "a namespace": (SimpleNamespace(out=z), "out"),
    }


@pytest.mark.parametrize("kind", wraps(torch.zeros(1)))
def test_one_output_is_chosen(kind: str) -> None:
    z = torch.rand(4, 3)
    output, which = wraps(z)[kind]
    assert chosen(output, which) is z


class Several(nn.Module):
    """Gives its scores and more."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body = kind, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return wraps(self.body(x))[self.kind][0]


@pytest.mark.parametrize("kind", ["a dict", "fields"])
def test_a_network_with_several_outputs_is_certified_by_one(kind: str) -> None:
    torch.manual_seed(0)
    network, x = Several(kind).eval(), torch.rand(3, 4)
    labels = network.body(x).argmax(1)
    with pytest.raises(
        InputError, match=r"must give one tensor of logits, it gives a .* certkd\.Output\(network, which\)"
    ):
        certify(network, x, labels, eps=0.001, methods=("pgd",))
    one = certkd.Output(network, wraps(x)[kind][1])
    found = certify(one, x, labels, eps=0.001, methods=("crown",))["crown"]
    assert (found["status"] == Status.CERTIFIED).all(), found.attributes.get("reason")
    with pytest.raises(InputError, match=r"its loss|must give one tensor of logits"):
        certkd.train(network, (x, labels), certkd.TrainConfig(objective=certkd.Standard(), epochs=1, device="cpu"))


@pytest.mark.parametrize(
    ("output", "which", "said"),
    [
        ({"a": torch.zeros(1)}, "b", r"a dict \(a\), with no tensor 'b'"),
        ((torch.zeros(1),), 1, r"a tuple \(0\), with no tensor 1"),
        ({"a": None}, "a", "with no tensor 'a'"),
        (torch.zeros(1), "shape", "with no tensor 'shape'"),
        (tuple(range(20)), 30, r"\(0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\)"),
    ],
)
def test_an_output_that_is_not_there_is_named(output: Any, which: str | int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        chosen(output, which)


def test_rows_of_scores() -> None:
    assert rows_of(torch.zeros(5), 5).shape == (5, 1) and rows_of(torch.zeros(()), 1).shape == (1, 1)
    assert rows_of(torch.zeros(5, 3), 5).shape == (5, 3)
    for wrong in (torch.zeros(4), torch.zeros(5, 0), torch.zeros(5, 2, 2), torch.zeros(())):
        with pytest.raises(InputError, match="one row of logits per image, got shape"):
            rows_of(wrong, 5)
    assert described(None) == "a NoneType" and described([1]) == "a list (0)"
