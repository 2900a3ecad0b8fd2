"""Settings of KDIGA that mean the same or are refused, and students whose gradients are hard to differentiate."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from certkd.config.settings import OptimizerConfig, Recipe
from certkd.objectives import Kdiga
from certkd.objectives.base import Batch
from certkd.objectives.kdiga import Target
from tests.certkd.objectives.objective_fixtures import (
    CLASSES,
    SHAPE,
    anew,
    batch_of,
    generator,
    loss_of,
    network,
    smooth_batch,
    values,
)
from tests.certkd.objectives.test_robust_distillation import STEP
from tests.training import train
from verifiers.core.errors import InputError
from verifiers.core.quantities import Norm

# ---------------------------------------------------------------------------------------------------- settings of kdiga


def jacobians(model: nn.Module, x: Tensor) -> Tensor:
    """Gradient of each logit of each image: (batch, classes, pixels)."""
    pixels = x.clone().requires_grad_(True)
    rows = [torch.autograd.grad(f.sum(), pixels, retain_graph=True)[0].flatten(1) for f in model(pixels).T]
    return torch.stack(rows, dim=1)


def iga(batch: Batch, **settings: Any) -> float:
    return values(batch, Kdiga(lambda_iga=1, **settings))["iga"]


def test_many_projections_are_the_jacobian() -> None:
    """E of the squared gap along v = N(0, I) less its mean is that of all centred logits, both over C - 1."""
    batch = smooth_batch()
    many = replace(batch, x=batch.x.repeat(2000, 1, 1, 1), y=batch.y.repeat(2000))
    whole = iga(batch, target="jacobian", squared=True)
    assert batch.teacher is not None
    gap = jacobians(batch.student, batch.x) - jacobians(batch.teacher, batch.x)
    centred = gap - gap.mean(1, keepdim=True)
    assert whole == pytest.approx(float(centred.square().sum((1, 2)).mean()) / (CLASSES - 1), rel=1e-9)
    assert iga(many, target="projection", squared=True) == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("reduced", ["per_sample_mean", "batch_frobenius"])
@pytest.mark.parametrize("target", ["ce", "ce_tempered", "margin", "projection", "jacobian", "finite_difference"])
def test_alignment_weighs_the_same_at_any_number_of_classes(target: Target, reduced: Any) -> None:
    """Linear networks with independent weights of size 1 for each class, so that all classes are alive."""
    if target == "finite_difference":
        settings: dict[str, Any] = {"point": "random", "eps": 0.1}
    else:
        settings = {"reduction": reduced}
    gaps = {}
    for classes in (3, 10, 100):
        batch = many_classes(classes)
        gaps[classes] = iga(batch, target=target, **settings)
    expected = pytest.approx(gaps[10], rel=0.25)  # ce lacks p_y of a sample's gradient, 1 / 3 of it at three classes
    assert gaps[100] == expected and (gaps[3] == expected or target in ("ce", "ce_tempered", "finite_difference")), gaps


def many_classes(classes: int, pixels: int = 200) -> Batch:
    """Student and teacher of independent N(0, 1 / pixels) weights."""
    draws = torch.Generator().manual_seed(classes)
    student, teacher = (nn.Linear(pixels, classes).double() for _ in range(2))
    for model in (student, teacher):
        model.weight.data = torch.randn((classes, pixels), generator=draws, dtype=torch.float64) / pixels**0.5
        model.bias.data.zero_()
    x = torch.rand((400, pixels), generator=draws, dtype=torch.float64)
    return Batch(student, teacher, x, torch.arange(400) % classes, generator())


def test_tempered_cross_entropy_between_its_limits() -> None:
    batch = smooth_batch()
    assert batch.teacher is not None
    assert iga(batch, target="ce_tempered", target_temperature=1) == iga(batch, target="ce")
    gap = jacobians(batch.student, batch.x) - jacobians(batch.teacher, batch.x)
    of_label = gap[torch.arange(len(batch.y)), batch.y]
    limit = (of_label[:, None] - gap).sum(1) / CLASSES  # (1 / C) sum over k of the gradients of f_y - f_k
    found = iga(batch, target="ce_tempered", target_temperature=1e4)
    assert found == pytest.approx(float(limit.norm(dim=1).mean()), rel=1e-3)


def test_the_margin_is_to_the_teachers_runner_up_for_both() -> None:
    batch = batch_of(network(0), network(1), 12)
    assert batch.teacher is not None
    with torch.no_grad():
        rivals = [m(batch.x).scatter(1, batch.y[:, None], -torch.inf).argmax(1) for m in (batch.teacher, batch.student)]
    assert not torch.equal(*rivals), "both networks have the same runners-up: the test sees nothing"
    gap, rows = jacobians(batch.student, batch.x) - jacobians(batch.teacher, batch.x), torch.arange(12)
    expected = (gap[rows, batch.y] - gap[rows, rivals[0]]).norm(dim=1).mean()
    assert iga(batch, target="margin") == pytest.approx(float(expected), rel=1e-9)


def test_lambda_iga_rises_over_its_ramp() -> None:
    batch = smooth_batch()
    objective = Kdiga(lambda_iga=2.0, ramp=0.5)
    weights = [objective.terms(replace(anew(batch), progress=p))["iga"].weight for p in (0.125, 0.25, 0.5, 1.0)]
    assert weights == [0.5, 1.0, 2.0, 2.0]
    assert Kdiga(lambda_iga=2.0).terms(replace(anew(batch), progress=0.01))["iga"].weight == 2.0


def test_eps_of_the_points_grows_over_its_ramp() -> None:
    batch = smooth_batch()
    for point in ("random", "adversarial"):
        grows = Kdiga(target="ce", point=point, eps=0.1, eps_ramp=0.5)  # type: ignore[arg-type]
        for progress, eps in ((0.125, 0.025), (0.25, 0.05), (0.75, 0.1)):
            early = grows.terms(replace(anew(batch), progress=progress))
            still = Kdiga(target="ce", point=point, eps=eps).terms(anew(batch))  # type: ignore[arg-type]
            assert {n: float(t.value.detach()) for n, t in early.items()} == pytest.approx(
                {n: float(t.value.detach()) for n, t in still.items()}
            )


def test_the_attack_keeps_to_the_ball_of_its_norm() -> None:
    seen: list[Tensor] = []
    batch = smooth_batch()
    assert batch.teacher is not None
    batch.teacher.register_forward_hook(lambda module, given, answer: seen.append(given[0].detach()))
    values(batch, Kdiga(target="ce", point="adversarial", eps=0.3, attack_norm=Norm.L2))
    (found,) = seen
    lengths = (found - batch.x).flatten(1).norm(dim=1)
    assert bool((lengths <= 0.3 + 1e-9).all()) and float(lengths.max()) > 0.25
    assert float((found - batch.x).abs().max()) > 0.13, "of no pixel more than 0.3 / sqrt(6): it is not an l2 attack"


def test_a_moved_kl_alone_is_the_authors_ard() -> None:
    batch = smooth_batch()
    alone = values(batch, Kdiga(lambda_iga=0, kl_point="adversarial", **STEP))
    assert alone["kl"] != values(batch, Kdiga(lambda_iga=0))["kl"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": "batch_frobenius", "norm": 1}, "batch_frobenius is of the norm 2, not squared"),
        ({"reduction": "batch_frobenius", "squared": True}, "batch_frobenius is of the norm 2, not squared"),
        (
            {"reduction": "batch_frobenius", "target": "finite_difference", "point": "random", "eps": 0.1},
            "finite_difference has none",
        ),
        ({"target": "finite_difference", "eps": 0.1}, "point random or adversarial"),
        ({"point": "random"}, "needs an eps"),
        ({"kl_point": "adversarial"}, "needs an eps"),
        ({"ramp": 1.5}, "ramp"),
    ],
)
def test_settings_of_kdiga_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Kdiga(**settings)


# -------------------------------------------------------------------------------------------------- second derivatives


class Attending(nn.Module):
    """Rows of the image as tokens of one attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x[:, 0])
        return self.last(self.attend(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def timm_vit() -> nn.Module:
    models = pytest.importorskip("timm.models.vision_transformer")
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    return models.VisionTransformer(**sizes, in_chans=1, num_classes=CLASSES)


class Coloured(nn.Module):
    """torchvision's vision transformer on grey images."""

    def __init__(self) -> None:
        super().__init__()
        models = pytest.importorskip("torchvision.models.vision_transformer")
        self.network = models.VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=CLASSES)
        self.network.heads.head.weight.data.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("target", ["ce", "projection", "jacobian"])
@pytest.mark.parametrize("make", [Attending, timm_vit, Coloured], ids=["attention", "timm", "torchvision"])
def test_attention_is_aligned(make: Any, target: Target) -> None:
    """The gradient of the alignment term, through attention in train mode, is that of finite differences."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student, teacher = make().double().train(), make().double().eval()
    x = torch.rand((3, 1, 8, 8), generator=generator(), dtype=torch.float64)
    batch = Batch(student, teacher, x, torch.tensor([0, 1, 2]), generator())
    objective = Kdiga(target=target, lambda_ce=0, lambda_kl=0, lambda_iga=1)
    name, weight = next(found for found in student.named_parameters() if found[0].endswith("weight"))
    for other_name, other in student.named_parameters():
        if "attn.qkv.weight" in other_name or "in_proj_weight" in other_name:
            name, weight = other_name, other
    (slope,) = torch.autograd.grad(loss_of(batch, objective), weight)
    along, kept, step = (
        torch.randn(weight.shape, generator=generator(), dtype=torch.float64),
        weight.detach().clone(),
        1e-5,
    )
    ends = []
    for sign in (1, -1):
        weight.data.copy_(kept + sign * step * along)
        ends.append(float(loss_of(batch, objective).detach()))
    expected = (ends[0] - ends[1]) / (2 * step)
    assert abs(expected) > 1e-6, f"{name} has no part in the alignment: the test sees nothing"
    assert float((slope * along).sum()) == pytest.approx(expected, rel=1e-4)


class Once(torch.autograd.Function):
    """tanh with a first derivative only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return slope * (1 - y * y)


class OnceTanh(nn.Module):
    """``Once`` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


def test_finite_differences_need_no_second_derivative() -> None:
    x = torch.rand((60, *SHAPE), generator=generator())
    y = (x.sum((1, 2, 3)) * 1.3).long() % CLASSES
    settings: dict[str, Any] = {
        "recipe": Recipe(epochs=10, batch_size=16, optimizer=OptimizerConfig(rate=0.02)),
        "device": "cpu",
    }
    student, teacher = network(0, OnceTanh).float(), network(1).float()
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(InputError, match=r"second derivatives.*target: finite_difference"):
        train(student, (x, y), Kdiga(target="ce"), teacher=teacher, **settings)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    objective = Kdiga(target="finite_difference", point="adversarial", lambda_ce=0, lambda_kl=0, eps=0.2, steps=3)
    result = train(student, (x, y), objective, teacher=teacher, **settings)
    gaps = [record["terms"]["iga"] for record in result.history]
    assert gaps[-1] < 0.9 * gaps[0], f"training does not align: {gaps}"
