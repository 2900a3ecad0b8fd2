"""Networks at the limits of an arithmetic get a reason in plain words, and neither an error nor a certificate."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.verifiers.methods.test_float32 import mlp, tent
from verifiers.bound_propagation import engines
from verifiers.core.errors import Unsupported
from verifiers.core.reporter import Reporter
from verifiers.core.status import Status


class Said(Reporter):
    """Remembers warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)


def of_two(network: nn.Module) -> tuple[nn.Module, Tensor, Tensor]:
    x = torch.tensor([[0.3, 0.6], [0.5, 0.2], [0.7, 0.7]])
    with torch.no_grad():
        return network, x, network(x).argmax(1)


def huge() -> nn.Module:
    """Weights of 1e30 cancel in the logits, also in float64."""
    torch.manual_seed(0)
    network = mlp(2, 4, 4, 2)
    with torch.no_grad():
        network[0].weight.copy_(torch.rand(4, 2) + 0.5)
        network[0].bias.fill_(1.0)
        network[2].weight.copy_(torch.rand(4, 4) * 1e30)
        network[2].bias.zero_()
        network[4].weight.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]]))
        network[4].weight[:, 1] *= 1 + 1e-7
        network[2].weight[1] = network[2].weight[0]
        network[2].weight[3] = network[2].weight[2]
    return network


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_constants_that_float64_cannot_tell_are_unsupported(norm: str) -> None:
    network, x, y = of_two(huge())
    rows = certify(network, x, y, eps="0.01", norm=norm, methods=("lipschitz",), arithmetic="real", shells=3)[
        "lipschitz"
    ]
    assert rows.count(Status.ERROR) == 0, rows.attributes.get("reason")


def test_an_overflow_is_noted_and_counted() -> None:
    network, x = tent(1e30, 1e20)
    said = Said()
    rows = certify(network, x, network(x).argmax(1), eps="0.3", methods=("ibp", "crown"), reporter=said)
    for method in rows:
        count = int(np.isinf(method["rounding"]).sum())
        assert count >= 1 and not method["certified"].any()
        words = f"values may overflow in float32 on the balls at eps of {count} sample{'s' * (count > 1)}: nothing is"
        assert str(method.attributes["overflow"]).startswith(words), method.attributes["overflow"]
        assert any(line.startswith(f"{method.name}: {words}") for line in said.lines)
    small = certify(network, x, network(x).argmax(1), eps="0.001", methods=("crown",))["crown"]
    assert "overflow" not in small.attributes
    real = certify(network, x, network(x).argmax(1), eps="0.3", methods=("crown",), arithmetic="real")["crown"]
    assert "overflow" not in real.attributes


def test_a_network_that_one_engine_alone_bounds_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a native graph the rounding has no bound: one line says so, and names the arithmetic that is left."""
    pytest.importorskip("auto_LiRPA")

    class Refusing:
        name = "native"

        def __init__(self, *_: object, **__: object) -> None:
            raise Unsupported("native: operator 'foo' at 'the network itself': not among the operators it bounds")

    monkeypatch.setattr(engines, "Native", Refusing)
    monkeypatch.setitem(engines.ENGINES, "native", Refusing)
    network, x, y = of_two(mlp(2, 4, 2))
    rows = certify(network, x, y, eps="0.01", methods=("crown",))["crown"]
    assert rows.count(Status.UNSUPPORTED) == 3
    assert rows.attributes["reason"] == (
        "native: operator 'foo' at 'the network itself': not among the operators it bounds; auto-lirpa: bounds over "
        "the real numbers only, since the rounding of float32 has no bound; with arithmetic real a "
        "proof leaves rounding out"
    )
    alone = certify(network, x, y, eps="0.01", methods=("crown",), engine="auto-lirpa")["crown"]
    assert "no bound (native: operator 'foo'" in str(alone.attributes["reason"])
    real = certify(network, x, y, eps="0.01", methods=("crown",), arithmetic="real")["crown"]
    assert real.count(Status.CERTIFIED) == 3
