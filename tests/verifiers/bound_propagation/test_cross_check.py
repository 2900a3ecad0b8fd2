"""Two engines hold each other's bounds: honest ones agree, and a lie of either becomes an ERROR that names both."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.marks import thin
from tests.verifiers.bound_propagation.native.test_joint import exports_once  # noqa: F401
from tests.zoo import BY_NAME, Kind, mlp
from verifiers.bound_propagation.auto_lirpa.adapter import AutoLirpa
from verifiers.bound_propagation.cross_check import CrossCheck
from verifiers.bound_propagation.engine import Planes
from verifiers.bound_propagation.engines import ENGINES, build
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import Contradiction, Unsupported
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls
from verifiers.results.rows import MethodRows

RADII = {Norm.LINF: 0.05, Norm.L2: 0.2, Norm.L1: 0.4}
ENGINE_NAMES = ["auto-lirpa", "native"]
#: Networks that the two engines relax differently, each soundly.
DIFFERENT = ("tanh", "sigmoid", "leaky", "max pool", "silu", "silu cnn")


def checked(kind: Kind, engine: str, norm: Norm, method: str, count: int = 2) -> CrossCheck:
    """Both engines on some samples; whatever they say is raised."""
    network, x = kind.network(), kind.images(count)
    with torch.no_grad():
        predicted = network(x).argmax(1)
    check = CrossCheck(network, x[:2], ENGINES[engine](network, x[:2]))
    check(Balls.around(x, RADII[norm], norm), predicted, method)
    return check


@pytest.mark.parametrize("name, engine", thin(((name, ENGINE_NAMES[i % 2]) for i, name in enumerate(BY_NAME)), every=7))
def test_honest_engines_agree(name: str, engine: str) -> None:
    check = checked(BY_NAME[name], engine, Norm.LINF, "crown", count=1)
    assert {check.engine.name, check.other.name} == set(ENGINE_NAMES), "an engine is checked against itself"
    assert check.exact == (name not in DIFFERENT), f"shared operators: {check.exact}"


class Gated(nn.Module):
    """A product of two functions of the image, one of a function with itself, or one by a constant."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.second, self.last = kind, nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 3)

    def extra_repr(self) -> str:
        return self.kind

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.first(x).relu(), self.second(x).relu()
        if self.kind in ("gate", "square"):
            return self.last(one * (other if self.kind == "gate" else one))
        return self.last(one * 0.3 if self.kind == "constant" else one / 3)


@pytest.mark.parametrize("kind", ["gate", "square", "constant", "share"])
@pytest.mark.thin(3)
def test_bounds_of_products_may_differ_and_those_by_constants_not(kind: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Gated(kind).eval()
    x = torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    check = CrossCheck(network, x[:2], Native(network, x[:2]))
    assert check.exact == (kind in ("constant", "share"))
    rows = run(network, x, cross_check=3, engine="native")
    assert rows.count(Status.ERROR) == 0
    assert rows.attributes["cross_check"] == "3 samples cross-checked by auto-lirpa"


@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize("norm", [Norm.L2, Norm.L1])
@pytest.mark.parametrize("engine", ENGINE_NAMES)
@pytest.mark.thin(2)
def test_honest_engines_agree_in_every_norm_and_method(engine: str, norm: Norm, method: str) -> None:
    checked(BY_NAME["mlp"], engine, norm, method, count=1)


def test_honest_engines_agree_in_alpha_crown() -> None:
    checked(BY_NAME["mlp"], "native", Norm.LINF, "alpha-crown", count=1)


# Lies


Lie = Callable[[Tensor], Tensor]
LIES: dict[str, Lie] = {
    "a little": lambda bound: bound + 1e-3,
    "much": lambda bound: bound + 0.1,
    "one row in two": lambda bound: bound + 1e-3 * (torch.arange(bound.shape[1]) % 2),
}


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Lie], None]:
    """Makes an engine's bounds wrong."""

    def install(engine: str, lie: Lie) -> None:
        cls = {"native": Native, "auto-lirpa": AutoLirpa}[engine]
        honest = cls.ask

        def ask(self: Any, *args: Any, **more: Any) -> Planes:
            found = honest(self, *args, **more)
            return replace(found, bound=lie(found.bound))

        monkeypatch.setattr(cls, "ask", ask)

    return install


@pytest.mark.parametrize("engine", ENGINE_NAMES)
@pytest.mark.parametrize("liar", ENGINE_NAMES)
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_of_either_engine_is_found(lie: str, liar: str, engine: str, lying: Callable[[str, Lie], None]) -> None:
    kind = BY_NAME["mlp"]
    network, x = kind.network(), kind.images(1)
    check = CrossCheck(network, kind.images(2), ENGINES[engine](network, kind.images(2)))
    lying(liar, LIES[lie])
    with pytest.raises(Contradiction, match="engine") as caught:
        check(Balls.around(x, 0.05, Norm.LINF), network(x).argmax(1), "crown")
    assert all(name in str(caught.value) for name in ENGINE_NAMES), f"not both engines are named: {caught.value}"


@pytest.mark.parametrize("norm", [Norm.L2, Norm.L1])
def test_a_great_lie_is_found_in_other_norms(norm: Norm, lying: Callable[[str, Lie], None]) -> None:
    kind = BY_NAME["tanh"]
    network, x = kind.network(), kind.images(1)
    check = CrossCheck(network, kind.images(2), Native(network, kind.images(2)))
    lying("native", lambda bound: bound + 1.0)
    with pytest.raises(Contradiction):
        check(Balls.around(x, RADII[norm], norm), network(x).argmax(1), "crown")


# Through certify


def run(network: nn.Module, x: Tensor, method: str = "crown", **more: Any) -> MethodRows:
    with torch.no_grad():
        labels = network(x).argmax(1)
    return certify(network, x, labels, **{"eps": "0.02", "methods": (method,), **more}).methods[method]


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_a_small_lie_makes_rows_errors(engine: str, lying: Callable[[str, Lie], None]) -> None:
    kind = BY_NAME["mlp"]
    network, x = kind.network(), kind.images(2)
    before = run(network, x, engine=engine, cross_check=2, eps="0.2")
    assert before.count(Status.ERROR) == 0 and "reason" not in before.attributes, "honest engines are not believed"
    (other,) = set(ENGINE_NAMES) - {engine}
    assert before.attributes["cross_check"] == f"2 samples cross-checked by {other}"
    lying(engine, lambda bound: bound + 1e-4)  # less than the bounds are loose, so that no point breaks them
    assert "reason" not in run(network, x, engine=engine, eps="0.2").attributes, "found without the other engine"
    found = run(network, x, engine=engine, cross_check=2, eps="0.2")
    assert (found.columns["status"] == Status.ERROR).all(), f"statuses {found.columns['status']}"
    assert (found.columns["radius"] == 0).all() and not found.columns["certified"].any(), "an ERROR that certifies"
    reason = str(found.attributes["reason"])
    assert "\n" not in reason and all(name in reason for name in ENGINE_NAMES), f"reason: {reason}"


def test_ibp_of_an_affine_network_may_differ() -> None:
    """Of two linear layers the native engine bounds the product, and auto-LiRPA one after the other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).eval()
    rows = run(
        network, torch.rand(2, 6, generator=torch.Generator().manual_seed(1)), "ibp", engine="native", cross_check=2
    )
    assert rows.count(Status.ERROR) == 0 and "reason" not in rows.attributes, rows.attributes
    assert rows.attributes["cross_check"].endswith("cross-checked by auto-lirpa")


def test_a_check_changes_no_answer() -> None:
    kind = BY_NAME["mlp"]
    network, x = kind.network(), kind.images(5)
    plain, tested = (run(network, x, engine="native", cross_check=count) for count in (0, 3))
    for name in ("status", "radius", "margin", "certified"):
        assert np.array_equal(plain.columns[name], tested.columns[name], equal_nan=True), f"{name} differs"


@pytest.mark.parametrize("wanted, calls", [(2, 2), (5, 5), (100, 6)])
def test_as_many_samples_are_checked_as_asked(monkeypatch: pytest.MonkeyPatch, wanted: int, calls: int) -> None:
    seen: list[int] = []
    monkeypatch.setattr(CrossCheck, "__call__", lambda self, x, *args, **more: seen.append(len(x)))
    kind = BY_NAME["mlp"]
    run(kind.network(), kind.images(6), engine="native", cross_check=wanted, batch_size=4)
    assert sum(seen) == calls, f"{seen} samples were checked"


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def only_native() -> nn.Module:
    """auto-LiRPA's guard takes no GELU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp((6, 8, 3), nn.GELU).eval()


def test_a_network_that_one_engine_takes_is_certified_with_a_remark() -> None:
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    found = run(only_native(), x, engine="native", cross_check=2)
    assert found.count(Status.CERTIFIED) > 0 and found.count(Status.UNSUPPORTED) == 0, "the check stops the run"
    attributes = found.attributes
    assert attributes["engine"] == "native", f"engine {attributes['engine']}"
    text = str(attributes["cross_check"])
    assert text.startswith("not cross-checked: ") and "GELU" in text and "\n" not in text, text
    assert "reason" not in attributes, f"a reason without a failure: {attributes['reason']}"


def test_samples_without_memory_for_the_check_are_said_and_others_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, honest = [0], CrossCheck.__call__

    def first_fails(self: CrossCheck, *given: Any, **more: Any) -> None:
        asked[0] += 1
        if asked[0] == 1:
            raise torch.OutOfMemoryError
        honest(self, *given, **more)

    monkeypatch.setattr(CrossCheck, "__call__", first_fails)
    kind = BY_NAME["mlp"]
    found = run(kind.network(), kind.images(5), engine="native", cross_check=3)
    assert asked == [4] and found.count(Status.OUT_OF_MEMORY) == 0
    assert str(found.attributes["cross_check"]) == "3 samples cross-checked by auto-lirpa; some did not fit into memory"


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_the_other_engine_without_memory_stops_nothing(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    def fail(self: Any, *args: Any, **more: Any) -> Tensor:
        raise MemoryError

    monkeypatch.setattr({"native": AutoLirpa, "auto-lirpa": Native}[engine], "ask", fail)
    kind = BY_NAME["mlp"]
    found = run(kind.network(), kind.images(4), engine=engine, cross_check=2)
    assert found.count(Status.OUT_OF_MEMORY) == 0
    assert "does not fit into memory with the other engine" in str(found.attributes["cross_check"])


def small(monkeypatch: pytest.MonkeyPatch, cls: Any, samples: int, largest: float) -> None:
    """An engine with memory for so many samples, and for balls of that radius at most."""
    honest = cls._bounds if cls is AutoLirpa else cls._planes

    def bound(self: Any, *args: Any, **more: Any) -> Any:
        radii = args[0].eps if cls is AutoLirpa else args[0].balls.eps
        if len(radii) > samples or float(radii.max()) > largest:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return honest(self, *args, **more)

    monkeypatch.setattr(cls, "_bounds" if cls is AutoLirpa else "_planes", bound)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_memory_for_one_sample_is_enough(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    kind = BY_NAME["mlp"]
    network, x = kind.network(), kind.images(4)
    free = run(network, x, engine=engine)["radius"]
    small(monkeypatch, {"native": Native, "auto-lirpa": AutoLirpa}[engine], 1, 1.0)
    assert run(network, x, engine=engine)["radius"] == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_a_ball_too_large_for_memory_leaves_what_was_proved(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    kind = BY_NAME["mlp"]
    network, x = kind.network(), kind.images(4)
    free = run(network, x, engine=engine)["radius"]
    small(monkeypatch, {"native": Native, "auto-lirpa": AutoLirpa}[engine], 4, 0.03)
    found = run(network, x, engine=engine)
    assert found.count(Status.CERTIFIED) == int((free >= 0.02).sum()) > 0
    assert (found["radius"] <= 0.03).all() and (free > 0.03).any()


def test_auto_goes_on_to_the_engine_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = BY_NAME["mlp"]
    small(monkeypatch, Native, 0, 1.0)
    found = run(kind.network(), kind.images(4))
    assert found.attributes["engine"] == "auto-lirpa" and found.count(Status.OUT_OF_MEMORY) == 0
    assert found.attributes["passed_over"] == "native: not even one sample fits into memory"
    small(monkeypatch, AutoLirpa, 0, 1.0)
    assert run(kind.network(), kind.images(4)).count(Status.OUT_OF_MEMORY) == 4


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_a_method_that_only_one_engine_has(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    other = {"native": AutoLirpa, "auto-lirpa": Native}[engine]

    def refuse(self: Any, *args: Any, **more: Any) -> Tensor:
        raise Unsupported(f"{self.name}: no such method")

    monkeypatch.setattr(other, "ask", refuse)
    kind = BY_NAME["mlp"]
    found = run(kind.network(), kind.images(4), engine=engine, cross_check=2)
    assert found.count(Status.UNSUPPORTED) == 0, "the other engine's gap stops the run"
    assert "no such method" in str(found.attributes["cross_check"]), "the remark does not say why"


def test_a_network_that_no_engine_takes_has_both_reasons() -> None:
    network = nn.Sequential(nn.Linear(6, 4), Sine(), nn.Linear(4, 3)).eval()
    x = torch.rand(3, 6)
    found = run(network, x, cross_check=1)
    assert (found.columns["status"] == Status.UNSUPPORTED).all(), f"statuses {found.columns['status']}"
    reason = str(found.attributes["reason"])
    assert "\n" not in reason and "native" in reason and reason.count("; ") >= 1, f"reason: {reason}"
    with pytest.raises(Unsupported, match="native"):
        build(network, x, "native", Question(Epsilon.parse(0.1)), method="crown")


def test_the_engine_in_use_is_noted() -> None:
    kind = BY_NAME["mlp"]
    for engine, expected in (("auto", "native"), ("auto-lirpa", "auto-lirpa"), ("native", "native")):
        attributes = run(kind.network(), kind.images(2), engine=engine).attributes
        assert attributes["engine"] == expected, f"{engine} is noted as {attributes['engine']}"
        assert "passed_over" not in attributes, f"passed over: {attributes['passed_over']}"
