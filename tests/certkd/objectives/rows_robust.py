"""Rows of the field's further methods of robust training and distillation, with their literal versions."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from certkd.objectives import Cat, Crg, Mld, Pag, Rfd, Saad, Squeeze, Uad
from certkd.objectives.base import Batch
from tests.certkd.objectives.objective_fixtures import CLASSES, generator
from tests.certkd.objectives.objective_oracles import (
    STEP,
    attacked,
    difference,
    divergence,
    divergences,
    farthest_from,
    literal_attack,
    literal_ce,
    literal_slope,
    log_softmax,
    logits_of,
    mean,
    start_of,
    torch_divergence,
)
from tests.certkd.objectives.objective_rows import Row
from tests.certkd.objectives.rows_certified import hidden


def soft_ce(target: list[float], given: list[float]) -> float:
    pairs = zip(log_softmax(target), log_softmax(given), strict=True)
    return -sum(math.exp(t) * s for t, s in pairs)


def oracle_mld(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    found = farthest_from(batch.teacher, batch)
    pairs = zip(batch.x, found, strict=True)
    soft = [soft_ce(logits_of(batch.teacher, x), logits_of(batch.student, z)) for x, z in pairs]
    return {"ce_likelihood": mean(soft), "ce_adversarial": literal_ce(replace(batch, x=found))}


def both_ways(one: list[float], other: list[float]) -> float:
    return (divergence(one, other) + divergence(other, one)) / 2


def literal_pair(model: nn.Module, image: Tensor, noises: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Two points of the ball that climb the symmetric divergence of their outputs, one pixel at a time."""
    eps, centre = STEP["eps"], image.ravel().tolist()
    points = []
    for noise in noises:
        moved = zip(centre, noise.ravel().tolist(), strict=True)
        points.append([min(max(c + eps * n, 0.0), 1.0) for c, n in moved])
    for _ in range(int(STEP["steps"])):
        both = [torch.tensor(p, dtype=image.dtype).reshape(image.shape).requires_grad_(True) for p in points]
        first, second = (model(z[None])[0] for z in both)
        loss = torch_divergence(first, second) + torch_divergence(second, first)
        slopes = [slope.ravel().tolist() for slope in torch.autograd.grad(loss, both)]
        for point, slope in zip(points, slopes, strict=True):
            for k, (c, s) in enumerate(zip(centre, slope, strict=True)):
                stepped = point[k] + STEP["step_size"] * ((s > 0) - (s < 0))
                point[k] = min(max(min(max(stepped, c - eps), c + eps), 0.0), 1.0)
    return [torch.tensor(point, dtype=image.dtype).reshape(image.shape) for point in points]


def oracle_squeeze(batch: Batch) -> dict[str, float]:
    noise = start_of(torch.stack([batch.x, batch.x], 1), generator())
    values = []
    for row, (image, y) in enumerate(zip(batch.x, batch.y.tolist(), strict=True)):
        points = [image, *literal_pair(batch.student, image, (noise[row, 0], noise[row, 1]))]
        ranked = sorted((logits_of(batch.student, z) for z in points), key=lambda logits: log_softmax(logits)[y])
        values.append(both_ways(ranked[0], ranked[-1]))
    return {"ce": literal_ce(batch), "squeeze": mean(values)}


def oracle_cat(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    found = farthest_from(batch.student, batch)
    return {
        "ce": literal_ce(batch),
        "kl_self": mean(divergences(batch.student, batch.x, batch.student, found)),
        "kl_peer": mean(divergences(batch.teacher, found, batch.student, found)),
    }


def farthest_from_linear_teacher(batch: Batch) -> Tensor:
    """PGD on KL(t*(z) || s(z)), t* the teacher at x with the logit of y moved by its gradient."""
    assert batch.teacher is not None
    fixed = []
    for image, y in zip(batch.x, batch.y.tolist(), strict=True):
        pixels = image.clone().requires_grad_(True)
        logits = batch.teacher(pixels[None])[0]
        fixed.append((logits.detach(), torch.autograd.grad(logits[y], pixels)[0]))

    def loss(row: int, z: Tensor) -> Tensor:
        logits, slope = fixed[row]
        hot = torch.eye(CLASSES, dtype=z.dtype)[int(batch.y[row])]
        moved = logits + hot * ((z - batch.x[row]) * slope).sum()
        return torch_divergence(moved, batch.student(z[None])[0])

    return literal_attack(batch.x, loss, start_of(batch.x, generator()))


def oracle_saad(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    found = farthest_from_linear_teacher(batch)
    weights, gaps = [], []
    for image, z in zip(batch.x, found, strict=True):
        logs = log_softmax(logits_of(batch.teacher, z))
        weights.append(-sum(math.exp(p) * p for p in logs) / math.log(CLASSES))
        gaps.append(divergence(*(difference(m, image, z) for m in (batch.teacher, batch.student))))
    far = divergences(batch.teacher, found, batch.student, found)
    near = divergences(batch.teacher, batch.x, batch.student, batch.x)
    return {
        "kl_adversarial": mean([w * kl for w, kl in zip(weights, far, strict=True)]),
        "kl_clean": mean([(1 - w) * kl for w, kl in zip(weights, near, strict=True)]),
        "igdm": mean([w * gap for w, gap in zip(weights, gaps, strict=True)]),
    }


def cosine(a: list[float], b: list[float]) -> float:
    lengths = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(v * w for v, w in zip(a, b, strict=True)) / lengths if lengths else 0.0


def oracle_pag(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    draws = torch.rand((len(batch.x),), generator=generator(), dtype=batch.x.dtype)
    gaps = []
    for image, draw in zip(batch.x, draws.tolist(), strict=True):
        ours, theirs = (literal_slope(m, image, int(draw * CLASSES)) for m in (batch.student, batch.teacher))
        gaps.append(1 - cosine(ours, theirs))
    return {"ce": literal_ce(batch), "pag": mean(gaps)}


def deviation(values: list[float]) -> float:
    average = mean(values)
    return math.sqrt(mean([(v - average) ** 2 for v in values]))


def literal_varied(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images of one channel with another mean and deviation each."""
    each = [image.ravel().tolist() for image in images]
    statistics = [[mean(values) for values in each], [deviation(values) for values in each]]
    drawn = []
    for known in statistics:
        noise = torch.randn((len(each), 1), generator=draws, dtype=images.dtype).ravel().tolist()
        drawn.append([value + n * deviation(known) for value, n in zip(known, noise, strict=True)])
    made = []
    for values, m, s, to_m, to_s in zip(each, *statistics, *drawn, strict=True):
        made.append([min(max((v - m) / s * to_s + to_m, 0.0), 1.0) for v in values])
    return torch.tensor(made, dtype=images.dtype).reshape(images.shape)


def oracle_uad(batch: Batch) -> dict[str, float]:
    draws = generator()
    varied = literal_varied(attacked(batch, draws), draws)
    kls, gaps = [], []
    for image, other, y in zip(batch.x, varied, batch.y.tolist(), strict=True):
        clean, found = logits_of(batch.student, image), log_softmax(logits_of(batch.student, other))
        right = max(range(CLASSES), key=clean.__getitem__) == y
        kls.append(divergence(clean, found) if right else -found[y])
        slopes = (literal_slope(batch.student, z, y) for z in (image, other))
        gaps.append(math.sqrt(sum((a - b) ** 2 for a, b in zip(*slopes, strict=True))))
    return {"ce": literal_ce(batch), "kl_distribution": mean(kls), "gradient": mean(gaps)}


def features_at(batch: Batch, images: Tensor) -> list[list[list[float]]]:
    """Features of student and teacher, by image."""
    assert batch.teacher is not None
    return [[hidden(model, image) for image in images] for model in (batch.student, batch.teacher)]


def mean_square(ours: list[list[float]], theirs: list[list[float]]) -> float:
    rows = zip(ours, theirs, strict=True)
    return mean([(a - b) ** 2 for one, other in rows for a, b in zip(one, other, strict=True)])


def oracle_rfd(batch: Batch) -> dict[str, float]:
    found = attacked(batch)
    return {"ce_adversarial": literal_ce(replace(batch, x=found)), "features": mean_square(*features_at(batch, found))}


def oracle_crg(batch: Batch) -> dict[str, float]:
    found = attacked(batch)
    ours, theirs = features_at(batch, found)
    graphs = []
    for features in (ours, theirs):
        channels = [list(channel) for channel in zip(*features, strict=True)]
        graphs.append([[cosine(a, b) for b in channels] for a in channels])
    return {
        "ce_adversarial": literal_ce(replace(batch, x=found)),
        "vertices": mean_square(ours, theirs),
        "edges": mean_square(*graphs),
    }


ROBUST_ROWS = (
    Row(Mld(alpha=0.7, **STEP), oracle_mld, {"ce_likelihood": 0.7, "ce_adversarial": 1 - 0.7}, teacher_forwards=2),
    Row(Squeeze(beta=2, **STEP), oracle_squeeze, {"ce": 1.0, "squeeze": 2.0}, 3),
    Row(
        Cat(share=0.8, beta=2, **STEP),
        oracle_cat,
        {"ce": 0.2, "kl_self": 0.4, "kl_peer": 0.8},
        2,
        1,
        zero=frozenset({"kl_peer"}),
    ),
    Row(
        Saad(lambda_igdm=0.7, lambda_clean=0.4, **STEP),
        oracle_saad,
        {"kl_adversarial": 1.0, "kl_clean": 0.4, "igdm": 0.7},
        3,
        4,
        zero=frozenset({"kl_adversarial", "kl_clean", "igdm"}),
        blind=False,
    ),
    Row(
        Pag(lambda_pag=0.6),
        oracle_pag,
        {"ce": 1.0, "pag": 0.6},
        teacher_forwards=1,
        zero=frozenset({"pag"}),
        blind=False,
    ),
    Row(Uad(beta=2, lambda_gradient=0.3, **STEP), oracle_uad, {"ce": 1.0, "kl_distribution": 2.0, "gradient": 0.3}, 2),
    Row(
        Crg(lambda_vertices=0.6, lambda_edges=0.7, **STEP),
        oracle_crg,
        {"ce_adversarial": 1.0, "vertices": 0.6, "edges": 0.7},
        teacher_forwards=1,
        zero=frozenset({"vertices", "edges"}),
    ),
    Row(
        Rfd(lambda_features=0.6, **STEP),
        oracle_rfd,
        {"ce_adversarial": 1.0, "features": 0.6},
        teacher_forwards=1,
        zero=frozenset({"features"}),
    ),
)
