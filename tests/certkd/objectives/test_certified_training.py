"""Differentiable bounds: sound, tight at a point, on today's weights; what certified training makes of them."""

import copy
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from certkd.config.settings import OptimizerConfig, Recipe
from certkd.networks.builders.small import mlp, resnet
from certkd.objectives import AdCert, CcIbp, Ibp, Kdiga, KdigaCertified, MtlIbp, Objective, Sabr, Standard
from certkd.objectives.attacks import Pgd
from certkd.objectives.base import Batch, total
from tests.certkd.objectives.objective_fixtures import anew, generator
from tests.training import train
from verifiers.bound_propagation.auto_lirpa import compat
from verifiers.bound_propagation.auto_lirpa import training as second_opinion
from verifiers.bound_propagation.native import training as bounds
from verifiers.bound_propagation.native.backward import BackwardPass
from verifiers.bound_propagation.native.training import (
    BoundMethod,
    Box,
    ball,
    deficits,
    lower_margins,
    robust_cross_entropy,
)
from verifiers.core.errors import InputError
from verifiers.runtime.modes import eval_mode

CLASSES, SHAPE = 4, (1, 6, 6)
#: Float32 bounds are without an allowance for their rounding.
ROUNDING = 1e-4
METHODS: tuple[BoundMethod, ...] = ("ibp", "crown-ibp")
both_methods = pytest.mark.parametrize("method", METHODS)


def perceptron() -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(9, CLASSES))


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, CLASSES))


def normalised() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8)]
    return nn.Sequential(*layers, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 4))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "relu": perceptron,
    "tanh": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.Tanh(), nn.Linear(9, CLASSES)),
    "convolution": convolutional,
    "batch norm": normalised,
    "dropout": with_dropout,
    "residual": lambda: resnet(SHAPE, CLASSES, depth=8, width=2),
}


def made(name: str, seed: int = 0) -> nn.Module:
    """A network in train mode with weights of size one and statistics that batch normalisation has to follow."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETWORKS[name]()
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.data.mul_(2)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.data.normal_()
    return model.train()


def frozen(name: str, seed: int = 1) -> nn.Module:
    return made(name, seed).eval().requires_grad_(False)


def samples(count: int = 5) -> tuple[Tensor, Tensor]:
    """Images with some pixels at 0 and 1, and labels."""
    x = (1.2 * torch.rand((count, *SHAPE), generator=generator()) - 0.1).clamp(0, 1)
    return x, torch.arange(count) % CLASSES


def margins_at(model: nn.Module, x: Tensor, y: Tensor, minus: nn.Module | None = None) -> Tensor:
    """f_y - f_j in eval mode, f the (difference of the) logits."""
    with torch.no_grad(), eval_mode(model):
        logits = model(x) - (0 if minus is None else minus(x))
    return logits.gather(1, y[:, None]) - logits


def points(model: nn.Module, x: Tensor, y: Tensor, eps: float, minus: nn.Module | None) -> Iterator[Tensor]:
    """Random points of the balls, corners, and the end of an attack on each class."""
    draws, network = generator(), copy.deepcopy(model).eval()
    low, high = ball(x, eps)
    for kind in range(30):
        share = torch.rand(x.shape, generator=draws)
        yield low + (share.round() if kind % 2 else share) * (high - low)
    for j in range(CLASSES):

        def loss(z: Tensor, j: int = j) -> Tensor:
            logits = network(z) - (0 if minus is None else minus(z))
            return logits[:, j] - logits.gather(1, y[:, None])[:, 0]

        yield Pgd(eps=eps, steps=8).raise_loss(network, loss, x)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.thin(3)
def test_no_point_of_the_box_breaks_a_bound_that_is_tight_at_a_point(name: str) -> None:
    model, (x, y) = made(name), samples()
    for method, sign in itertools.product(METHODS, (1, -1)):
        lower = lower_margins(model, ball(x, 0.0), y, method, sign=sign).detach()
        torch.testing.assert_close(lower, sign * margins_at(model, x, y), atol=1e-5, rtol=1e-4)
    for eps in (0.01, 0.15):
        found = {method: lower_margins(model, ball(x, eps), y, method).detach() for method in METHODS}
        for z in points(model, x, y, eps, None):
            for method, lower in found.items():
                broken = float((lower - margins_at(model, z, y)).max())
                assert broken <= ROUNDING, f"{method}: a point of the box is {broken:.2g} below the bound"


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_no_point_of_the_box_breaks_a_deficit_that_is_tight_at_a_point(name: str) -> None:
    student, teacher, (x, y) = made(name), frozen(name), samples()
    for method in METHODS:
        at_point = deficits(student, teacher, ball(x, 0.0), y, method).detach()
        torch.testing.assert_close(at_point, -margins_at(student, x, y, teacher), atol=1e-5, rtol=1e-4)
    found = {method: deficits(student, teacher, ball(x, 0.1), y, method).detach() for method in METHODS}
    for z in points(student, x, y, 0.1, teacher):
        behind = -margins_at(student, z, y, teacher)
        for method, upper in found.items():
            broken = float((behind - upper).max())
            assert broken <= ROUNDING, f"{method}: a point of the box lags {broken:.2g} more than the bound"
    mean = {method: float(upper.mean()) for method, upper in found.items()}
    assert mean["crown-ibp"] < mean["ibp"], f"linear bounds of the difference are no better: {mean}"


def test_bounds_shrink_with_the_box_and_have_zero_at_the_label() -> None:
    model, (x, y) = made("convolution"), samples()
    for method in METHODS:
        sizes = [lower_margins(model, ball(x, eps), y, method).detach() for eps in (0.0, 0.02, 0.1)]
        for wide, narrow in itertools.pairwise(reversed(sizes)):
            assert bool((wide <= narrow + 1e-5).all()), f"a larger box has a higher {method} bound"
        assert all(bool((size.gather(1, y[:, None]).abs() <= 1e-6).all()) for size in sizes)


def test_copies_cancel_where_they_are_affine() -> None:
    """A network less itself is 0; where a ReLU is unstable its two copies are relaxed apart, and only then it shows."""
    teacher, (x, y) = frozen("relu"), samples()
    student = copy.deepcopy(teacher).requires_grad_(True)
    for eps, largest in ((1e-6, 1e-5), (0.05, 2.0)):
        ibp, crown = (deficits(student, teacher, ball(x, eps), y, m).detach().max(1).values for m in METHODS)
        assert float(crown.max()) < largest and float(crown.mean()) < 0.5 * float(ibp.mean()) + 1e-6, f"{ibp} {crown}"
    affine = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES))
    found = deficits(affine, copy.deepcopy(affine), ball(x, 0.3), y, "crown-ibp")
    assert float(found.detach().abs().max()) < 1e-6, "an affine network lags behind its copy"
    itself = deficits(student, student, ball(x, 0.0), y, "crown-ibp")
    assert float(itself.detach().abs().max()) < 1e-6, "a network lags behind itself at a point"


@both_methods
def test_bounds_follow_weights_and_statistics(method: BoundMethod) -> None:
    model, teacher, (x, y) = made("batch norm"), frozen("batch norm"), samples()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    draws = generator()
    for step in range(3):
        model(3 * torch.rand((8, *SHAPE), generator=draws))  # moves the running statistics
        for minus in (None, teacher):
            lower = lower_margins(model, ball(x, 0.0), y, method, minus=minus)
            expected = margins_at(model, x, y, minus)
            torch.testing.assert_close(lower.detach(), expected, atol=1e-5, rtol=1e-4, msg=f"stale in step {step}")
        optimizer.zero_grad()
        lower_margins(model, ball(x, 0.05), y, method).sum().backward()
        optimizer.step()


def test_bounds_follow_the_teacher_too() -> None:
    student, teacher, (x, y) = made("batch norm"), frozen("batch norm"), samples()
    box = ball(x, 0.0)
    before = deficits(student, teacher, box, y, "crown-ibp").detach()
    for weight in teacher.parameters():
        weight.data.mul_(1.2)
    teacher.train()(3 * torch.rand((8, *SHAPE), generator=generator()))
    after = deficits(student, teacher.eval(), box, y, "crown-ibp").detach()
    torch.testing.assert_close(after, -margins_at(student, x, y, teacher), atol=1e-5, rtol=1e-4)
    assert float((after - before).abs().max()) > 0.01


def test_bounds_follow_replaced_weights() -> None:
    model, other, (x, y) = made("relu"), made("relu", 3), samples()
    lower_margins(model, ball(x, 0.1), y, "ibp")
    model.load_state_dict(other.state_dict(), assign=True)
    expected = lower_margins(other, ball(x, 0.1), y, "ibp")
    assert torch.equal(lower_margins(model, ball(x, 0.1), y, "ibp"), expected)


def test_each_teacher_and_each_copy_has_a_graph_of_its_own() -> None:
    student, first, second, (x, y) = made("relu"), frozen("relu", 1), frozen("relu", 2), samples()
    for teacher in (first, second, first):
        found = deficits(student, teacher, ball(x, 0.0), y, "crown-ibp").detach()
        torch.testing.assert_close(found, -margins_at(student, x, y, teacher), atol=1e-5, rtol=1e-4)
    twin = copy.deepcopy(student)
    for weight in twin.parameters():
        weight.data.mul_(0.5)
    for model in (twin, student):
        lower = lower_margins(model, ball(x, 0.0), y, "ibp")
        torch.testing.assert_close(lower.detach(), margins_at(model, x, y), atol=1e-5, rtol=1e-4)
    lower_margins(twin, ball(x, 0.1), y, "ibp").sum().backward()
    assert all(weight.grad is None for weight in student.parameters()), "the copy's bounds reach the original"


@both_methods
def test_nothing_but_gradients_is_changed(method: BoundMethod) -> None:
    student, teacher, (x, y) = made("batch norm"), made("batch norm", 1).eval(), samples()
    student[0].requires_grad_(False)  # type: ignore[index]
    student[1].eval()  # type: ignore[index]
    before = [copy.deepcopy(model.state_dict()) for model in (student, teacher)]
    modes, draws = [module.training for module in student.modules()], torch.get_rng_state()
    for _ in range(2):
        deficits(student, teacher, ball(x, 0.1), y, method).sum().backward()
    for model, state in zip((student, teacher), before, strict=True):
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[key]), f"bounding changed {key}"
    assert [module.training for module in student.modules()] == modes and not teacher.training
    assert torch.equal(torch.get_rng_state(), draws) and torch.get_default_dtype() == torch.float32
    for name, weight in student.named_parameters():
        kept = name.startswith("0.")
        assert weight.requires_grad is not kept and (weight.grad is None) is kept, f"{name}: frozen is {kept}"
    assert all(weight.requires_grad and weight.grad is None for weight in teacher.parameters())


def test_weights_may_be_frozen_and_thawed_between_steps() -> None:
    """A network that was trained becomes a teacher, and a frozen layer is tuned later."""
    model, (x, y) = made("relu"), samples()
    for learns in (True, False, True):
        model.requires_grad_(learns)
        lower = lower_margins(model, ball(x, 0.1), y, "ibp")
        assert lower.requires_grad is learns
        assert all(weight.requires_grad is learns for weight in model.parameters()), "bounding froze or thawed weights"


@pytest.mark.parametrize("joint", [False, True], ids=["alone", "less teacher"])
@pytest.mark.slow
def test_the_graph_dies_with_its_networks(joint: bool) -> None:
    student, teacher, (x, y) = made("batch norm"), frozen("batch norm"), samples()
    lower_margins(student, ball(x, 0.1), y, "crown-ibp", minus=teacher if joint else None).sum().backward()
    alive = [weakref.ref(part) for part in (student, teacher, bounds._EXPORTED[student][1])]
    gc.collect()
    kept = len(bounds._EXPORTED)
    del student, teacher
    gc.collect()
    assert all(part() is None for part in alive), "a graph keeps its network alive"
    assert len(bounds._EXPORTED) == kept - 1 - joint


@pytest.mark.parametrize("name", ["relu", "batch norm"])
def test_samples_do_not_mix(name: str) -> None:
    model, teacher, (x, y) = made(name), frozen(name), samples(6)
    for method, rows in itertools.product(METHODS, (slice(0, 1), slice(1, 6), slice(4, 6))):
        whole = deficits(model, teacher, ball(x, 0.05), y, method).detach()
        part = deficits(model, teacher, ball(x[rows], 0.05), y[rows], method).detach()
        torch.testing.assert_close(part, whole[rows], atol=1e-5, rtol=1e-4)


@both_methods
def test_autocast_changes_no_bound(method: BoundMethod) -> None:
    model, (x, y) = made("convolution"), samples()
    expected = lower_margins(copy.deepcopy(model), ball(x, 0.1), y, method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lower_margins(model, ball(x, 0.1), y, method), expected), "bounds in bfloat16"


def test_bounds_in_float64_are_those_in_float32() -> None:
    """Also of one network that changes its type; tanh has tables in the type that the graph was built in."""
    model, (x, y) = made("tanh"), samples()
    single = lower_margins(model, ball(x, 0.05), y, "crown-ibp")
    double = lower_margins(model.double(), ball(x.double(), 0.05), y, "crown-ibp")
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.detach().float(), single.detach(), atol=1e-4, rtol=1e-3)


class Viewed(nn.Module):
    """Flattens by the batch size that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.view(x.size(0), -1))


class Branching(nn.Module):
    """Takes another way for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.last(x.flatten(1))
        return logits if float(x.detach().mean()) > 0.3 else logits + logits


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


REFUSED = (
    (nn.Sequential(nn.Flatten(), nn.Linear(36, 8), Sine(), nn.Linear(8, 4)), r"operator 'sin' at '2'"),
    (Branching(), r"reads values of the image in Python \(test_certified_training.py:\d+: return logits if"),
)
#: Beyond auto-LiRPA's layers: each is bounded as any other.
TAKEN = {
    "gelu": nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.GELU(), nn.Linear(8, 4)),
    "padded average": nn.Sequential(nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Linear(16, 4)),
    "layer norm": nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.LayerNorm(8), nn.Linear(8, 4)),
    "viewed": Viewed(),
}


@pytest.mark.parametrize("name", TAKEN)
def test_layers_that_only_our_graph_takes_have_sound_bounds_with_gradients(name: str) -> None:
    model, (x, y) = TAKEN[name], samples()
    for method in METHODS:
        tight = lower_margins(model, ball(x, 0.0), y, method).detach()
        torch.testing.assert_close(tight, margins_at(model, x, y), atol=1e-4, rtol=1e-3)
        lower = lower_margins(model, ball(x, 0.05), y, method)
        for z in points(model, x, y, 0.05, None):
            assert float((lower.detach() - margins_at(model, z, y)).max()) <= ROUNDING, f"{method} is broken"
        model.zero_grad()
        lower.sum().backward()
        assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in model.parameters())


@pytest.mark.skipif(compat.version() is None, reason="auto-LiRPA is not installed")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_bounds_and_gradients_are_those_of_auto_lirpa(name: str) -> None:
    model, teacher, (x, y) = made(name), frozen(name), samples()
    for method, minus in itertools.product(METHODS, (None, teacher)):
        if name == "tanh" and method == "crown-ibp":
            continue  # each has lines of its own
        found, gradients = [], []
        for bound in (lower_margins, second_opinion.lower_margins):
            model.zero_grad()
            lower = bound(model, ball(x, 0.05), y, method, minus=minus)
            lower.square().sum().backward()
            found.append(lower.detach())
            gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4, msg=f"{method}, less teacher: {minus is not None}")
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(("model", "message"), REFUSED, ids=[message for _, message in REFUSED])
@both_methods
def test_what_cannot_be_bounded_is_refused_in_one_line(
    model: nn.Module, message: str, method: BoundMethod, capfd: pytest.CaptureFixture[str]
) -> None:
    x, y = samples()
    x[0] = 0.1
    with pytest.raises(InputError, match=message) as refused:
        lower_margins(model, ball(x, 0.1), y, method)
    assert "\n" not in str(refused.value) and "take an objective without bounds" in str(refused.value)
    out, err = capfd.readouterr()
    assert out == err == "", "torch's own words reach the terminal"


def test_robust_cross_entropy_is_an_upper_bound_and_tight_at_a_point() -> None:
    model, (x, y) = made("convolution"), samples()
    box = ball(x, 0.05)
    for method in METHODS:
        worst = float(robust_cross_entropy(lower_margins(model, box, y, method)).detach())
        for z in points(model, x, y, 0.05, None):
            there = nn.functional.cross_entropy(-margins_at(model, z, y), y)
            assert float(there) <= worst + ROUNDING, "a point of the box has a higher cross-entropy than the bound"


# ------------------------------------------------------------------------------------------------------------ schedules


def step_of(progress: float, name: str = "convolution") -> Batch:
    x, y = samples()
    return Batch(made(name), frozen(name), x, y, generator(), progress)


def boxes(objective: Objective, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Box], set[str]]:
    """Each box that one step bounds, and the methods."""
    found: list[Box] = []
    methods: set[str] = set()
    intervals, least = bounds.intervals_of, bounds.least

    def watched(model: nn.Module, minus: nn.Module | None, box: Box, y: Tensor) -> tuple[BackwardPass, Tensor]:
        found.append(box)
        return intervals(model, minus, box, y)

    def noted(over: BackwardPass, rows: Tensor, method: BoundMethod) -> Tensor:
        methods.add(method)
        return least(over, rows, method)

    with monkeypatch.context() as patched:
        patched.setattr(bounds, "intervals_of", watched)
        patched.setattr(bounds, "least", noted)
        objective.terms(anew(batch))
    return found, methods


RAMPED = (
    (Ibp(eps=0.1, ramp=0.5), 1.0),
    (MtlIbp(eps=0.1, ramp=0.5, steps=2), 1.0),
    (Sabr(eps=0.1, ramp=0.5, share=0.3, steps=2), 0.3),
    (CcIbp(eps=0.1, ramp=0.5, steps=2), 1.0),
    (AdCert(eps=0.1, ramp=0.5, steps=2), 1.0),
    (KdigaCertified(eps=0.1, eps_ramp=0.5, lambda_iga=0, bound="ibp"), 1.0),
    (KdigaCertified(eps=0.1, eps_ramp=0.5, lambda_iga=0, bound="crown-ibp"), 1.0),
)


@pytest.mark.parametrize(("objective", "share"), RAMPED, ids=[f"{o.kind}-{n}" for n, (o, _) in enumerate(RAMPED)])  # type: ignore[attr-defined]
def test_the_box_grows_with_progress(objective: Objective, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for progress, grown in ((0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        batch = step_of(progress)
        for lower, upper in boxes(objective, batch, monkeypatch)[0]:
            size = grown * share * 0.1
            assert float((upper - lower).max()) == pytest.approx(2 * size, rel=1e-5), f"at progress {progress}"
            reach = torch.maximum(upper - batch.x, batch.x - lower).max()
            assert float(reach) <= grown * 0.1 + 1e-6, "the box leaves the ball"
            assert float(lower.min()) >= 0 and float(upper.max()) <= 1, "the box leaves the images"


def test_the_share_of_linear_bounds_falls_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Ibp(eps=0.1, ramp=0.5, method="crown-ibp", kappa=0)
    for progress, linear in ((0.125, 0.75), (0.375, 0.25), (0.5, 0.0), (1.0, 0.0)):
        batch = step_of(progress)
        box = ball(batch.x, 0.1 * min(1, progress / 0.5))
        ibp, crown = (lower_margins(batch.student, box, batch.y, method) for method in METHODS)
        expected = robust_cross_entropy(linear * crown + (1 - linear) * ibp)
        found = objective.terms(anew(batch))["ce_certified"].value
        torch.testing.assert_close(found, expected, msg=f"at progress {progress}")
        bounded, used = boxes(objective, batch, monkeypatch)
        assert len(bounded) == 1, "intervals are computed once for both methods"
        assert used == ({"ibp", "crown-ibp"} if linear else {"ibp"})


@pytest.mark.parametrize(
    "objective",
    [Ibp(eps=0.1, method="crown-ibp"), MtlIbp(eps=0.1, steps=2), Sabr(eps=0.1, steps=2), KdigaCertified(eps=0.1)],
    ids=lambda objective: objective.kind,
)
@pytest.mark.parametrize("name", ["batch norm", "dropout"])
@pytest.mark.thin(3)
def test_a_step_runs_on_layers_with_a_train_mode(objective: Objective, name: str) -> None:
    """Running statistics that move between bound and backward pass, and dropout."""
    batch = step_of(0.25, name)
    total(objective.terms(anew(batch))).backward()
    assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in batch.student.parameters())


def test_without_deficit_certified_distillation_is_kdiga() -> None:
    batch = step_of(1.0, "relu")
    plain, certified = (
        objective.terms(anew(batch)) for objective in (Kdiga(), KdigaCertified(eps=0.1, lambda_deficit=0))
    )
    assert plain.keys() == certified.keys()
    assert all(torch.equal(plain[name].value, certified[name].value) for name in plain)


# ------------------------------------------------------------------------------------------------------ whole trainings


def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.tensor(found.images / 16).float()[:, None], torch.tensor(found.target)


def certified_share(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> float:
    """Share of images whose every interval margin is positive."""
    lower = lower_margins(model, ball(x, eps), y, "ibp").detach()
    return float((lower.scatter(1, y[:, None], torch.inf) > 0).all(1).float().mean())


def trained(objective: Objective, teacher: nn.Module | None = None, epochs: int = 6) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = mlp((1, 8, 8), 10, hidden=(32,))
    x, y = digits()
    recipe = Recipe(epochs=epochs, batch_size=64, optimizer=OptimizerConfig(rate=5e-3))
    validation = (x[1400:1500], y[1400:1500])
    train(student, (x[:600], y[:600]), objective, teacher=teacher, recipe=recipe, validation=validation, device="cpu")
    return student


@pytest.mark.slow
def test_certified_training_certifies_more() -> None:
    x, y = digits()
    shares = {}
    for objective in (Standard(), Ibp(eps=0.05), MtlIbp(eps=0.05, alpha=0.5, steps=3), Sabr(eps=0.05, steps=3)):
        shares[objective.kind] = certified_share(trained(objective), x[1500:], y[1500:], 0.05)
    for kind in ("ibp", "mtl_ibp", "sabr"):
        assert shares[kind] > shares["standard"] + 0.1, f"{kind} certifies no more than standard training: {shares}"


@pytest.mark.slow
def test_certified_distillation_shrinks_the_deficit() -> None:
    x, y = digits()
    teacher = trained(Ibp(eps=0.05))
    lags = []
    for weight in (0.0, 0.3):
        student = trained(KdigaCertified(eps=0.05, lambda_iga=0, lambda_deficit=weight), teacher, epochs=3)
        behind = deficits(student, teacher, ball(x[1500:], 0.05), y[1500:], "crown-ibp").detach()
        lags.append(float(behind.amax(1).clamp_min(0).mean()))
    assert lags[1] < 0.8 * lags[0], f"the deficit term does not shrink the deficit: {lags}"


def test_a_teacher_is_left_as_it_was_by_a_certified_distillation() -> None:
    x, y = samples(40)
    teacher, student = made("batch norm", 1).train(), made("batch norm")
    before = copy.deepcopy(teacher.state_dict())
    objective, recipe = KdigaCertified(eps=0.05), Recipe(epochs=2, batch_size=16)
    train(student, (x, y), objective, teacher=teacher, recipe=recipe, device="cpu")
    assert teacher.training and all(weight.requires_grad for weight in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_training_refuses_what_it_cannot_bound_before_the_first_step() -> None:
    x, y = samples(20)
    student = REFUSED[0][0]
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(InputError, match="sin"):
        train(student, (x, y), Ibp(eps=0.1), recipe=Recipe(epochs=1), device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_progress_is_that_of_the_step() -> None:
    objective, batch = Ibp(eps=0.1, ramp=0.5), step_of(0.1)
    losses = [
        float(objective.terms(replace(anew(batch), progress=p))["ce_certified"].value.detach())
        for p in (0.01, 0.2, 0.5)
    ]
    assert losses[0] < losses[1] < losses[2], f"a larger box has a lower worst cross-entropy: {losses}"
