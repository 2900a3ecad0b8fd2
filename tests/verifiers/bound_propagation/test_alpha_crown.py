"""alpha-CROWN and CROWN-IBP stand up to attack, slopes really move, and nothing is left behind for other methods."""

import itertools
import logging
import sys
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import oracles
from tests.certifying import certify
from tests.marks import only, thin
from tests.verifiers.bound_propagation.test_guard import ALLOWED, broken_by, custom
from tests.zoo import BY_NAME, ZOO, Kind, images, mlp
from verifiers.bound_propagation.auto_lirpa import adapter, compat
from verifiers.bound_propagation.auto_lirpa.adapter import AutoLirpa
from verifiers.bound_propagation.checks import check_sandwich
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Norm
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification
from verifiers.runtime.deadline import TimeUp

pytestmark = pytest.mark.skipif(compat.version() is None, reason="auto-LiRPA is not installed")

EPS = {Norm.LINF: 0.03, Norm.L2: 0.1, Norm.L1: 0.2}
#: Their alpha-CROWN fails in auto-LiRPA 0.3.
FAILING = ("silu cnn",)
#: Nothing to optimise: alpha-CROWN is CROWN.
FIXED = ("linear", "leaky")
OPTIMIZABLE = [kind for kind in ZOO if kind.name not in FAILING]
SOME = [BY_NAME[name] for name in ("mlp", "max pool", "tanh")]

every_norm = pytest.mark.parametrize(
    "norm", [Norm.LINF, *(pytest.param(norm, marks=pytest.mark.slow) for norm in (Norm.L2, Norm.L1))], ids=str
)
#: Of alpha-CROWN's optimiser.
STEPS = 6
every_method = pytest.mark.parametrize("method", ["crown-ibp", "alpha-crown"])


@cache
def engine_of(name: str) -> AutoLirpa:
    kind = BY_NAME[name]
    return AutoLirpa(kind.network(), kind.images(2))


def margin_rows(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits = network(x)
    return margin_specification(logits.argmax(1), logits.shape[1], torch.float64)


def spread(norm: Norm, count: int, scale: float = 1.0) -> Tensor:
    """A radius for each sample."""
    return scale * EPS[norm] * torch.linspace(0.2, 3.0, count, dtype=torch.float64)


def same_eps(value: float, count: int) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


# Soundness


@every_norm
@pytest.mark.parametrize("kind", only(SOME, OPTIMIZABLE), ids=lambda kind: kind.name)
@pytest.mark.thin(3)
def test_no_attack_breaks_a_bound_with_an_eps_per_sample(kind: Kind, norm: Norm) -> None:
    engine, x = engine_of(kind.name), kind.images(2, seed=1).double()
    for method in ("crown-ibp", "alpha-crown"):
        check_sandwich(engine.model, engine, Balls(x, spread(norm, 2, 3.0), norm), method, points=16)


@pytest.mark.parametrize("kind", only(SOME, OPTIMIZABLE), ids=lambda kind: kind.name)
@pytest.mark.thin(2)
@pytest.mark.slow
def test_random_points_and_corners_of_large_balls_break_no_bound(kind: Kind) -> None:
    for norm, eps in ((Norm.LINF, 0.2), (Norm.LINF, 1.0), (Norm.L2, 0.6), (Norm.L1, 1.5)):
        excess = broken_by(engine_of(kind.name), kind.images(2), eps, norm, "alpha-crown")
        assert excess <= 1e-9, f"{kind.name}: the bound in {norm} at {eps} is broken by {excess:.3g}"


@pytest.mark.parametrize("name", thin(ALLOWED))
@pytest.mark.filterwarnings("ignore")
@pytest.mark.thin(2)
def test_allowed_functions_stand_up_to_attack_or_are_refused(name: str) -> None:
    network, _ = custom(ALLOWED[name])
    x = images((2, 6, 6), 3)
    engine = AutoLirpa(network, x)
    for norm, eps in ((Norm.LINF, 0.01), (Norm.LINF, 0.3), (Norm.L2, 0.3)):
        excess = broken_by(engine, x, eps, norm, "alpha-crown", points=200)
        assert excess <= 1e-9, f"{name}: the bound in {norm} at {eps} is broken by {excess:.3g}"


@pytest.mark.parametrize(("activation", "scale"), thin([(nn.Tanh, 3e3), (nn.SiLU, 30.0)]))
@pytest.mark.slow
def test_saturated_activations(activation: type[nn.Module], scale: float) -> None:
    kind = Kind("", lambda: mlp((6, 8, 8, 3), activation), (6,))
    network, x = kind.network(), kind.images(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
    engine = AutoLirpa(network, x)
    for norm, eps, method in itertools.product((Norm.LINF, Norm.L2), (1e-9, 0.03, 0.3), ("crown-ibp", "alpha-crown")):
        excess = broken_by(engine, x, eps, norm, method)
        assert excess <= 1e-9, f"weights times {scale}: {method} in {norm} at {eps} is broken by {excess:.3g}"


@pytest.mark.parametrize("sizes", [(2, 4, 3), (3, 3, 3, 3), (2, 6, 2)], ids=str)
@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L1], ids=str)
@pytest.mark.thin(2)
def test_bounds_stay_below_the_exact_minimum(sizes: tuple[int, ...], norm: Norm) -> None:
    network, x = Kind("", lambda: mlp(sizes), sizes[:1]).network(seed=1), images(sizes[:1], 1, seed=1)
    layers, rows, engine = oracles.layers_of(network), margin_rows(network, x), AutoLirpa(network, x)
    for eps in (0.05, 0.3):
        exact = [oracles.exact_minimum(layers, x[0].double().numpy(), eps, norm.value, row) for row in rows[0].numpy()]
        for method in ("crown-ibp", "alpha-crown"):
            lower = engine.ask(Balls.around(x, eps, norm), rows, method, iterations=STEPS).bound[0].numpy()
            assert (lower <= np.array(exact) + 1e-8).all(), f"{method} {norm} {eps}: {lower} above the minimum {exact}"


@every_norm
@pytest.mark.parametrize("kind", only(SOME, OPTIMIZABLE), ids=lambda kind: kind.name)
def test_methods_are_ordered_and_tend_to_the_margins(kind: Kind, norm: Norm) -> None:
    engine, x = engine_of(kind.name), kind.images(2)
    rows = margin_rows(kind.network(), x)
    with torch.no_grad():
        clean = (rows @ engine.model(x.double())[:, :, None]).squeeze(2)
    for eps in (1e-9, EPS[norm]):
        found = {
            m: engine.ask(Balls.around(x, eps, norm), rows, m, iterations=STEPS).bound
            for m in ("crown-ibp", "crown", "alpha-crown")
        }
        assert bool((found["alpha-crown"] >= found["crown"] - 1e-14).all()), f"{norm} {eps}: worse than CROWN"
        for method, lower in found.items():
            assert bool((lower <= clean + 1e-12).all()), f"{method} {norm} {eps}: exceeds the clean margin"
            assert eps > 1e-9 or bool((lower >= clean - 1e-6).all()), f"{method} {norm}: not the clean margin"


# Slopes move


@every_norm
@pytest.mark.parametrize("name", thin(["mlp", "cnn", "residual", "max pool", "tanh"]))
def test_optimised_slopes_are_better_than_crown(name: str, norm: Norm) -> None:
    kind = BY_NAME[name]
    engine, x = engine_of(name), kind.images(4)
    rows, eps = margin_rows(kind.network(), x), spread(norm, 4)
    crown = engine.ask(Balls(x, eps, norm), rows, "crown").bound
    alpha = engine.ask(Balls(x, eps, norm), rows, "alpha-crown", iterations=STEPS).bound
    assert float((alpha - crown).mean()) > 1e-5, f"slopes do not move: improvements {alpha - crown}"


def test_more_steps_are_no_worse_and_one_step_is_crown() -> None:
    kind = BY_NAME["cnn"]
    x, rows, eps = kind.images(2), margin_rows(kind.network(), kind.images(2)), same_eps(0.06, 2)
    one, five, twenty = (
        engine_of("cnn").ask(Balls(x, eps, Norm.LINF), rows, "alpha-crown", iterations=n).bound for n in (1, 5, 20)
    )
    crown = engine_of("cnn").ask(Balls(x, eps, Norm.LINF), rows, "crown").bound
    torch.testing.assert_close(one, crown, rtol=0, atol=1e-12)
    assert bool((five >= one).all()) and bool((twenty >= five - 1e-12).all()), "a step made a bound worse"
    assert float((twenty - five).mean()) > 0, "the number of steps is not used"
    with pytest.raises(ValueError, match="at least one step"):
        engine_of("cnn").ask(Balls(x, eps, Norm.LINF), rows, "alpha-crown", iterations=0)


@pytest.mark.parametrize("name", FIXED)
def test_a_network_without_slopes_to_optimise_has_its_crown_bounds(name: str) -> None:
    engine, x = engine_of(name), BY_NAME[name].images(2)
    rows = margin_rows(BY_NAME[name].network(), x)
    crown, alpha = (
        engine.ask(Balls.around(x, 0.1, Norm.L2), rows, m, iterations=STEPS).bound for m in ("crown", "alpha-crown")
    )
    assert torch.equal(crown, alpha)


def test_s_shaped_functions_of_images_are_refused_with_their_layer() -> None:
    kind = BY_NAME["silu cnn"]
    engine, x = AutoLirpa(kind.network(), kind.images(2)), kind.images(2)
    rows, eps = margin_rows(kind.network(), x), same_eps(0.03, 2)
    before = engine.ask(Balls(x, eps, Norm.LINF), rows, "crown").bound
    for _ in range(2):
        with pytest.raises(
            Unsupported, match=r"CROWN-Optimized \(operator Sigmoid at .* \(after layer '0'\)\)"
        ) as caught:
            engine.ask(Balls(x, eps, Norm.LINF), rows, "alpha-crown")
        assert "\n" not in str(caught.value)
    after = engine.ask(Balls(x, eps, Norm.LINF), rows, "crown").bound
    assert torch.equal(before, after), "the failure changes CROWN"
    assert broken_by(engine, x, 0.2, Norm.LINF, "crown-ibp") <= 1e-9


# Batches and state


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@every_norm
@every_method
def test_eps_per_sample_where_the_batch_is_the_image_side(name: str, norm: Norm, method: str) -> None:
    body = [nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten()]
    build: Callable[[], nn.Module] = {
        "mlp": lambda: mlp((64, 8, 8, 3)),
        "cnn": lambda: nn.Sequential(*body, nn.Linear(8, 3)),
    }[name]
    network, x = Kind("", build, (1, 8, 8)).network(), images((1, 8, 8), 8)
    rows, engine = margin_rows(network, x), AutoLirpa(network, x)
    engine.batch_size = 8
    eps = EPS[norm] * torch.logspace(-2, 0.5, 8, dtype=torch.float64)
    together = engine.ask(Balls(x, eps, norm), rows, method, iterations=STEPS).bound
    for i in (0, 3, 7):
        alone = engine.ask(Balls(x[i : i + 1], eps[i : i + 1], norm), rows[i : i + 1], method, iterations=STEPS).bound[
            0
        ]
        difference = float((together[i] - alone).abs().max())
        # Adam turns a gradient that is rounding alone into a whole step: alpha's bounds do not repeat to the last bit.
        limit = 1e-3 if method == "alpha-crown" else 1e-8
        assert difference < limit, f"sample {i}: {method} {norm} changes by {difference:.3g} in a batch of 8"


@pytest.mark.parametrize("name", thin(["deep mlp", "cnn", "global average", "average pool", "tanh"]))
def test_a_sample_does_not_notice_other_samples_or_earlier_calls(name: str) -> None:
    kind, engine = BY_NAME[name], engine_of(name)
    x = kind.images(4)
    rows, order = margin_rows(kind.network(), x), torch.tensor([3, 0, 2, 1])
    for norm in (Norm.LINF, Norm.L1):
        eps = spread(norm, 4)
        together = engine.ask(Balls(x, eps, norm), rows, "alpha-crown", iterations=STEPS).bound
        shuffled = engine.ask(Balls(x[order], eps[order], norm), rows[order], "alpha-crown", iterations=STEPS).bound
        alone = engine.ask(Balls(x[2:3], eps[2:3], norm), rows[2:3], "alpha-crown", iterations=STEPS).bound
        torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-8, msg=f"{norm}: order matters")
        torch.testing.assert_close(alone, together[2:3], rtol=0, atol=1e-8, msg=f"{norm}: neighbours matter")


@pytest.mark.parametrize("name", thin(["residual", "sigmoid", "max pool"]))
def test_other_methods_do_not_notice_alpha_crown(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    kind = BY_NAME[name]
    x, engine = kind.images(3), AutoLirpa(kind.network(), kind.images(2))
    rows = margin_rows(kind.network(), x)

    def others() -> list[Tensor]:
        return [
            engine.ask(Balls(x, spread(norm, 3), norm), rows, method, iterations=STEPS).bound
            for norm, method in itertools.product(Norm, ("ibp", "crown-ibp", "crown"))
        ]

    state = torch.get_rng_state(), torch.get_default_dtype(), logging.getLogger("auto_LiRPA").level
    before = others()
    first = engine.ask(Balls(x, spread(Norm.L2, 3), Norm.L2), rows, "alpha-crown", iterations=STEPS).bound
    one_row = engine.ask(
        Balls(x[:1], spread(Norm.L2, 3)[:1], Norm.L2), rows[:1, :1], "alpha-crown", iterations=STEPS
    ).bound
    for one, two in zip(before, others(), strict=True):
        assert torch.equal(one, two), "alpha-CROWN leaves something behind"
    again = engine.ask(Balls(x, spread(Norm.L2, 3), Norm.L2), rows, "alpha-crown", iterations=STEPS).bound
    assert torch.equal(first, again), "alpha-CROWN remembers other calls"
    assert one_row.shape == (1, 1) and first.dtype == torch.float64 and not first.requires_grad
    assert torch.equal(state[0], torch.get_rng_state()), "the random state changed"
    assert state[1:] == (torch.get_default_dtype(), logging.getLogger("auto_LiRPA").level)
    assert capfd.readouterr() == ("", ""), "it prints"


@pytest.mark.parametrize("enabled", [True, False])
def test_the_gradient_mode_of_the_caller_does_not_matter(enabled: bool) -> None:
    kind = BY_NAME["mlp"]
    x, rows = kind.images(2), margin_rows(kind.network(), kind.images(2))
    with torch.set_grad_enabled(enabled):
        engine = AutoLirpa(kind.network(), x)
        crown, alpha = (
            engine.ask(Balls.around(x, 0.2, Norm.L2), rows, m, iterations=STEPS).bound for m in ("crown", "alpha-crown")
        )
        assert torch.is_grad_enabled() == enabled
    assert float((alpha - crown).mean()) > 0


def test_a_batch_that_fails_is_bounded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = BY_NAME["mlp"]
    engine, x = AutoLirpa(kind.network(), kind.images(2)), kind.images(3)
    rows = margin_rows(kind.network(), x)
    expected = engine.ask(Balls.around(x, 0.1, Norm.LINF), rows, "alpha-crown", iterations=STEPS).bound
    assert engine._alpha_batch > 1
    compute = AutoLirpa._compute

    def fails_in_batches(self: AutoLirpa, graph: Any, x: Tensor, *rest: Any) -> Tensor:
        if graph is self._alpha_graph and len(x) > 1:
            raise RuntimeError("shape mismatch")
        return compute(self, graph, x, *rest)

    monkeypatch.setattr(AutoLirpa, "_compute", fails_in_batches)
    found = engine.ask(Balls.around(x, 0.1, Norm.LINF), rows, "alpha-crown", iterations=STEPS).bound
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_bounds_that_are_not_finite_are_not_taken(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, x = engine_of("mlp"), BY_NAME["mlp"].images(2)
    rows = margin_rows(BY_NAME["mlp"].network(), x)
    crown = engine.ask(Balls.around(x, 0.1, Norm.LINF), rows, "crown").bound
    compute = AutoLirpa._compute

    def spoiled(self: AutoLirpa, graph: Any, *rest: Any) -> Tensor:
        return compute(self, graph, *rest) + (wrong if graph is self._alpha_graph else 0.0)

    monkeypatch.setattr(AutoLirpa, "_compute", spoiled)
    alpha = engine.ask(Balls.around(x, 0.1, Norm.LINF), rows, "alpha-crown", iterations=STEPS).bound
    assert torch.equal(alpha, crown)


# The fifth point


def clamp_gradients() -> list[float]:
    """Gradients of every spelling of clamp at and beside its bounds."""
    found = []
    with torch.enable_grad():
        for clamp in (torch.clamp, Tensor.clamp, torch.clip, Tensor.clamp_min, torch.clamp_max):
            point = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
            bounds = (0.0, 1.0) if clamp in (torch.clamp, Tensor.clamp, torch.clip) else (0.0,)
            found += torch.autograd.grad(clamp(point, *bounds).sum(), point)[0].tolist()
    return found


# Taken while tests are collected, before anything loads auto-LiRPA.
GRADIENTS = clamp_gradients()
PRISTINE = torch.clamp, Tensor.clamp, torch.clip, Tensor.clamp_min, torch.clamp_max


def test_clamp_elsewhere_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[list[float]] = []
    compat.load()
    compute = AutoLirpa._compute

    def spy(self: AutoLirpa, graph: Any, *rest: Any) -> Tensor:
        options = graph.bound_opts["optimize_bound_args"]
        reduction = options["loss_reduction_func"]
        options["loss_reduction_func"] = lambda lower: during.append(clamp_gradients()) or reduction(lower)
        try:
            return compute(self, graph, *rest)
        finally:
            options["loss_reduction_func"] = reduction

    monkeypatch.setattr(AutoLirpa, "_compute", spy)
    kind = BY_NAME["mlp"]
    engine, x = AutoLirpa(kind.network(), kind.images(2)), kind.images(2)
    engine.ask(Balls.around(x, 0.1, Norm.LINF), margin_rows(kind.network(), x), "alpha-crown", iterations=STEPS)
    assert len(during) >= 3, "nothing was seen while bounding"
    assert all(seen == GRADIENTS for seen in [*during, clamp_gradients()]), "torch's clamp changed for other code"
    assert (torch.clamp, Tensor.clamp, torch.clip, Tensor.clamp_min, torch.clamp_max) == PRISTINE


def test_clamp_of_slopes_has_torchs_values_and_passes_the_gradient_at_its_bounds() -> None:
    clamp = compat._TorchOfSlopes("torch").clamp
    numbers = [-float("inf"), -1.0, -1e-300, -0.0, 0.0, 0.3, 1.0, 1 + 1e-16, 2.0, float("inf"), float("nan")]
    for dtype in (torch.float32, torch.float64):
        point = torch.tensor(numbers, dtype=dtype, requires_grad=True)
        bounds: list[dict[str, Any]] = [{"min": 0.0, "max": 1.0}, {"min": 0}, {"max": 1}, {"max": torch.tensor(1.0)}]
        for given in bounds:
            assert torch.equal(clamp(point, **given).nan_to_num(7.0), torch.clamp(point, **given).nan_to_num(7.0))
    point = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(clamp(point, 0.0, 1.0).sum(), point)
    assert gradient.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert compat._TorchOfSlopes("torch").relu is torch.relu


def test_only_modules_that_clamp_slopes_see_another_clamp() -> None:
    compat.load()
    others = [
        name
        for name, module in sys.modules.items()
        if isinstance(getattr(module, "__dict__", {}).get("torch"), compat._TorchOfSlopes)
    ]
    expected = [] if compat._slopes_move() else ["auto_LiRPA.operators.activation"]
    assert [name for name in others if name in compat._CLAMP_SLOPES] == others
    assert compat.version() != "0.3" or others == expected


def test_a_newer_release_is_patched_where_it_clamps(monkeypatch: pytest.MonkeyPatch) -> None:
    relu, other = types.ModuleType("relu"), types.ModuleType("other")
    relu.torch = other.torch = torch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "auto_LiRPA.operators.relu", relu)
    monkeypatch.setitem(sys.modules, "auto_LiRPA.operators.other", other)
    compat._restore_clamp_gradient()
    compat._restore_clamp_gradient()
    assert isinstance(relu.torch, compat._TorchOfSlopes) and other.torch is torch
    point = torch.zeros(1, requires_grad=True)
    (gradient,) = torch.autograd.grad(relu.torch.clamp(point, min=0.0, max=1.0), point)
    assert float(gradient) == 1.0


def test_a_torch_whose_clamp_passes_gradients_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "clamp", compat._TorchOfSlopes("torch").clamp)
    monkeypatch.setattr(compat._Clamp, "forward", staticmethod(_forward))
    assert compat._slopes_move()


def _forward(ctx: Any, tensor: Tensor, low: Any, high: Any) -> Tensor:
    value = tensor.clamp(low, high)
    ctx.save_for_backward(value == tensor)
    return value


# Names of other releases


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2], ids=str)
def test_a_release_that_renames_its_arguments(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = BY_NAME["cnn"]
    x, rows = kind.images(2), margin_rows(kind.network(), kind.images(2))
    methods = ("ibp", "crown", "alpha-crown")
    expected = [engine_of("cnn").ask(Balls.around(x, 0.1, norm), rows, m, iterations=STEPS).bound for m in methods]
    bounded = compat.load().BoundedModule
    compute = bounded.compute_bounds

    def renamed(self: Any, *given: Any, interm_bounds: Any = None, **named: Any) -> Any:
        if interm_bounds is not None:
            named["intermediate_layer_bounds"] = interm_bounds
        return compute(self, *given, **named)

    monkeypatch.setattr(bounded, "compute_bounds", renamed)
    engine = AutoLirpa(kind.network(), x)
    found = [engine.ask(Balls.around(x, 0.1, norm), rows, m, iterations=STEPS).bound for m in methods]
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


@pytest.mark.parametrize("key", ["iteration", "ob_iteration"])
def test_the_number_of_steps_has_two_names(key: str) -> None:
    graph = types.SimpleNamespace(bound_opts={"optimize_bound_args": {key: 20}})
    compat.set_iterations(graph, 7)
    assert graph.bound_opts["optimize_bound_args"] == {key: 7, "early_stop_patience": 8}


def test_every_method_has_its_name() -> None:
    assert list(adapter.LIRPA_NAMES) == ["ibp", "crown-ibp", "crown", "alpha-crown"]


def test_crown_and_alpha_crown_share_one_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, honest = [], Native.ask

    def ask(self: Native, balls: Balls, rows: Tensor, method: str, **more: Any) -> Any:
        if more.get("memory"):
            asked.append(method)
        return honest(self, balls, rows, method, **more)

    monkeypatch.setattr(Native, "ask", ask)
    kind = BY_NAME["mlp"]
    network, x = kind.network(), kind.images(4)
    labels = network(x).argmax(1)
    for limit, expected in ((1e-9, []), (1e9, ["crown", "alpha-crown"])):
        asked.clear()
        options = {"time_limit": limit, "iterations": 2}
        rows = certify(network, x, labels, eps=0.02, methods=["alpha-crown"], engine="native", options=options)
        assert list(dict.fromkeys(asked)) == expected
        assert set(rows["alpha-crown"]["status"]) <= {Status.CERTIFIED, Status.TIMEOUT, Status.NOT_CERTIFIED}
        assert (rows["alpha-crown"]["status"] == Status.NOT_CERTIFIED).sum() == 0 or limit == 1e9


@pytest.mark.parametrize("failure", [MemoryError, TimeUp])
def test_what_crown_proved_stays_where_alpha_crown_has_no_memory_or_no_time(
    failure: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, kind = Native._planes, BY_NAME["mlp"]

    def planes(self: Native, bounds: Any, specification: Tensor, method: str, iterations: int) -> Any:
        if method == "alpha-crown" and not self.__dict__.get("trying", True):
            raise failure
        return honest(self, bounds, specification, method, iterations)

    network, x = kind.network(), kind.images(3)
    asked = {"eps": 0.02, "engine": "native", "options": {"iterations": 2}}
    crown = certify(network, x, network(x).argmax(1), methods=["crown"], eps=0.02, engine="native")["crown"]
    ask = Native.ask

    def tried(self: Native, *given: Any, **more: Any) -> Any:
        self.trying = "memory" not in more  # the build's own checks have none
        return ask(self, *given, **more)

    monkeypatch.setattr(Native, "_planes", planes)
    monkeypatch.setattr(Native, "ask", tried)
    rows = certify(network, x, network(x).argmax(1), methods=["alpha-crown"], **asked)["alpha-crown"]
    assert rows.count(Status.OUT_OF_MEMORY) == 0 and rows["radius"] == pytest.approx(crown["radius"], rel=1e-6)
    assert rows["status"].tolist() == crown["status"].tolist()
    assert rows["margin"] == pytest.approx(crown["margin"], rel=1e-6, nan_ok=True)
