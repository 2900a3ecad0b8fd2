"""What is particular to distillation and to the alignment of input gradients."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from certkd.config.settings import Recipe
from certkd.networks.builders import ModelSpec, build
from certkd.objectives import Adversarial, AnyObjective, Kd, Kdiga
from certkd.objectives.base import Batch, Term, total
from certkd.objectives.gradients import input_gradient, reduced
from certkd.objectives.kd import softened_kl
from tests.certkd.objectives.objective_fixtures import (
    CLASSES,
    SHAPE,
    batch_of,
    generator,
    linear,
    loss_of,
    network,
    smooth_batch,
    values,
    weights_of,
)
from tests.certkd.objectives.objective_oracles import literal_gaps, literal_slope
from tests.training import train


def test_input_gradient_of_a_linear_softmax_model() -> None:
    """grad_x CE(Wx + b, y) = W^T (p - e_y)."""
    batch = batch_of(linear(0), linear(1))
    x = batch.x.clone().requires_grad_(True)
    logits = batch.student(x)
    gradient = input_gradient(F.cross_entropy(logits, batch.y, reduction="none"), x, create_graph=False)
    expected = (logits.softmax(1) - F.one_hot(batch.y, CLASSES)) @ batch.student[1].weight  # type: ignore[index]
    torch.testing.assert_close(gradient.flatten(1), expected.detach(), rtol=1e-12, atol=1e-14)
    assert not gradient.requires_grad, "a gradient that is not differentiated again carries a graph"


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
    iga = Kdiga(target="ce").terms(batch)["iga"].value
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
    objective = Kdiga(target="ce", lambda_ce=0, lambda_kl=0, lambda_iga=1)
    loss_of(batch, objective).backward()
    for index in (1, 3):
        gradient = batch.student[index].weight.grad  # type: ignore[index]
        assert gradient is not None and float(gradient.norm()) > 1e-3, f"layer {index} gets no gradient from alignment"


def test_a_step_along_the_gradient_aligns() -> None:
    batch, objective = smooth_batch(), Kdiga(target="ce", lambda_ce=0, lambda_kl=0)
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
    objective = Kdiga(target="ce", lambda_iga=2.5, reduction="batch_frobenius")
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
@pytest.mark.parametrize("norm", [1, 2])
def test_alignment_grows_linearly_and_has_a_gradient_at_zero(reduction: str, norm: int) -> None:
    gap = torch.randn(3, 6, generator=generator())
    for squared, power in ((False, 1), (True, 2)):
        if reduction == "per_sample_mean":
            once, thrice = (reduced(size * gap, norm, squared, reduction, None) for size in (1, -3))  # type: ignore[arg-type]
            torch.testing.assert_close(thrice, 3**power * once)
        zero = torch.zeros(3, 6, requires_grad=True)
        value = reduced(zero, norm, squared, reduction, None)  # type: ignore[arg-type]
        (slope,) = torch.autograd.grad(value, zero)
        assert float(value.detach()) == 0 and bool(slope.isfinite().all()), "no finite gradient at a gap of zero"


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
    for objective in (
        Kd(temperature=2),
        Kdiga(target="ce", temperature=2, lambda_iga=0),
        Kdiga(target="ce", temperature=2, lambda_iga=0.1),
    ):
        student = network(0).float()
        train(student, (x, y), objective, teacher=teacher, recipe=Recipe(epochs=4, batch_size=16), device="cpu")
        trained.append(torch.cat([weight.detach().ravel() for weight in student.parameters()]))
    assert torch.equal(trained[0], trained[1]), "kdiga with lambda_iga 0 differs from kd"
    assert not torch.equal(trained[0], trained[2]), "lambda_iga has no effect on a training"


def test_terms_of_weight_zero_cost_nothing() -> None:
    batch = smooth_batch()
    assert set(Kdiga(target="ce", lambda_iga=0, lambda_kl=0).terms(batch)) == {"ce"}
    assert set(Kdiga(target="ce", lambda_kl=0).terms(batch)) == {"ce", "iga"}
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
    terms = values(batch, Kdiga(target="ce"))
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
    terms = Kdiga(target="ce").terms(Batch(student, teacher, x, torch.tensor([0, 1]), generator()))
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
