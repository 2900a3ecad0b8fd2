"""Last layers that keep the order of the scores are left out; others, which only look like them, stay."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.certifying import certify
from tests.marks import thin
from verifiers.certify.verify import VerifyConfig, verify
from verifiers.core.errors import Contradiction, InputError
from verifiers.core.reporter import Reporter
from verifiers.core.status import Status
from verifiers.graph.program import Captured, Program, check_order
from verifiers.runtime.samples import Data

Last = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Four inputs, three scores (or as many as asked for), and a last layer."""

    def __init__(self, last: Last, classes: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, classes))
        with torch.no_grad():
            for weight in self.body.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))
        self.last = last
        self.temperature = nn.Parameter(torch.tensor(0.25))
        self.log_scale = nn.Parameter(torch.tensor([1.5]))
        self.register_buffer("each", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self, self.body(x))


IMAGES = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))

LEFT_OUT: dict[str, tuple[Last, str]] = {
    "softmax": (lambda n, z: z.softmax(1), "softmax left out"),
    "softmax over the last axis": (lambda n, z: F.softmax(z, dim=-1), "softmax left out"),
    "log_softmax": (lambda n, z: F.log_softmax(z, 1), "log_softmax left out"),
    "log of softmax": (lambda n, z: (z.softmax(1) + 1e-6).log(), "log and a shift and softmax left out"),
    "sigmoid": (lambda n, z: torch.sigmoid(z), "sigmoid left out"),
    "tanh": (lambda n, z: z.tanh(), "tanh left out"),
    "temperature": (lambda n, z: z / n.temperature, "a factor 4 left out"),
    "temperature, then softmax": (lambda n, z: (z / 0.5).softmax(1), "softmax and a factor 2 left out"),
    "a learned scale": (lambda n, z: z * n.log_scale.exp(), "a factor 4.482 left out"),
    "a shift of all classes": (lambda n, z: (z + 2).exp(), "exp and a shift left out"),
    "softmax before a reshape": (lambda n, z: z[:, :, None, None].softmax(1).flatten(1), "softmax left out"),
    "softmin": (lambda n, z: nn.Softmin(1)(z), "softmax left out"),
}
STAYS: dict[str, Last] = {
    "softmax over the batch": lambda n, z: z.softmax(0),
    "a factor for each class": lambda n, z: z * n.each,
    "a shift for each class": lambda n, z: z + n.each,
    "a negative factor": lambda n, z: z * -2,
    "a factor of 0": lambda n, z: z * 0,
    "a number over the scores": lambda n, z: 1 / (z.square() + 1),
    "ReLU": lambda n, z: z.relu(),
    "log of scores": lambda n, z: (z + 100).log(),
    "a normalisation": lambda n, z: z / z.abs().sum(1, keepdim=True),
    "a product with itself": lambda n, z: z * z,
    "two axes": lambda n, z: z[:, :, None].expand(-1, -1, 2).softmax(1).flatten(1),
}


def captured(last: Last, classes: int = 3) -> Captured:
    return Program(Net(last, classes).eval()).capture(IMAGES)


@pytest.mark.parametrize("name", thin(LEFT_OUT, every=2))
@pytest.mark.thin(3)
def test_layers_that_keep_the_order_are_left_out(name: str) -> None:
    last, remark = LEFT_OUT[name]
    network = Net(last).eval()
    found = Program(network).capture(IMAGES)
    assert found.scores.remark == remark
    with torch.no_grad():
        torch.testing.assert_close(found.whole(IMAGES), network(IMAGES), rtol=1e-5, atol=1e-6)
        scores = -network.body(IMAGES) if name == "softmin" else network.body(IMAGES)
        torch.testing.assert_close(found.module(IMAGES), scores, rtol=1e-5, atol=1e-6)
        assert torch.equal(found.module(IMAGES).argmax(1), network(IMAGES).argmax(1))
        assert torch.equal(found.graph(IMAGES.double()).argmax(1), network(IMAGES).argmax(1))


@pytest.mark.parametrize("name", thin(STAYS))
@pytest.mark.thin(2)
def test_other_layers_stay(name: str) -> None:
    network = Net(STAYS[name]).eval()
    found = Captured(network, IMAGES[:1])
    assert found.scores.remark == found.scores.said == "" and found.whole is found.module
    if name != "softmax over the batch":
        with torch.no_grad():
            torch.testing.assert_close(found.module(IMAGES), network(IMAGES), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_radius_is_that_of_the_logits() -> None:
    body = Net(lambda n, z: 100 * z).eval()
    plain = certify(body.body, IMAGES, body(IMAGES).argmax(1), eps=0.05, methods=("pgd", "crown"))
    for last in (lambda n, z: (100 * z).softmax(1), lambda n, z: (100 * z).log_softmax(1)):
        network = Net(last).eval()
        found = certify(network, IMAGES, body(IMAGES).argmax(1), eps=0.05, methods=("pgd", "crown"))
        for method in ("pgd", "crown"):
            assert np.array_equal(found[method]["status"], plain[method]["status"]), method
            np.testing.assert_allclose(found[method]["radius"], plain[method]["radius"], rtol=1e-6, err_msg=method)


class Told(Reporter):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.lines = list[str]()

    def warn(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.slow
def test_it_is_said_and_stored_and_audited(tmp_path: str) -> None:
    network, told = Net(lambda n, z: z.softmax(1)).eval(), Told()
    labels, path = network(IMAGES).argmax(1), f"{tmp_path}/x.h5"
    found = certify(network, IMAGES, labels, eps=0.01, methods=("crown",), out=path, reporter=told)
    assert "softmax, which keeps the order of the classes and is left out" in told.lines[0]
    assert found.attributes["last_layer"] == "softmax left out"
    audit = verify(network, path, Data(IMAGES, labels), VerifyConfig(sample=1, seed=0))
    assert audit.holds, audit.contradictions


def test_a_file_says_nothing_where_nothing_is_left_out() -> None:
    network = Net(lambda n, z: z.relu()).eval()
    found = certify(network, IMAGES, network(IMAGES).argmax(1), eps=0.01, methods=("pgd",))
    assert "last_layer" not in found.attributes


# One score


ONE: dict[str, tuple[Last, str]] = {
    "a score": (lambda n, z: z, "one score z is read as the logits (0, z)"),
    "a score without an axis": (lambda n, z: z[:, 0], "one score z is read as the logits (0, z)"),
    "squeezed": (lambda n, z: z.squeeze(), "one score z is read as the logits (0, z)"),
    "a probability": (lambda n, z: z.sigmoid(), "sigmoid left out; one score z is read as the logits (0, z)"),
    "a probability without an axis": (
        lambda n, z: (z / 0.5).sigmoid().squeeze(1),
        "sigmoid and a factor 2 left out; one score z is read as the logits (0, z)",
    ),
    "tanh": (lambda n, z: z.tanh(), "tanh left out; one score z is read as the logits (0, z)"),
}


@pytest.mark.parametrize("name", thin(ONE, every=2))
def test_one_score_is_the_difference_of_two_classes(name: str) -> None:
    last, remark = ONE[name]
    found = captured(last, 1)
    network = Net(lambda n, z: z, 1).eval()
    with torch.no_grad():
        expected = torch.cat([torch.zeros(6, 1), network(IMAGES)], 1)
        torch.testing.assert_close(found.module(IMAGES), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.module(IMAGES[:1]), expected[:1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.exact(IMAGES.double()).float(), expected, rtol=1e-5, atol=1e-6)
    assert found.scores.remark == remark


@pytest.mark.parametrize("last", [lambda n, z: z + 1, lambda n, z: z.exp(), lambda n, z: z.sigmoid().sigmoid()])
def test_one_score_keeps_its_sign(last: Last) -> None:
    """A shift moves the threshold; of two sigmoids the inner one stays."""
    network = Net(last, 1).eval()
    with torch.no_grad():
        score = captured(last, 1).module(IMAGES)[:, 1:]
        whole = network(IMAGES)
    twice = bool((whole >= 0.5).all())
    torch.testing.assert_close(score, whole.logit() if twice else whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("last", [nn.Identity(), nn.Sigmoid()])
def test_a_binary_classifier_is_certified(last: nn.Module) -> None:
    """2 x - 1 at (0.8, 0.5): the distance to its zero is 0.3 in linf."""
    linear = nn.Linear(2, 1)
    linear.weight.data, linear.bias.data = torch.tensor([[2.0, 0.0]]), torch.tensor([-1.0])
    image = torch.tensor([[0.8, 0.5], [0.8, 0.4]])
    found = certify(nn.Sequential(linear, last), image, torch.tensor([1, 0]), eps=0.1, methods=("pgd", "crown"))
    assert found["crown"]["status"].tolist() == [Status.CERTIFIED, Status.MISCLASSIFIED]
    assert 0.2999 <= found["crown"]["radius"][0] <= 0.3


def test_a_network_that_cannot_be_captured_has_two_classes_too() -> None:
    network = Net(lambda n, z: -z if float(z.sum()) > 1e9 else z, 1).eval()
    found = certify(network, IMAGES, (network(IMAGES)[:, 0] > 0).long(), eps=0.01, methods=("pgd",))
    assert (found["pgd"]["status"] != Status.MISCLASSIFIED).all()


# Refusals


def test_a_layer_that_prefers_another_class_is_a_contradiction() -> None:
    found = captured(lambda n, z: z.softmax(1))
    found.whole = nn.Sequential(found.module, nn.Softmin(1))
    with pytest.raises(Contradiction, match="softmax left out: the network then predicts another class"):
        check_order(found, IMAGES)


def test_saturation_is_no_contradiction() -> None:
    """The probabilities of two classes are both 1 and 0 where scores are 1000 apart; the scores decide."""
    network = Net(lambda n, z: (1000 * z).softmax(1)).eval()
    program = Program(network)
    program.hold(IMAGES)
    assert program.refusal is None and program.last_layer == "softmax and a factor 1000 left out"


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (lambda n, z: {"logits": z, "aux": z}, r"it gives a dict \(logits, aux\): choose one of them with certkd\.Out"),
        (lambda n, z: (z, z), r"it gives a tuple \(0, 1\)"),
        (lambda n, z: z[0], r"one row of logits per image, got shape \(3,\)"),
        (lambda n, z: z[:, :, None], r"got shape \(6, 3, 1\)"),
    ],
)
def test_other_outputs_are_refused_in_one_line(last: Last, said: str) -> None:
    with pytest.raises(InputError, match=said):
        certify(Net(last), IMAGES, torch.zeros(6, dtype=torch.long), eps=0.01, methods=("pgd",))
