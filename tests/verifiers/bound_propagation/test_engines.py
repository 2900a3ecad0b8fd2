"""What every engine promises, for both engines, every bound method and three norms."""

from functools import cache

import pytest
import torch
from torch import Tensor

from tests.zoo import BY_NAME
from verifiers.bound_propagation import BOUND_METHODS, ENGINES, Engine, Memory, attack_bounds, auto_lirpa_version
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls
from verifiers.graph.program import Program

#: One radius for each image, far apart.
RADII = {Norm.LINF: (0.004, 0.03, 0.08), Norm.L2: (0.02, 0.1, 0.3), Norm.L1: (0.04, 0.2, 0.6)}
#: Steps of alpha-CROWN's optimiser, whose bounds do not repeat to the last bit in another batch.
STEPS, REPEATS = 3, {"alpha-crown": 1e-3}

engines = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(name != "native" and auto_lirpa_version() is None, reason="none"))
        for name in ENGINES
    ],
)
methods = pytest.mark.parametrize("method", BOUND_METHODS)
norms = pytest.mark.parametrize("norm", list(Norm), ids=str)


@cache
def engine(name: str) -> Engine:
    kind = BY_NAME["cnn"]
    return ENGINES[name](Program(kind.network()), kind.images(2))


def balls(norm: Norm, scale: float = 1.0) -> Balls:
    return Balls(BY_NAME["cnn"].images(3).double(), scale * torch.tensor(RADII[norm]).double(), norm)


def rows(count: int = 3) -> Tensor:
    eye = torch.eye(3, dtype=torch.float64)
    return torch.cat([eye, -eye, eye.roll(1, 0) - eye]).expand(count, -1, -1)


@cache
def bounds(name: str, norm: Norm, method: str, scale: float = 1.0) -> Tensor:
    return engine(name).ask(balls(norm, scale), rows(), method, iterations=STEPS).bound


@engines
@methods
@norms
@pytest.mark.thin(5)
def test_no_attacked_point_breaks_a_bound(name: str, method: str, norm: Norm) -> None:
    attack_bounds(engine(name), balls(norm).x[:1], RADII[norm][1], norm=norm, method=method)


@engines
@methods
@norms
def test_bounds_are_float64_and_below_the_value_at_the_centre(name: str, method: str, norm: Norm) -> None:
    found = bounds(name, norm, method)
    with torch.no_grad():
        clean = (rows() @ engine(name).model(balls(norm).x)[:, :, None]).squeeze(2)
    assert found.dtype == torch.float64 and not found.requires_grad and found.shape == clean.shape
    assert bool((found <= clean + 1e-12).all()), f"above the value at the centre by {float((found - clean).max()):.3g}"


@engines
@methods
@norms
def test_larger_balls_have_lower_bounds(name: str, method: str, norm: Norm) -> None:
    small, large = bounds(name, norm, method), bounds(name, norm, method, 1.5)
    assert bool((large < small).all()), f"not lower by {float((large - small).max()):.3g}"


@engines
@methods
@norms
def test_a_sample_has_its_own_eps_and_no_neighbours(name: str, method: str, norm: Norm) -> None:
    together, order = bounds(name, norm, method), torch.tensor([2, 0])
    parts = engine(name).ask(balls(norm).take(order), rows(2), method, iterations=STEPS).bound
    torch.testing.assert_close(parts, together[order], rtol=0, atol=REPEATS.get(method, 1e-9))


@engines
@methods
@norms
def test_twice_a_row_has_twice_the_bound(name: str, method: str, norm: Norm) -> None:
    doubled = engine(name).ask(balls(norm), 2 * rows(), method, iterations=STEPS).bound
    torch.testing.assert_close(doubled, 2 * bounds(name, norm, method), rtol=0, atol=REPEATS.get(method, 1e-9))


@engines
@methods
@norms
@pytest.mark.thin(2)
def test_a_memory_loosens_nothing(name: str, method: str, norm: Norm) -> None:
    memory, chosen = Memory(3), torch.tensor([1, 2])
    engine(name).ask(balls(norm, 1.2), rows(), method, iterations=STEPS, memory=memory)
    helped = (
        engine(name).ask(balls(norm).take(chosen), rows(2), method, iterations=STEPS, memory=memory.of(chosen)).bound
    )
    looser = bounds(name, norm, method)[chosen] - helped
    assert float(looser.max()) <= REPEATS.get(method, 1e-9), f"looser by {float(looser.max()):.3g}"


@engines
def test_unknown_methods_and_rows_of_another_batch_are_refused(name: str) -> None:
    with pytest.raises(Unsupported, match="deep-poly"):
        engine(name).ask(balls(Norm.L2), rows(), "deep-poly")
    with pytest.raises(ValueError, match="rows for 2 samples"):
        engine(name).ask(balls(Norm.L2), rows(2), "ibp")
