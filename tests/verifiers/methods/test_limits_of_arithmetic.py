"""Networks at the limits of an arithmetic get a reason in plain words, and neither an error nor a certificate."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.verifiers.methods.test_float32 import cancelling, mlp, tent
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


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_weights_that_cancel_in_float64_are_unsupported_over_the_reals(norm: str) -> None:
    """A point that breaks a bound by float64's own rounding shows no error, and a radius that meets one is not told."""
    network, x = cancelling(1e30)
    for method in ("lipschitz", "crown", "local-linearity"):
        options = {"shells": 3} if method == "lipschitz" else {}
        rows = certify(
            network,
            x,
            network(x).argmax(1),
            eps="0.01",
            norm=norm,
            methods=(method,),
            arithmetic="real",
            options=options,
        )[method]
        assert rows["status"][0] in (Status.UNSUPPORTED, Status.NOT_CERTIFIED) and rows.count(Status.ERROR) == 0
        if rows.count(Status.UNSUPPORTED):
            assert "float64 is too coarse" in rows.attributes["reason"], rows.attributes["reason"]
        assert rows["radius"][0] == 0 and (method != "lipschitz" or rows.count(Status.UNSUPPORTED))


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
