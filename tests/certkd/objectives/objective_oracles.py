"""Literal versions of every training objective: one sample and one pixel at a time."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from certkd.objectives import Kdiga
from certkd.objectives.base import Batch
from tests.certkd.objectives.objective_fixtures import CLASSES, generator
from tests.certkd.objectives.test_attacks import literal_pgd

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


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def divergence(target: list[float], given: list[float], temperature: float = 1.0) -> float:
    """T^2 KL(softmax(target / T) || softmax(given / T))."""
    p, q = log_softmax(target, temperature), log_softmax(given, temperature)
    return temperature**2 * sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def divergences(target: nn.Module, at: Tensor, student: nn.Module, x: Tensor, temperature: float = 1.0) -> list[float]:
    """KL of the student at x from a target at other images."""
    pairs = zip(at, x, strict=True)
    return [divergence(logits_of(target, a), logits_of(student, b), temperature) for a, b in pairs]


# ---------------------------------------------------------------------------------------------------- literal attacks

STEP = {"eps": 0.1, "steps": 12, "step_size": 0.03}


def start_of(x: Tensor, draws: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=draws, dtype=x.dtype) * 2 - 1


def torch_divergence(target: Tensor, given: Tensor) -> Tensor:
    p, q = target.log_softmax(0), given.log_softmax(0)
    return (p.exp() * (p - q)).sum()


def literal_attack(x: Tensor, loss: Callable[[int, Tensor], Tensor], noise: Tensor) -> Tensor:
    """PGD of ``STEP`` in the linf ball on a loss of (row, image), one image and one pixel at a time."""
    eps, found = STEP["eps"], []
    for row, (image, start) in enumerate(zip(x, noise, strict=True)):
        centre = image.ravel().tolist()
        point = [min(max(p + eps * n, 0.0), 1.0) for p, n in zip(centre, start.ravel().tolist(), strict=True)]
        for _ in range(int(STEP["steps"])):
            current = torch.tensor(point, dtype=x.dtype).reshape(image.shape).requires_grad_(True)
            signs = torch.autograd.grad(loss(row, current), current)[0].ravel().sign().tolist()
            moved = [p + STEP["step_size"] * s for p, s in zip(point, signs, strict=True)]
            point = [min(max(min(max(p, c - eps), c + eps), 0.0), 1.0) for p, c in zip(moved, centre, strict=True)]
        found.append(torch.tensor(point, dtype=x.dtype).reshape(image.shape))
    return torch.stack(found)


def attacked(batch: Batch, draws: torch.Generator | None = None) -> Tensor:
    """PGD of ``STEP`` on the student's cross-entropy."""
    noise = start_of(batch.x, draws or generator())
    return literal_pgd(batch.student, batch.x, batch.y, noise, STEP["eps"], int(STEP["steps"]), STEP["step_size"])


def farthest_from_teacher(batch: Batch) -> Tensor:
    """PGD of ``STEP`` on KL(t(z) || s(z))."""
    teacher, student = batch.teacher, batch.student
    assert teacher is not None

    def loss(row: int, z: Tensor) -> Tensor:
        return torch_divergence(teacher(z[None])[0], student(z[None])[0])

    return literal_attack(batch.x, loss, start_of(batch.x, generator()))


def farthest_from(target: nn.Module, batch: Batch) -> Tensor:
    """PGD of ``STEP`` on KL(target(x) || s(z))."""

    def loss(row: int, z: Tensor) -> Tensor:
        return torch_divergence(target(batch.x[row][None])[0].detach(), batch.student(z[None])[0])

    return literal_attack(batch.x, loss, start_of(batch.x, generator()))


def oracle_trades(batch: Batch) -> dict[str, float]:
    found = farthest_from(batch.student, batch)
    return {"ce": literal_ce(batch), "kl_self": mean(divergences(batch.student, batch.x, batch.student, found))}


# --------------------------------------------------------------------------------------------------- literal intervals


def interval(weights: list[float], bias: float, low: list[float], high: list[float]) -> tuple[float, float]:
    """Range of an affine function over a box."""
    bottom = bias + sum(w * (a if w > 0 else b) for w, a, b in zip(weights, low, high, strict=True))
    return bottom, bias + sum(w * (b if w > 0 else a) for w, a, b in zip(weights, low, high, strict=True))


def interval_margins(model: nn.Module, low: list[float], high: list[float], label: int) -> list[tuple[float, float]]:
    """Ranges of f_y - f_j over a box, layer by layer; the last layer is merged with the difference."""
    *hidden, last = [layer for layer in model if not isinstance(layer, nn.Flatten)]  # type: ignore[attr-defined]
    for layer in hidden:
        if isinstance(layer, nn.Linear):
            rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            low, high = map(list, zip(*(interval(w, b, low, high) for w, b in rows), strict=True))
        else:
            low, high = (layer(torch.tensor(side, dtype=torch.float64)).tolist() for side in (low, high))
    weight, bias = last.weight.tolist(), last.bias.tolist()
    return [
        interval([a - b for a, b in zip(weight[label], row, strict=True)], bias[label] - other, low, high)
        for row, other in zip(weight, bias, strict=True)
    ]


def cut(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def box_of(image: Tensor, eps: float) -> tuple[list[float], list[float]]:
    pixels = image.ravel().tolist()
    return [cut(p - eps) for p in pixels], [cut(p + eps) for p in pixels]


def interval_ce(batch: Batch, centres: Tensor, eps: float) -> float:
    """Cross-entropy of the worst logits: log sum_j exp(-least margin of j)."""
    worst = []
    for image, y in zip(centres, batch.y.tolist(), strict=True):
        margins = interval_margins(batch.student, *box_of(image, eps), y)
        worst.append(math.log(sum(math.exp(-low) for low, _ in margins)))
    return mean(worst)


def oracle_ibp(batch: Batch) -> dict[str, float]:
    return {"ce": literal_ce(batch), "ce_certified": interval_ce(batch, batch.x, 0.05)}


def oracle_mtl_ibp(batch: Batch) -> dict[str, float]:
    return {
        "ce_certified": interval_ce(batch, batch.x, STEP["eps"]),
        "ce_adversarial": literal_ce(replace(batch, x=attacked(batch))),
    }


def oracle_sabr(batch: Batch) -> dict[str, float]:
    room = 0.7 * STEP["eps"]
    centres = batch.x + (attacked(batch) - batch.x).clamp(-room, room)
    return {"ce_certified": interval_ce(batch, centres, 0.3 * STEP["eps"])}


def oracle_kdiga_certified(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    behind = []
    for image, y in zip(batch.x, batch.y.tolist(), strict=True):
        ours, theirs = (interval_margins(m, *box_of(image, 0.05), y) for m in (batch.student, batch.teacher))
        behind.append(max(0.0, *(t[1] - s[0] for s, t in zip(ours, theirs, strict=True))))
    bound = {"deficit": mean(behind), "ce_certified": interval_ce(batch, batch.x, 0.05)}
    return literal_kdiga(Kdiga(target="ce"))(batch) | bound


# ------------------------------------------------------------------------------------------------------- literal KDIGA


def jacobian(model: nn.Module, image: Tensor) -> tuple[list[float], list[list[float]]]:
    """Logits of an image, and each one's gradient."""
    pixels = image.clone().requires_grad_(True)
    logits = model(pixels[None])[0]
    return logits.tolist(), [torch.autograd.grad(f, pixels, retain_graph=True)[0].ravel().tolist() for f in logits]


def combine(coefficients: list[float], rows: list[list[float]]) -> list[float]:
    return [sum(c * row[k] for c, row in zip(coefficients, rows, strict=True)) for k in range(len(rows[0]))]


def aligned(o: Kdiga, model: nn.Module, image: Tensor, y: int, rival: int, direction: list[float]) -> list[float]:
    """What is compared between the networks, as one vector."""
    logits, rows = jacobian(model, image)
    hot = [float(k == y) for k in range(len(rows))]
    if o.target in ("ce", "ce_tempered"):
        temperature = 1.0 if o.target == "ce" else o.target_temperature
        soft = [math.exp(value) for value in log_softmax(logits, temperature)]
        return combine([p - h for p, h in zip(soft, hot, strict=True)], rows)
    if o.target == "margin":
        return combine([h - float(k == rival) for k, h in enumerate(hot)], rows)
    if o.target == "projection":
        return combine(direction, rows)
    average = combine([1 / len(rows)] * len(rows), rows)
    return [(a - b) / math.sqrt(len(rows) - 1) for row in rows for a, b in zip(row, average, strict=True)]


def size(gap: list[float], o: Kdiga) -> float:
    length = sum(abs(g) for g in gap) if o.norm == 1 else math.sqrt(sum(g * g for g in gap))
    return length**2 if o.squared else length


def difference(model: nn.Module, centre: Tensor, ahead: Tensor) -> list[float]:
    front, back = logits_of(model, ahead), logits_of(model, 2 * centre - ahead)
    return [a - b for a, b in zip(front, back, strict=True)]


def literal_kdiga(o: Kdiga) -> Callable[[Batch], dict[str, float]]:
    def oracle(batch: Batch) -> dict[str, float]:
        teacher, draws, named = batch.teacher, generator(), {o.point, o.kl_point}
        assert teacher is not None
        points = {"clean": batch.x}
        if "random" in named:
            points["random"] = batch.x + STEP["eps"] * start_of(batch.x, draws)
        if "adversarial" in named:
            points["adversarial"] = attacked(batch, draws)
        kl_at, iga_at = points[o.kl_point or o.point], points[o.point]
        directions = torch.randn((len(batch.x), CLASSES), generator=draws, dtype=batch.x.dtype)
        gaps, kls = [], []
        for row, y in enumerate(batch.y.tolist()):
            said, at_kl = (logits_of(teacher, image[row]) for image in (iga_at, kl_at))
            rival = max((k for k in range(CLASSES) if k != y), key=said.__getitem__)
            direction = ((directions[row] - directions[row].mean()) / math.sqrt(CLASSES - 1)).tolist()
            if o.target == "finite_difference":
                ours, theirs = (difference(m, batch.x[row], iga_at[row]) for m in (batch.student, teacher))
                gap = divergence(theirs, ours)
            else:
                ours, theirs = (aligned(o, m, iga_at[row], y, rival, direction) for m in (batch.student, teacher))
                gap = size([a - b for a, b in zip(ours, theirs, strict=True)], o)
            counted = o.mask == "all", o.mask == "all"
            right = [max(range(CLASSES), key=logits.__getitem__) == y for logits in (said, at_kl)]
            keep_gap, keep_kl = (a or b for a, b in zip(counted, right, strict=True))
            gaps.append(gap * keep_gap)
            kls.append(divergence(at_kl, logits_of(batch.student, kl_at[row]), o.temperature) * keep_kl)
        ce_at = points["random"] if o.point == "random" else batch.x
        return {"ce": literal_ce(replace(batch, x=ce_at)), "kl": mean(kls), "iga": mean(gaps)}

    return oracle


# ------------------------------------------------------------------------------------ literal adversarial distillation


def igdm(batch: Batch, found: Tensor) -> float:
    assert batch.teacher is not None
    pairs = zip(batch.x, found, strict=True)
    sides = [[difference(m, x, a) for m in (batch.teacher, batch.student)] for x, a in pairs]
    return mean([divergence(theirs, ours) for theirs, ours in sides])


def trusted(batch: Batch, found: Tensor, power: float) -> list[float]:
    assert batch.teacher is not None
    labels = zip(found, batch.y.tolist(), strict=True)
    return [math.exp(log_softmax(logits_of(batch.teacher, image))[y]) ** power for image, y in labels]


def distrust(batch: Batch, found: Tensor, power: float) -> float:
    """mean_i (1 - w_i) KL(s(x) || s(x'))."""
    own = divergences(batch.student, batch.x, batch.student, found)
    return mean([(1 - w) * kl for w, kl in zip(trusted(batch, found, power), own, strict=True)])


def oracle_ard(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    kl = divergences(batch.teacher, batch.x, batch.student, attacked(batch), 5.0)
    return {"kl_adversarial": mean(kl), "ce": literal_ce(batch)}


def oracle_ard_shao(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    found = attacked(batch)
    return {"ce": literal_ce(batch), "kl": mean(divergences(batch.teacher, found, batch.student, found))}


def oracle_rslad(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    found = farthest_from(batch.teacher, batch)
    return {
        "kl_adversarial": mean(divergences(batch.teacher, batch.x, batch.student, found)),
        "kl_clean": mean(divergences(batch.teacher, batch.x, batch.student, batch.x)),
        "igdm": igdm(batch, found),
    }


def oracle_iad(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    found = attacked(batch)
    kl = divergences(batch.teacher, batch.x, batch.student, found)
    return {"kl_adversarial": mean(kl), "kl_self": distrust(batch, found, 0.4)}


def oracle_iad_paper(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    found = attacked(batch)
    kl = divergences(batch.teacher, batch.x, batch.student, found)
    weighed = [w * value for w, value in zip(trusted(batch, found, 0.4), kl, strict=True)]
    return {"kl_adversarial": mean(weighed), "kl_self": distrust(batch, found, 0.4)}


def oracle_adaad(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    found = farthest_from_teacher(batch)
    return {
        "kl_adversarial": mean(divergences(batch.teacher, found, batch.student, found)),
        "kl_clean": mean(divergences(batch.teacher, batch.x, batch.student, batch.x)),
        "kl_self": distrust(batch, found, 0.2),
        "igdm": igdm(batch, found),
    }


def oracle_advfunmatch(batch: Batch) -> dict[str, float]:
    return {"kl_adversarial": oracle_adaad(batch)["kl_adversarial"]}


def oracle_akd(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    found = attacked(batch)
    kl = divergences(batch.teacher, found, batch.student, found, 2.0)
    return {"ce_adversarial": literal_ce(replace(batch, x=found)), "kl_adversarial": mean(kl)}


def oracle_mtard(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None and batch.natural_teacher is not None
    found = attacked(batch)
    return {
        "kl_adversarial": mean(divergences(batch.teacher, found, batch.student, found)),
        "kl_clean": mean(divergences(batch.natural_teacher, batch.x, batch.student, batch.x)),
    }


def oracle_igd(batch: Batch) -> dict[str, float]:
    assert batch.natural_teacher is not None
    gaps = []
    for x, y in zip(batch.x, batch.y.tolist(), strict=True):
        a, b = literal_slope(batch.student, x, y), literal_slope(batch.natural_teacher, x, y)
        lengths = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
        gaps.append(1 - sum(v * w for v, w in zip(a, b, strict=True)) / lengths)
    return {"ce_adversarial": literal_ce(replace(batch, x=attacked(batch))), "igd": mean(gaps)}
