"""Every activation's float32 error on numbers of all magnitudes, in torch and in the other usual forms."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from mpmath import mp
from torch import Tensor

from tests.verifiers.graph.test_relaxations import CASES, Case
from verifiers.core.errors import Unsupported
from verifiers.graph.relaxations.convex import Curved, Elu, Exp, Reciprocal, Rsqrt, Softplus, Square
from verifiers.graph.relaxations.gelu import Gelu, Mish, Silu
from verifiers.graph.relaxations.lines import Activation
from verifiers.graph.relaxations.piecewise import Clamp, HardSigmoid, HardSwish, LeakyRelu, Relu
from verifiers.graph.relaxations.sigmoidal import Erf, Sigmoid, SShape, Tanh
from verifiers.graph.rounding import LARGEST, UNIT

Form = Callable[[Tensor], Tensor]
#: Float64 is off by this share of a bound at most.
FLOAT64 = 1 + 2.0**-20
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def _elu(activation: Elu, x: Tensor) -> Tensor:
    """ELU by exp, as torch computed it before it used expm1."""
    alpha, scale, inner = (torch.tensor(v, dtype=torch.float32) for v in vars(activation).values())
    return torch.where(x > 0, scale * x, scale * alpha * (torch.exp(inner * x) - 1))


def _gelu(activation: Gelu, x: Tensor) -> Tensor:
    if activation.approximate == "none":
        return x * 0.5 * torch.erfc(-x * math.sqrt(0.5))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _leaky(activation: LeakyRelu, x: Tensor) -> Tensor:
    slope = torch.as_tensor(activation.slope, dtype=torch.float32)
    return x.clamp_min(0.0) + slope * x.clamp_max(0.0)


#: Other forms in which float32 computes an activation.
FORMS: dict[type, Callable[..., Tensor]] = {
    Elu: _elu,
    Gelu: _gelu,
    LeakyRelu: _leaky,
    Silu: lambda _, x: x / (1 + torch.exp(-x)),
    Mish: lambda _, x: x * torch.tanh(torch.log1p(torch.exp(x))),
    Sigmoid: lambda _, x: 1 / (1 + torch.exp(-x)),
    HardSigmoid: lambda _, x: (x + 3).clamp(0, 6) / 6,
    HardSwish: lambda _, x: x * (x + 3).clamp(0, 6) * torch.tensor(1 / 6),
    Rsqrt: lambda _, x: 1 / torch.sqrt(x),
    Square: lambda _, x: x**2,
    Exp: lambda _, x: torch.exp2(x.double() * math.log2(math.e)).float(),
}


def numbers(case: Case, count: int = 40_000) -> Tensor:
    """Draw float32 numbers of all exponents, near 0, near kinks and in the range where functions bend."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (count,), generator=generator) * 2.0 - 1.0
    kinks = torch.tensor([kink for kink in case.kinks if math.isfinite(kink)]).float()
    near = torch.cat([torch.nextafter(kinks, torch.tensor(end)) for end in (-math.inf, math.inf)])
    x = torch.cat(
        [
            4 * torch.randn(count, generator=generator),
            200 * torch.rand(count, generator=generator) - 100,
            signs * (260 * torch.rand(count, generator=generator) - 140).exp2(),
            *(kink + 1e-4 * torch.randn(500, generator=generator) for kink in kinks),
            kinks,
            near,
        ]
    )
    return x[(x > case.domain[0]) & (x < case.domain[1]) & (x.abs() < 1e36)]


def forms(case: Case, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    reference: Form = case.reference  # type: ignore[assignment]
    yield "torch", reference(x)
    spaced = torch.empty(len(x), 3)
    spaced[:, 1] = x
    yield "torch, not vectorised", reference(spaced[:, 1])
    if (form := FORMS.get(type(case.activation))) is not None:
        yield "another form", form(case.activation, x)


def at(activation: Activation, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The exact values of an activation and its bound at points."""
    exact = activation(x.double())
    return exact, activation.rounding(x.double(), x.double(), exact.abs())


@each_case
def test_float32_is_within_the_bound(case: Case) -> None:
    x, worst = numbers(case), 0.0
    exact, error = at(case.activation, x)
    for how, found in forms(case, x):
        distance = (found.double() - exact).abs()
        if error is None:
            assert torch.equal(found.double(), exact), f"{how} is not exact"
            continue
        finite = error.isfinite()
        assert bool((error >= 0).all()) and bool(finite[exact.abs() < LARGEST / 100].all())
        share = torch.where(finite, distance / error.clamp_min(1e-300), 0.0)
        first = int(share.argmax())
        assert share[first] <= FLOAT64, f"{how}: {share[first]:.3g} of the bound at {x[first]:.9g}"
        worst = max(worst, float(share[first]))
    assert error is None or float(error.max()) < 1e-40 or worst > 1 / 50, f"the worst error is {worst:.3g} of the bound"


@each_case
def test_the_bound_of_a_box_is_that_of_every_point_in_it(case: Case) -> None:
    x = numbers(case, 2000).double()
    generator = torch.Generator().manual_seed(1)
    width = 10 ** (6 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 5)
    low = (x - width).maximum(x.minimum(torch.tensor(case.domain[0] / 2 + 1e-3)) if case.domain[0] == 0 else x - width)
    high = (x + width).minimum(x) if case.domain[1] == 0 else x + width
    least, most = case.activation.interval(low, high)
    whole = case.activation.rounding(low, high, torch.maximum(least.abs(), most.abs()))
    for share in (0.0, 0.3, 1.0):
        inner = (low + share * (high - low)).clamp(min=low, max=high)
        _, error = at(case.activation, inner)
        assert (error is None) == (whole is None)
        if error is not None and whole is not None:
            assert bool((whole >= error * (1 - 1e-12)).all())


def test_mpmath_agrees_on_what_is_exact() -> None:
    """Tails, where float64 itself cancels, to 50 digits."""
    mp.dps = 50
    phi = {
        Gelu(): lambda x: x * (1 + mp.erf(x / mp.sqrt(2))) / 2,
        Silu(): lambda x: x / (1 + mp.exp(-x)),
        Mish(): lambda x: x * mp.tanh(mp.log(1 + mp.exp(x))),
        Tanh(): mp.tanh,
        Sigmoid(): lambda x: 1 / (1 + mp.exp(-x)),
        Softplus(): lambda x: mp.log(1 + mp.exp(x)),
        Elu(1.5): lambda x: x if x > 0 else 1.5 * mp.expm1(x),
        Rsqrt(): lambda x: 1 / mp.sqrt(x),
        Erf(): mp.erf,
    }
    torchs = [
        F.gelu,
        F.silu,
        F.mish,
        torch.tanh,
        torch.sigmoid,
        F.softplus,
        lambda x: F.elu(x, 1.5),
        torch.rsqrt,
        torch.erf,
    ]
    points = [-104.0, -90.5, -20.25, -9.0, -5.75, -1.0, -1e-3, -1e-40, 1e-40, 1e-30, 0.75, 3.0, 9.5, 19.0]
    x = torch.tensor(points)
    for (activation, exact), function in zip(phi.items(), torchs, strict=True):
        chosen = x[x > 0] if isinstance(activation, Rsqrt) else x
        _, error = at(activation, chosen)
        assert error is not None
        for value, found, bound in zip(chosen.tolist(), function(chosen).tolist(), error.tolist(), strict=True):
            off = abs(mp.mpf(found) - exact(mp.mpf(value)))
            assert off <= bound, f"{activation} at {value}: off by {mp.nstr(off, 5)} of {bound:.5g}"


def test_library_functions_are_as_accurate_as_is_assumed() -> None:
    """The absolute error of erf and the relative one of the others, in units of roundoff, on this machine."""
    x = torch.linspace(-9, 9, 400_001)
    assert float((torch.erf(x).double() - torch.erf(x.double())).abs().max()) < 24 * UNIT / 2
    positive = x[x > 0]
    for function, values in (
        (torch.exp, x),
        (torch.expm1, x),
        (torch.tanh, x),
        (torch.log1p, positive),
        (torch.log, positive),
        (torch.sqrt, positive),
        (torch.rsqrt, positive),
        (torch.sigmoid, x),
    ):
        exact = function(values.double())
        off = ((function(values).double() - exact).abs() / exact.abs().clamp_min(1e-30)).max()
        assert float(off) <= 8 * UNIT, f"{function}: {float(off) / UNIT:.3g} roundings"


def test_constants_that_are_no_float32_numbers_count() -> None:
    x = torch.tensor([-1.0, 0.05, 0.5, 0.9], dtype=torch.float64)
    found = Clamp(0.1, 0.7).rounding(x, x, x.abs())
    below, above = 0.1 - float(torch.tensor(0.1)), 0.7 - float(torch.tensor(0.7))
    assert found is not None
    assert torch.allclose(found, torch.tensor([abs(below), abs(below), 0.0, abs(above)]).double(), atol=1e-20)
    assert Clamp(-0.25, None).rounding(x, x, x.abs()) is None and Relu().rounding(x, x, x.abs()) is None
    half, tenth = (LeakyRelu(slope).rounding(x, x, x.abs()) for slope in (0.5, 0.1))
    assert half is not None and tenth is not None
    assert float(half[0]) <= 0.51 * UNIT and 0.19 * UNIT <= float(tenth[0]) <= 0.21 * UNIT
    assert LeakyRelu(1.0).rounding(x, x, x.abs()) is None and float(tenth[1:].max()) < 1e-40


def test_softplus_may_take_the_other_branch_at_its_threshold() -> None:
    soft, edge = Softplus(3.0, 1.5), 0.5
    x = torch.tensor([edge, edge + 1e-3, edge - 1e-3], dtype=torch.float64)
    error = soft.rounding(x, x, soft(x).abs())
    jump = math.log1p(math.exp(-1.5)) / 3
    assert error is not None and float(error[0]) >= jump and float(error[1]) == 0 and float(error[2]) < 1e-5
    steep = Softplus(1.0, 1000.0)
    high = torch.tensor([80.0, 95.0, 1001.0], dtype=torch.float64)
    error = steep.rounding(high, high, steep(high))
    assert error is not None and error.isinf().tolist() == [False, True, False], "exp overflows below the threshold"


def test_what_overflows_has_no_bound() -> None:
    x = torch.tensor([88.0, 89.0], dtype=torch.float64)
    error = Exp().rounding(x, x, Exp()(x))
    assert error is not None and error.isinf().tolist() == [False, True]
    tiny = torch.tensor([1e-38, 1e-39], dtype=torch.float64)
    error = Reciprocal().rounding(tiny, tiny, Reciprocal()(tiny))
    assert error is not None and error.isinf().tolist() == [False, True]


@pytest.mark.parametrize("base", [Curved, SShape])
def test_a_curve_without_a_count_of_its_roundings_is_refused_by_name(base: type[Curved | SShape]) -> None:
    unknown, x = type("Cosh", (base,), {})(), torch.ones(2, dtype=torch.float64)
    with pytest.raises(Unsupported, match=r"^Cosh does not say how many roundings float32 makes: set `steps` in Cosh$"):
        unknown.rounding(x, x, x)
