"""One table of all training objectives through the same invariants, then what is particular to each."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from certkd.config import Recipe
from certkd.models import ModelSpec, build
from certkd.objectives import (
    OBJECTIVES,
    Adversarial,
    AnyObjective,
    Consistency,
    Crt,
    Gaussian,
    Kd,
    Kdiga,
    Objective,
    SmoothAdv,
    Standard,
)
from certkd.objectives.base import Batch, Term, total
from certkd.objectives.kd import softened_kl
from certkd.objectives.kdiga import alignment, input_gradient, teacher_signal
from certkd.training import train
from tests.certkd.test_attacks import literal_pgd

SHAPE, CLASSES = (1, 2, 3), 4
Weights = list[nn.Parameter]


# ------------------------------------------------------------------------------------------------------ literal oracles


def log_softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    scaled = [value / temperature for value in logits]
    largest = max(scaled)
    normaliser = largest + math.log(sum(math.exp(value - largest) for value in scaled))
    return [value - normaliser for value in scaled]


def logits_of(model: nn.Module, image: Tensor) -> list[float]:
    with torch.no_grad():
        return model(image[None])[0].tolist()


def literal_ce(batch: Batch) -> float:
    values = [-log_softmax(logits_of(batch.student, x))[int(y)] for x, y in zip(batch.x, batch.y, strict=True)]
    return sum(values) / len(values)


def literal_kl(batch: Batch, temperature: float) -> float:
    assert batch.teacher is not None
    values = []
    for x in batch.x:
        student = log_softmax(logits_of(batch.student, x), temperature)
        teacher = log_softmax(logits_of(batch.teacher, x), temperature)
        values.append(sum(math.exp(t) * (t - s) for s, t in zip(student, teacher, strict=True)))
    return temperature**2 * sum(values) / len(values)


def literal_slope(model: nn.Module, image: Tensor, label: int) -> list[float]:
    """Gradient of one image's cross-entropy, class by class: sum of p_k grad f_k, minus grad f_y."""
    pixels = image.clone().requires_grad_(True)
    logits = model(pixels[None])[0]
    probabilities = [math.exp(value) for value in log_softmax(logits.tolist())]
    slopes = [torch.autograd.grad(f, pixels, retain_graph=True)[0].ravel().tolist() for f in logits]
    return [
        sum(p * s[k] for p, s in zip(probabilities, slopes, strict=True)) - slopes[label][k]
        for k in range(image.numel())
    ]


def literal_gaps(batch: Batch) -> list[float]:
    """Euclidean distance of the two networks' input gradients, one sample and one pixel at a time."""
    assert batch.teacher is not None
    gaps = []
    for x, y in zip(batch.x, batch.y, strict=True):
        ours, theirs = literal_slope(batch.student, x, int(y)), literal_slope(batch.teacher, x, int(y))
        squares = 0.0
        for a, b in zip(ours, theirs, strict=True):
            squares += (a - b) ** 2
        gaps.append(math.sqrt(squares))
    return gaps


def oracle_standard(batch: Batch) -> dict[str, float]:
    return {"ce": literal_ce(batch)}


def oracle_adversarial(batch: Batch) -> dict[str, float]:
    noise = torch.rand(batch.x.shape, generator=generator(), dtype=batch.x.dtype) * 2 - 1
    adversarial = literal_pgd(batch.student, batch.x, batch.y, noise, eps=0.1, steps=12, size=0.03)
    return {"ce_adversarial": literal_ce(replace(batch, x=adversarial))}


def oracle_kd(batch: Batch) -> dict[str, float]:
    return {"ce": literal_ce(batch), "kl": literal_kl(batch, 3.0)}


def oracle_kdiga(batch: Batch) -> dict[str, float]:
    gaps = literal_gaps(batch)
    return {"ce": literal_ce(batch), "kl": literal_kl(batch, 2.0), "iga": sum(gaps) / len(gaps)}


def noisy_batches(batch: Batch, sigma: float, copies: int = 1) -> list[Batch]:
    """The batch under each copy of the noise that a fresh generator draws."""
    drawn = torch.randn((copies, *batch.x.shape), generator=generator(), dtype=batch.x.dtype)
    return [replace(batch, x=batch.x + sigma * noise) for noise in drawn]


def mean_probabilities(model: nn.Module, images: list[Tensor]) -> list[float]:
    """The softmax averaged over some images."""
    each = [[math.exp(value) for value in log_softmax(logits_of(model, image))] for image in images]
    return [sum(column) / len(images) for column in zip(*each, strict=True)]


def oracle_gaussian(batch: Batch) -> dict[str, float]:
    return {"ce_noisy": literal_ce(noisy_batches(batch, 0.4)[0])}


def oracle_consistency(batch: Batch) -> dict[str, float]:
    """One sample and one copy at a time: KL(mean || copy) and the entropy of the mean."""
    copies = noisy_batches(batch, 0.4, 3)
    divergences, entropies = [], []
    for images in zip(*(copy.x for copy in copies), strict=True):
        mean = mean_probabilities(batch.student, list(images))
        entropies.append(-sum(p * math.log(p) if p > 0 else 0.0 for p in mean))
        for image in images:
            logs = log_softmax(logits_of(batch.student, image))
            divergences.append(sum(p * (math.log(p) - q) if p > 0 else 0.0 for p, q in zip(mean, logs, strict=True)))
    return {
        "ce_noisy": sum(literal_ce(copy) for copy in copies) / len(copies),
        "consistency": sum(divergences) / len(divergences),
        "entropy": sum(entropies) / len(entropies),
    }


def smoothed_slope(model: nn.Module, image: Tensor, noises: list[Tensor], label: int) -> list[float]:
    """Gradient of -log of the label's mean probability p: the sum of p_i grad CE_i over the sum of p_i."""
    total_probability, weighted = 0.0, [0.0] * image.numel()
    for noise in noises:
        probability = math.exp(log_softmax(logits_of(model, image + noise))[label])
        slope = literal_slope(model, image + noise, label)
        total_probability += probability
        weighted = [w + probability * s for w, s in zip(weighted, slope, strict=True)]
    return [w / total_probability for w in weighted]


def literal_smoothed_pgd(batch: Batch, noises: list[Tensor], eps: float, steps: int) -> Tensor:
    """PGD in the l2 ball against the mean softmax, from x, one image and one pixel at a time; blocked pixels stay."""
    found = []
    for row, (x, y) in enumerate(zip(batch.x, batch.y, strict=True)):
        centre = x.ravel().tolist()
        point = list(centre)
        for _ in range(steps):
            image = torch.tensor(point, dtype=x.dtype).reshape(x.shape)
            slope = smoothed_slope(batch.student, image, [noise[row] for noise in noises], int(y))
            free = [0.0 if (p <= 0 and s < 0) or (p >= 1 and s > 0) else s for p, s in zip(point, slope, strict=True)]
            length = math.sqrt(sum(s * s for s in free)) or 1.0
            moved = [p - c + 2 * eps / steps * s / length for p, c, s in zip(point, centre, free, strict=True)]
            shrink = min(1.0, eps / math.sqrt(sum(m * m for m in moved)))
            point = [min(max(c + shrink * m, 0.0), 1.0) for c, m in zip(centre, moved, strict=True)]
        found.append(torch.tensor(point, dtype=x.dtype).reshape(x.shape))
    return torch.stack(found)


def literal_smoothadv(batch: Batch, *, sigma: float, copies: int, eps: float, steps: int) -> float:
    noises = [copy.x - batch.x for copy in noisy_batches(batch, sigma, copies)]
    adversarial = literal_smoothed_pgd(batch, noises, eps, steps)
    return sum(literal_ce(replace(batch, x=adversarial + noise)) for noise in noises) / copies


def oracle_smoothadv(batch: Batch) -> dict[str, float]:
    return {"ce_adversarial": literal_smoothadv(batch, sigma=0.4, copies=3, eps=9.0, steps=5)}


def oracle_crt(batch: Batch) -> dict[str, float]:
    noisy = noisy_batches(batch, 0.4)[0]
    assert batch.teacher is not None
    lengths = []
    for x in noisy.x:
        ours, theirs = logits_of(batch.student, x), logits_of(batch.teacher, x)
        lengths.append(math.sqrt(sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True))))
    return {"transfer": sum(lengths) / len(lengths), "ce_noisy": literal_ce(noisy)}


# ------------------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Row:
    """An objective with settings other than the defaults, its literal version, and the weight of each term."""

    objective: Objective
    oracle: Callable[[Batch], dict[str, float]]
    weights: dict[str, float]


ROWS = (
    Row(Standard(), oracle_standard, {"ce": 1.0}),
    Row(Adversarial(eps=0.1, steps=12, step_size=0.03), oracle_adversarial, {"ce_adversarial": 1.0}),
    Row(Kd(lambda_ce=0.3, lambda_kl=0.8, temperature=3), oracle_kd, {"ce": 0.3, "kl": 0.8}),
    Row(
        Kdiga(lambda_ce=0.3, lambda_kl=0.8, temperature=2, lambda_iga=1.7),
        oracle_kdiga,
        {"ce": 0.3, "kl": 0.8, "iga": 1.7},
    ),
    Row(Gaussian(sigma=0.4), oracle_gaussian, {"ce_noisy": 1.0}),
    Row(
        Consistency(sigma=0.4, copies=3, lam=1.3, eta=0.7),
        oracle_consistency,
        {"ce_noisy": 1.0, "consistency": 1.3, "entropy": 0.7},
    ),
    # The ball holds the whole box: PGD ends in corners, which small changes of the weights do not move.
    Row(SmoothAdv(sigma=0.4, copies=3, eps=9, steps=5), oracle_smoothadv, {"ce_adversarial": 1.0}),
    Row(Crt(sigma=0.4, alpha=0.7), oracle_crt, {"transfer": 0.7, "ce_noisy": 1 - 0.7}),
)
every_objective = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.objective.kind)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def network(seed: int, activation: type[nn.Module] = nn.Tanh, classes: int = CLASSES) -> nn.Sequential:
    """A perceptron in float64 with gradients of order one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 7), activation(), nn.Linear(7, classes)).double()
        for parameter in model.parameters():
            parameter.data.mul_(3)
        return model


def linear(seed: int, classes: int = CLASSES) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, classes)).double()


def batch_of(student: nn.Module, teacher: nn.Module, count: int = 5, classes: int = CLASSES) -> Batch:
    x = 0.2 + 0.6 * torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Batch(student, teacher, x, torch.arange(count) % classes, generator())


def smooth_batch() -> Batch:
    return batch_of(network(0), network(1))


def values(batch: Batch, objective: Objective) -> dict[str, float]:
    terms = objective.terms(replace(batch, generator=generator()))
    return {name: float(term.value.detach()) for name, term in terms.items()}


def loss_of(batch: Batch, objective: Objective) -> Tensor:
    return total(objective.terms(replace(batch, generator=generator())))


def weights_of(model: nn.Module) -> Weights:
    return list(model.parameters())


def test_every_objective_has_a_row() -> None:
    rows = [type(row.objective) for row in ROWS]
    assert sorted(rows, key=str) == sorted(OBJECTIVES, key=str), "give each new objective one row in ROWS"


def test_every_kind_reaches_its_own_objective() -> None:
    kinds = [row.objective.kind for row in ROWS]
    assert len(set(kinds)) == len(kinds), f"two objectives share a kind: {kinds}"
    for row in ROWS:
        parsed = TypeAdapter(AnyObjective).validate_python(row.objective.model_dump())
        assert type(parsed) is type(row.objective) and parsed == row.objective, f"{row.objective.kind} became {parsed}"


@every_objective
def test_terms_equal_a_literal_double_loop(row: Row) -> None:
    batch = smooth_batch()
    assert values(batch, row.objective) == pytest.approx(row.oracle(batch), rel=1e-9)


@every_objective
def test_terms_equal_the_literal_loop_on_a_relu_network(row: Row) -> None:
    batch = batch_of(network(4, nn.ReLU), network(5, nn.ReLU))
    assert values(batch, row.objective) == pytest.approx(row.oracle(batch), rel=1e-9)


@every_objective
def test_weighted_terms_sum_to_the_scalar(row: Row) -> None:
    batch = smooth_batch()
    terms = row.objective.terms(batch)
    assert {name: term.weight for name, term in terms.items()} == row.weights
    scalar = total(terms)
    expected = sum(row.weights[name] * float(term.value.detach()) for name, term in terms.items())
    assert float(scalar.detach()) == pytest.approx(expected, rel=1e-12)
    assert scalar.shape == (), "the scalar that is back-propagated has a shape"


@every_objective
def test_back_propagated_gradient_is_that_of_every_weighted_term(row: Row) -> None:
    batch = smooth_batch()
    weights = weights_of(batch.student)
    expected = [torch.zeros_like(weight) for weight in weights]
    for name in row.weights:
        term = row.objective.terms(replace(batch, generator=generator()))[name]
        parts = torch.autograd.grad(term.value, weights, materialize_grads=True)
        assert any(bool((part != 0).any()) for part in parts), f"{name} has no gradient in the student's weights"
        expected = [sum_ + row.weights[name] * part for sum_, part in zip(expected, parts, strict=True)]
    loss_of(batch, row.objective).backward()
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-9, atol=1e-12)


@every_objective
def test_parameter_gradient_equals_finite_differences(row: Row) -> None:
    batch = smooth_batch()
    weights = weights_of(batch.student)
    gradients = torch.autograd.grad(loss_of(batch, row.objective), weights)
    step = 1e-6
    for weight, gradient in zip(weights, gradients, strict=True):
        for entry in range(0, weight.numel(), 3):
            flat, kept = weight.data.view(-1), float(weight.data.view(-1)[entry])
            flat[entry] = kept + step
            above = float(loss_of(batch, row.objective).detach())
            flat[entry] = kept - step
            below = float(loss_of(batch, row.objective).detach())
            flat[entry] = kept
            assert float(gradient.view(-1)[entry]) == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen teacher", "trainable teacher"])
@every_objective
def test_gradient_reaches_the_student_and_never_the_teacher(row: Row, frozen: bool) -> None:
    batch = smooth_batch()
    assert batch.teacher is not None
    batch.teacher.requires_grad_(not frozen)
    before = {name: value.clone() for name, value in batch.teacher.state_dict().items()}
    loss_of(batch, row.objective).backward()
    for name, weight in batch.student.named_parameters():
        assert weight.grad is not None and float(weight.grad.norm()) > 0, f"no gradient reaches the student's {name}"
    for name, weight in batch.teacher.named_parameters():
        assert weight.grad is None, f"a gradient was left on the teacher's {name}"
        assert weight.requires_grad is not frozen, f"requires_grad of the teacher's {name} was changed"
        assert torch.equal(weight, before[name]), f"the teacher's {name} changed"


@every_objective
def test_inputs_are_unchanged(row: Row) -> None:
    batch = smooth_batch()
    x, y = batch.x.clone(), batch.y.clone()
    loss_of(batch, row.objective).backward()
    assert torch.equal(batch.x, x) and torch.equal(batch.y, y), "the loss changed its input"
    assert not batch.x.requires_grad and batch.x.grad is None, "the loss left a gradient on its input"


class Repeated(Batch):
    """The same five images several times, each time under the same noise."""

    def noise(self, sigma: float, copies: int = 1) -> Tensor:
        once = Batch(self.student, self.teacher, self.x[:5], self.y[:5], self.generator).noise(sigma, copies)
        return once.repeat(1, len(self.x) // 5, 1, 1, 1)


@every_objective
def test_duplicated_batch_has_the_same_terms(row: Row) -> None:
    """On a linear network with two classes PGD ends in the same corner wherever it starts, so this holds for it too."""
    batch = batch_of(linear(0, classes=2), linear(1, classes=2), classes=2)
    for copies in (2, 3):
        x, y = batch.x.repeat(copies, 1, 1, 1), batch.y.repeat(copies)
        larger = Repeated(batch.student, batch.teacher, x, y, generator())
        once = Repeated(batch.student, batch.teacher, batch.x, batch.y, generator())
        assert values(larger, row.objective) == pytest.approx(values(once, row.objective), rel=1e-12)


class Padded(nn.Module):
    """A network with more classes, of probability 1e-130."""

    def __init__(self, model: nn.Module, more: int) -> None:
        super().__init__()
        self.model, self.more = model, more

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.model(x), (0, self.more), value=-300.0)


@every_objective
def test_classes_of_no_probability_change_no_term(row: Row) -> None:
    batch = smooth_batch()
    assert batch.teacher is not None
    padded = replace(batch, student=Padded(batch.student, 90), teacher=Padded(batch.teacher, 90))
    assert values(padded, row.objective) == pytest.approx(values(batch, row.objective), rel=1e-9)


@every_objective
def test_one_student_forward_in_train_mode(row: Row) -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)).double()
    calls: list[bool] = []
    student.register_forward_hook(lambda module, given, answer: calls.append(module.training))
    batch = batch_of(student.train(), network(1).eval())
    loss_of(batch, row.objective).backward()
    assert sum(calls) == 1, f"{sum(calls)} student forward passes in train mode, each updates the batch statistics"
    counter = student[2].num_batches_tracked
    assert int(counter) == 1, f"batch statistics were updated {int(counter)} times in one step"


@every_objective
def test_teacher_runs_once_or_not_at_all(row: Row) -> None:
    batch, calls = smooth_batch(), []
    assert batch.teacher is not None
    batch.teacher.register_forward_hook(lambda module, given, answer: calls.append(1))
    loss_of(batch, row.objective)
    assert len(calls) == int(row.objective.needs_teacher)
    if not row.objective.needs_teacher:
        assert values(replace(batch, teacher=None), row.objective) == values(batch, row.objective)


@every_objective
def test_same_generator_gives_the_same_terms(row: Row) -> None:
    batch = smooth_batch()
    torch.manual_seed(0)
    first = values(batch, row.objective)
    torch.manual_seed(1)
    assert values(batch, row.objective) == first, "a term depends on torch's global generator"


@every_objective
def test_identical_networks_have_no_distance_and_finite_gradients(row: Row) -> None:
    batch = batch_of(network(0), network(0))
    terms = row.objective.terms(batch)
    for name in set(terms) & {"kl", "iga", "transfer"}:
        assert float(terms[name].value.detach()) == pytest.approx(0, abs=1e-12), f"{name} of a network with itself"
    total(terms).backward()
    for name, weight in batch.student.named_parameters():
        assert weight.grad is not None and bool(weight.grad.isfinite().all()), f"gradient of {name} is not finite"


# --------------------------------------------------------------------------------------------------- what is particular


def test_input_gradient_of_a_linear_softmax_model() -> None:
    """grad_x CE(Wx + b, y) = W^T (p - e_y)."""
    batch = batch_of(linear(0), linear(1))
    logits, gradient = teacher_signal(batch.student, batch.x, batch.y)
    weight = batch.student[1].weight.detach()  # type: ignore[index]
    expected = (logits.softmax(1) - F.one_hot(batch.y, CLASSES)) @ weight
    torch.testing.assert_close(gradient.flatten(1), expected, rtol=1e-12, atol=1e-14)
    assert not gradient.requires_grad and not logits.requires_grad, "the teacher's signal carries a graph"


def test_alignment_of_linear_softmax_models() -> None:
    """Value in closed form, and its gradient in the student's bias: mean of (diag(p) - p p^T) W d / |d|."""
    batch = batch_of(linear(0), linear(1))
    sides = []
    for model in (batch.student, batch.teacher):
        assert model is not None
        weight, bias = model[1].weight.detach(), model[1].bias.detach()  # type: ignore[index]
        probability = (batch.x.flatten(1) @ weight.T + bias).softmax(1)
        sides.append((weight, probability, (probability - F.one_hot(batch.y, CLASSES)) @ weight))
    (weight, p, ours), (_, _, theirs) = sides
    gap = ours - theirs
    length = gap.norm(dim=1, keepdim=True)
    iga = Kdiga().terms(batch)["iga"].value
    assert float(iga.detach()) == pytest.approx(float(length.mean()), rel=1e-12)
    (slope,) = torch.autograd.grad(iga, [batch.student[1].bias])  # type: ignore[index]
    along = (gap / length) @ weight.T
    expected = (p * along - p * (p * along).sum(1, keepdim=True)).mean(0)
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)


def test_gradient_of_each_sample_is_its_own() -> None:
    batch = smooth_batch()
    x = batch.x.clone().requires_grad_(True)
    losses = F.cross_entropy(batch.student(x), batch.y, reduction="none")
    together = input_gradient(losses, x, create_graph=False)
    alone = [literal_slope(batch.student, image, int(label)) for image, label in zip(batch.x, batch.y, strict=True)]
    torch.testing.assert_close(together.flatten(1), torch.tensor(alone, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_iga_moves_every_layer_of_the_student() -> None:
    batch = batch_of(network(0, nn.ReLU), network(1, nn.ReLU))
    objective = Kdiga(lambda_ce=0, lambda_kl=0, lambda_iga=1)
    loss_of(batch, objective).backward()
    for index in (1, 3):
        gradient = batch.student[index].weight.grad  # type: ignore[index]
        assert gradient is not None and float(gradient.norm()) > 1e-3, f"layer {index} gets no gradient from alignment"


def test_a_step_along_the_gradient_aligns() -> None:
    batch, objective = smooth_batch(), Kdiga(lambda_ce=0, lambda_kl=0)
    optimizer = torch.optim.SGD(batch.student.parameters(), lr=0.05)
    gaps = []
    for _ in range(30):
        loss = loss_of(batch, objective)
        gaps.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gaps[-1] < 0.8 * gaps[0], f"minimising the alignment term does not align: {gaps[0]:.3f} -> {gaps[-1]:.3f}"


@pytest.mark.parametrize("count", [1, 5, 8])
def test_batch_frobenius_is_the_reference_scaling(count: int) -> None:
    """Frobenius norm of gradients of the batch-mean loss over B, which is RMS of the gaps over B^1.5."""
    batch = batch_of(network(0), network(1), count)
    gaps = literal_gaps(batch)
    rms = math.sqrt(sum(gap**2 for gap in gaps) / count)
    objective = Kdiga(lambda_iga=2.5, reduction="batch_frobenius")
    iga = values(batch, objective)["iga"]
    assert objective.terms(batch)["iga"].weight == 2.5
    assert 2.5 * iga == pytest.approx(2.5 * rms / count**1.5, rel=1e-9)

    sides = []
    for model in (batch.student, batch.teacher):
        assert model is not None
        x = batch.x.clone().requires_grad_(True)
        sides.append(torch.autograd.grad(F.cross_entropy(model(x), batch.y), x)[0])
    assert iga == pytest.approx(float((sides[0] - sides[1]).norm()) / count, rel=1e-9)


@pytest.mark.parametrize("reduction", ["per_sample_mean", "batch_frobenius"])
def test_alignment_is_symmetric_unsquared_and_zero_at_zero(reduction: str) -> None:
    a, b = (torch.randn(3, *SHAPE, generator=generator()) + shift for shift in (0.0, 1.0))
    assert torch.equal(alignment(a, b, reduction), alignment(b, a, reduction))  # type: ignore[arg-type]
    torch.testing.assert_close(alignment(3 * a, 3 * b, reduction), 3 * alignment(a, b, reduction))  # type: ignore[arg-type]
    same = a.clone().requires_grad_(True)
    value = alignment(same, a, reduction)  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(value, same)
    assert float(value.detach()) == 0 and bool(slope.isfinite().all()), "the norm has no finite gradient at zero"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_softened_kl_carries_temperature_squared(temperature: float) -> None:
    student, teacher = (3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(k)).double() for k in (0, 1))
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    plain = (p * (p / q).log()).sum(1).mean()
    assert float(softened_kl(student, teacher, temperature)) == pytest.approx(temperature**2 * float(plain), rel=1e-9)


def test_softened_kl_at_high_temperature_is_half_the_variance_of_the_gap() -> None:
    """T^2 KL -> (1 / 2C) |centred logit gap|^2: the factor T^2 keeps the size of the gradient."""
    student, teacher = (torch.randn(6, 5, generator=torch.Generator().manual_seed(k)).double() for k in (0, 1))
    gap = teacher - student
    limit = (gap - gap.mean(1, keepdim=True)).square().mean(1).mean() / 2
    assert float(softened_kl(student, teacher, 1e3)) == pytest.approx(float(limit), rel=5e-3)


def test_softened_kl_survives_certain_outputs() -> None:
    student = torch.tensor([[200.0, -200.0], [0.0, 0.0]], requires_grad=True)
    value = softened_kl(student, torch.tensor([[-200.0, 200.0], [300.0, -300.0]]), 1.0)
    value.backward()
    assert student.grad is not None and bool(value.isfinite() & student.grad.isfinite().all()), "KL overflows"


class WithStatistics(nn.Module):
    """What timm wants of a network: normalisation statistics, here those that change nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.num_classes, self.in_chans = model, CLASSES, 1
        self.pretrained_cfg = {"mean": (0.0,), "std": (1.0,)}

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_equals_timm(temperature: float) -> None:
    task = pytest.importorskip("timm.task", reason="this timm has no distillation task")
    batch = smooth_batch()
    assert batch.teacher is not None
    theirs = task.LogitDistillationTask(
        WithStatistics(batch.student),
        WithStatistics(batch.teacher),
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=0.3,
        distill_loss_weight=0.8,
        temperature=temperature,
        device=torch.device("cpu"),
        dtype=torch.float64,
        verbose=False,
    )(batch.x, batch.y)["loss"]
    ours = loss_of(batch, Kd(lambda_ce=0.3, lambda_kl=0.8, temperature=temperature))
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    weights = weights_of(batch.student)
    for a, b in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_without_alignment_a_whole_training_equals_kd_bit_for_bit() -> None:
    x = torch.rand((90, *SHAPE), generator=generator())
    y = (x.sum((1, 2, 3)) * 1.3).long() % CLASSES
    teacher = network(9).float()
    trained = []
    for objective in (Kd(temperature=2), Kdiga(temperature=2, lambda_iga=0), Kdiga(temperature=2, lambda_iga=0.1)):
        student = network(0).float()
        train(student, (x, y), objective, teacher=teacher, recipe=Recipe(epochs=4, batch_size=16), device="cpu")
        trained.append(torch.cat([weight.detach().ravel() for weight in student.parameters()]))
    assert torch.equal(trained[0], trained[1]), "kdiga with lambda_iga 0 differs from kd"
    assert not torch.equal(trained[0], trained[2]), "lambda_iga has no effect on a training"


def test_terms_of_weight_zero_cost_nothing() -> None:
    batch = smooth_batch()
    assert set(Kdiga(lambda_iga=0, lambda_kl=0).terms(batch)) == {"ce"}
    assert set(Kdiga(lambda_kl=0).terms(batch)) == {"ce", "iga"}
    assert set(Kd(lambda_kl=0).terms(batch)) == {"ce"}


class Slanted(nn.Module):
    """Logits (0, -m - v.delta, -m + v.delta) around a centre: same loss and loss gradient there for every v."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([slope, 0.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        tilt = (x - 0.5) @ self.slope
        return torch.stack([torch.zeros_like(tilt), -2 - tilt, -2 + tilt], dim=1)


def test_alignment_of_the_loss_does_not_see_every_margin() -> None:
    """All terms vanish although the student's radius is 2 / 50 and the teacher's is infinite: what kdiga cannot see."""
    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    batch = Batch(Slanted(50.0), Slanted(0.0), x, torch.tensor([0]), generator())
    terms = values(batch, Kdiga())
    assert terms["kl"] == pytest.approx(0, abs=1e-15) and terms["iga"] == pytest.approx(0, abs=1e-15)
    assert terms["ce"] == pytest.approx(math.log(1 + 2 * math.exp(-2)), rel=1e-12)
    inside, outside = (batch.student(x + torch.tensor([delta, 0.0])).argmax() for delta in (0.0399, 0.0401))
    assert int(inside) == 0 and int(outside) == 2


def test_attention_has_a_second_derivative() -> None:
    options = {"depth": 1, "embed_dim": 48, "num_heads": 3, "patch_size": 8}
    spec = ModelSpec(name="timm:vit_tiny_patch16_224", options=options, classes=4, shape=(3, 32, 32))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student, teacher = build(spec).train(), build(spec).eval()
    x = torch.rand((2, 3, 32, 32), generator=generator())
    terms = Kdiga().terms(Batch(student, teacher, x, torch.tensor([0, 1]), generator()))
    terms["iga"].value.backward()
    gradient = student.network.blocks[0].attn.qkv.weight.grad  # type: ignore[union-attr,index]
    assert float(gradient.norm()) > 0, "no gradient passes back through the attention"


def test_total_keeps_weights_apart() -> None:
    terms = {"a": Term(0.0, torch.tensor(5.0)), "b": Term(2.0, torch.tensor(3.0)), "c": Term(0.5, torch.tensor(-4.0))}
    assert float(total(terms)) == 4.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "kdiga", "lambda_iga": -1}, "lambda_iga"),
        ({"kind": "kdiga", "reduction": "sum"}, "reduction"),
        ({"kind": "kd", "temperature": 0}, "temperature"),
        ({"kind": "kd", "lambda_kl": "nan"}, "not a number"),
        ({"kind": "kd", "lambda_kl": "1e400"}, "too large"),
        ({"kind": "adversarial"}, "eps"),
        ({"kind": "adversarial", "eps": "0"}, "eps"),
        ({"kind": "adversarial", "eps": 0.1, "steps": 2.5}, "whole number"),
        ({"kind": "gaussian", "sigma": 0}, "sigma"),
        ({"kind": "consistency", "sigma": "-0.25"}, "sigma"),
        ({"kind": "consistency", "copies": 0}, "copies"),
        ({"kind": "consistency", "lam": -1}, "lam"),
        ({"kind": "smoothadv"}, "eps"),
        ({"kind": "smoothadv", "eps": 0.25, "copies": 0}, "copies"),
        ({"kind": "smoothadv", "eps": 0.25, "sigma": 0}, "sigma"),
        ({"kind": "crt", "alpha": 1.5}, "alpha"),
        ({"kind": "crt", "sigma": 0}, "sigma"),
        ({"kind": "kd", "sigma": -0.1}, "sigma"),
        ({"kind": "nothing"}, "kdiga"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(AnyObjective).validate_python(settings)


def test_settings_are_read_as_people_write_them() -> None:
    read = TypeAdapter(AnyObjective).validate_python({"kind": "adversarial", "eps": "8/255", "step_size": "2e-3"})
    assert read == Adversarial(eps=8 / 255, step_size=0.002)
