"""Questions at one radius after another: an earlier answer serves the balls inside its own, and no other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.verifiers.graph.nets import CASES, FLAT, IMAGE, deep_dense, deep_residual
from tests.zoo import Kind
from verifiers.bound_propagation.engine import Engine, Memory, Planes
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification

SAMPLES = 4
EVERY = torch.arange(SAMPLES)
SHARP = {"dense": Kind("dense", deep_dense, FLAT), "residual": Kind("residual", deep_residual, IMAGE)}
KINDS = {**SHARP, **{name: CASES[name] for name in ("max pool of relu", "gelu, large weights", "relu")}}


def question(name: str) -> tuple[Native, Tensor, Tensor]:
    torch.manual_seed(0)
    kind = KINDS[name]
    x = kind.images(SAMPLES)
    engine = Native(kind.network(), x)
    logits = engine.model(x.double())
    return engine, x, margin_specification(logits.argmax(1), logits.shape[1], torch.float64)


def same(eps: float) -> Tensor:
    return torch.full((SAMPLES,), eps, dtype=torch.float64)


Ask = Callable[[Tensor, Tensor], Planes]


def repeated(engine: Engine, x: Tensor, rows: Tensor, norm: Norm, method: str) -> Ask:
    """Questions about some of the samples, with one memory."""
    memory = Memory(len(x))
    return lambda chosen, eps: engine.ask(
        Balls(x[chosen], eps, norm), rows[chosen], method, iterations=2, memory=memory.of(chosen)
    )


def rows_pushed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Entries of inner nodes that were bounded by rows since the last call."""
    seen, refine = [], Bounds._refine

    def counted(self: Bounds, position: int, loose: Tensor) -> None:
        seen.append(int(loose.sum()))
        refine(self, position, loose)

    def count() -> int:
        total = sum(seen)
        seen.clear()
        return total

    monkeypatch.setattr(Bounds, "_refine", counted)
    return count


def assert_same(found: Planes, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(found.bound, expected, rtol=0, atol=1e-10, msg=f"{what}: not as without memory")


@pytest.mark.parametrize("name", SHARP)
@pytest.mark.parametrize("method", ["crown", "alpha-crown"])
@pytest.mark.thin(2)
def test_smaller_balls_need_fewer_rows(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, x, rows = question(name)
    count = rows_pushed(monkeypatch)
    anew = engine.ask(Balls(x, same(0.02), Norm.LINF), rows, method, iterations=2).bound
    whole = count()
    ask = repeated(engine, x, rows, Norm.LINF, method)
    ask(EVERY, same(0.022))
    count()
    found = ask(EVERY, same(0.02)).bound
    assert count() < whole, "the larger ball's intervals spared nothing"
    slack = 1e-9 if method == "crown" else 1e-3  # steps of an optimiser differ
    assert bool((found >= anew - slack * anew.abs().clamp_min(1)).all()), f"looser than alone by {(anew - found).max()}"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.thin(5)
def test_a_smaller_balls_intervals_are_not_used_in_a_larger_one(name: str, norm: Norm) -> None:
    engine, x, rows = question(name)
    ask = repeated(engine, x, rows, norm, "crown")
    for eps in (0.001, 0.01, 0.05):
        expected = engine.ask(Balls(x, same(eps), norm), rows, "crown").bound
        assert_same(ask(EVERY, same(eps)), expected, f"going up to {eps}")
    ask(EVERY, same(0.002))
    above = engine.ask(Balls(x, same(0.2), norm), rows, "crown").bound
    assert_same(ask(EVERY, same(0.2)), above, "above everything asked before")


def test_the_last_failure_serves_until_there_is_a_nearer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a search goes: up, too far, back, up again below the failure, too far again."""
    engine, x, rows = question("residual")
    count = rows_pushed(monkeypatch)
    ask = repeated(engine, x, rows, Norm.LINF, "crown")
    seen = {}
    for eps in (0.01, 0.1, 0.05, 0.08, 0.07):
        ask(EVERY, same(eps))
        seen[eps] = count()
        engine.ask(Balls(x, same(eps), Norm.LINF), rows, "crown")
        assert seen[eps] < (whole := count()) or eps in (0.01, 0.1), f"{eps}: {seen[eps]} of {whole} rows"


def test_samples_do_not_share_what_is_remembered() -> None:
    engine, x, rows = question("residual")
    engine.batch_size = 3  # parts of a question
    ask = repeated(engine, x, rows, Norm.LINF, "crown")
    ask(EVERY, torch.tensor([0.1, 0.001, 0.1, 0.001]).double())
    chosen, eps = torch.tensor([3, 1]), torch.tensor([0.05, 0.02]).double()
    expected = engine.ask(Balls(x[chosen], eps, Norm.LINF), rows[chosen], "crown").bound
    assert_same(ask(chosen, eps), expected, "samples of smaller balls")
    one = repeated(engine, x[:1], rows[:1], Norm.LINF, "crown")
    one(EVERY[:1], same(0.1)[:1])
    mixed = torch.tensor([2, 0]), torch.tensor([0.3, 0.09]).double()
    expected = one(EVERY[:1], mixed[1][1:])
    assert_same(Planes(*(end[1:] for end in vars(ask(*mixed)).values())), expected.bound, "a sample that came down")
