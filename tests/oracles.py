"""Slow literal versions of what the verifiers compute, used by tests only: plain numpy, one sample at a time.

A multilayer perceptron is a list of (weight, bias) pairs with a ReLU between each two; a ball is (centre, eps, norm)
with norm one of "linf", "l2", "l1", and stands for the ball intersected with the image box [0, 1]^d.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from torch import nn

Array = np.ndarray
Layers = Sequence[tuple[Array, Array]]
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def layers_of(network: nn.Module) -> list[tuple[Array, Array]]:
    """Weights and biases of the linear layers of a perceptron, in float64."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in linear]


def forward(layers: Layers, x: Array) -> Array:
    """Logits of one image."""
    for weight, bias in layers[:-1]:
        x = np.maximum(weight @ x + bias, 0)
    return layers[-1][0] @ x + layers[-1][1]


def box(x: Array, eps: float) -> tuple[Array, Array]:
    """The linf ball within the image box."""
    return np.maximum(x - eps, 0), np.minimum(x + eps, 1)


def interval_minimum(layers: Layers, x: Array, eps: float, rows: Array) -> Array:
    """Interval bounds of rows @ logits over the linf ball, neuron by neuron; rows merge into the last layer."""
    low, high = box(x, eps)
    merged = [*layers[:-1], (rows @ layers[-1][0], rows @ layers[-1][1])]
    for k, (weight, bias) in enumerate(merged):
        low, high = _interval_affine(weight, bias, low, high)
        if k < len(merged) - 1:
            low, high = np.maximum(low, 0), np.maximum(high, 0)
    return low


def _interval_affine(weight: Array, bias: Array, low: Array, high: Array) -> tuple[Array, Array]:
    lows, highs = [], []
    for row, offset in zip(weight, bias, strict=True):
        least = most = float(offset)
        for w, lo, hi in zip(row, low, high, strict=True):
            least += w * lo if w > 0 else w * hi
            most += w * hi if w > 0 else w * lo
        lows.append(least)
        highs.append(most)
    return np.array(lows), np.array(highs)


def corners(x: Array, eps: float) -> Array:
    """Every corner of the linf ball within the image box."""
    low, high = box(x, eps)
    return np.array([np.where(choice, high, low) for choice in itertools.product((False, True), repeat=len(x))])


def exact_minimum(layers: Layers, x: Array, eps: float, norm: str, row: Array) -> float:
    """Exact minimum of row @ logits over the linf or l1 ball: one linear program for every activation pattern."""
    sizes = [len(bias) for _, bias in layers[:-1]]
    best = np.inf
    for flat in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        pattern = np.split(np.array(flat), np.cumsum(sizes)[:-1]) if sizes else []
        best = min(best, _minimum_on_pattern(layers, pattern, x, eps, norm, row))
    return best


def _minimum_on_pattern(layers: Layers, pattern: Sequence[Array], x: Array, eps: float, norm: str, row: Array) -> float:
    """On one pattern the network is affine and its region a polytope; inf when the region is empty."""
    dim = len(x)
    weight, bias = np.eye(dim), np.zeros(dim)
    sides, limits = [np.zeros((0, dim))], [np.zeros(0)]
    for (w, b), active in zip(layers[:-1], pattern, strict=True):
        weight, bias = w @ weight, w @ bias + b
        sign = np.where(active > 0, -1.0, 1.0)  # active: weight @ x + bias >= 0
        sides.append(sign[:, None] * weight)
        limits.append(-sign * bias)
        weight, bias = active[:, None] * weight, active * bias
    weight, bias = layers[-1][0] @ weight, layers[-1][0] @ bias + layers[-1][1]
    side, limit = np.concatenate(sides), np.concatenate(limits)
    low, high = box(x, eps)
    if norm == "linf":
        found = linprog(row @ weight, A_ub=side, b_ub=limit, bounds=list(zip(low, high, strict=True)), method="highs")
        return float(found.fun + row @ bias) if found.success else np.inf
    # l1: lengths t >= |z - x| beside the pixels z, their sum at most eps.
    eye = np.eye(dim)
    side = np.block([[side, np.zeros_like(side)], [eye, -eye], [-eye, -eye], [np.zeros(dim), np.ones(dim)]])
    limit = np.concatenate([limit, x, -x, [eps]])
    bounds = [*zip(low, high, strict=True), *[(0.0, eps)] * dim]
    found = linprog(np.concatenate([row @ weight, np.zeros(dim)]), A_ub=side, b_ub=limit, bounds=bounds, method="highs")
    return float(found.fun + row @ bias) if found.success else np.inf


def program_minimum(layers: Layers, x: Array, eps: float, row: Array) -> float:
    """Exact minimum of row @ logits over the linf ball: one mixed-integer program, a 0-1 variable for every ReLU."""
    low, high = box(x, eps)
    lows, highs, integer = list(low), list(high), [0] * len(x)
    sides, floors, here = [], [], list(range(len(x)))  # sides @ v >= floors
    for weight, bias in layers[:-1]:
        low, high = _interval_affine(weight, bias, np.array(low), np.array(high))
        first = len(lows)
        for i in range(len(bias)):
            value, switch = first + 2 * i, first + 2 * i + 1
            least, most = min(low[i], 0.0), max(high[i], 0.0)
            inner = {here[j]: weight[i, j] for j in range(len(here))}
            sides += [
                {value: 1.0, **{j: -w for j, w in inner.items()}},  # value >= w x + b
                {value: -1.0, switch: least, **inner},  # value <= w x + b - least (1 - switch)
                {value: -1.0, switch: most},  # value <= most switch
            ]
            floors += [bias[i], least - bias[i], 0.0]
        lows += [0.0] * (2 * len(bias))
        highs += [bound for top in high for bound in (max(top, 0.0), 1.0)]
        integer += [0, 1] * len(bias)
        here = list(range(first, first + 2 * len(bias), 2))
        low, high = np.maximum(low, 0), np.maximum(high, 0)
    matrix = np.zeros((len(sides), len(lows)))
    for i, side in enumerate(sides):
        for j, w in side.items():
            matrix[i, j] = w
    cost = np.zeros(len(lows))
    cost[here] = row @ layers[-1][0]
    constraints = LinearConstraint(matrix, np.array(floors)) if sides else None
    found = milp(cost, constraints=constraints, bounds=Bounds(np.array(lows), np.array(highs)), integrality=integer)
    assert found.success, found.message
    return float(found.fun + row @ layers[-1][1])


def crown_minimum(layers: Layers, x: Array, eps: float, norm: str, rows: Array) -> Array:
    """CROWN bounds of rows @ logits: every layer's bounds by back-substitution, lower slope 1 where u > |l|, else 0.

    Linear functions of the pixels are minimised over the ball and over its bounding box, and the better bound is taken;
    for l2 and l1 the first layer is bounded over the ball alone.
    """
    known: list[tuple[Array, Array]] = []
    for depth in range(1, len(layers)):
        eye = np.eye(len(layers[depth - 1][1]))
        use_box = norm == "linf" or depth > 1
        low = _back_substitute(layers[:depth], known, eye, x, eps, norm, use_box)
        high = -_back_substitute(layers[:depth], known, -eye, x, eps, norm, use_box)
        known.append((low, high))
    return _back_substitute(layers, known, rows, x, eps, norm, True)


def _back_substitute(
    layers: Layers, known: Sequence[tuple[Array, Array]], rows: Array, x: Array, eps: float, norm: str, use_box: bool
) -> Array:
    weight, bias = layers[-1]
    slope, constant = rows @ weight, rows @ bias
    for (weight, bias), (low, high) in zip(reversed(layers[:-1]), reversed(known), strict=True):
        below, above, offset = _relu_lines(low, high)
        constant = constant + np.minimum(slope, 0) @ offset
        slope = np.maximum(slope, 0) * below + np.minimum(slope, 0) * above
        slope, constant = slope @ weight, constant + slope @ bias
    bounds = [linear_minimum(s, x, eps, norm) for s in slope]
    if use_box:
        bounds = [max(b, box_minimum(s, x, eps)) for b, s in zip(bounds, slope, strict=True)]
    return constant + np.array(bounds)


def _relu_lines(low: Array, high: Array) -> tuple[Array, Array, Array]:
    """Slopes of a line below and a line above ReLU on [low, high], and the offset of the line above."""
    below, above, offset = np.zeros_like(low), np.zeros_like(low), np.zeros_like(low)
    for i, (lo, hi) in enumerate(zip(low, high, strict=True)):
        if lo >= 0:
            below[i] = above[i] = 1.0
        elif hi > 0:
            below[i] = 1.0 if hi > -lo else 0.0
            above[i] = hi / (hi - lo)
            offset[i] = -lo * above[i]
    return below, above, offset


def linear_minimum(slope: Array, x: Array, eps: float, norm: str) -> float:
    """Minimum of slope @ z over the ball alone, by the dual norm; for linf over ball and image box."""
    if norm == "linf":
        return box_minimum(slope, x, eps)
    return float(slope @ x - eps * np.linalg.norm(slope, DUAL[norm]))


def box_minimum(slope: Array, x: Array, eps: float) -> float:
    """Minimum of slope @ z over the linf ball within the image box."""
    low, high = box(x, eps)
    return float(np.maximum(slope, 0) @ low + np.minimum(slope, 0) @ high)


def linear_radius(weight: Array, bias: Array, x: Array, norm: str) -> float:
    """Largest radius of a linear classifier's prediction at x, where the image box cuts nothing off."""
    logits = weight @ x + bias
    y = int(logits.argmax())
    others = [j for j in range(len(logits)) if j != y]
    return min((logits[y] - logits[j]) / np.linalg.norm(weight[y] - weight[j], DUAL[norm]) for j in others)


def project_by_search(delta: Array, eps: float, norm: str) -> Array:
    """Nearest point (in the Euclidean sense) of a ball around 0, by bisection on the multiplier of its constraint."""
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    if np.linalg.norm(delta, order) <= eps:
        return delta
    if norm == "linf":
        return np.array([min(max(d, -eps), eps) for d in delta])
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        point = _shrink(delta, middle, norm)
        low, high = (middle, high) if np.linalg.norm(point, order) > eps else (low, middle)
    return _shrink(delta, high, norm)


def _shrink(delta: Array, multiplier: float, norm: str) -> Array:
    """Minimiser of |z - delta|^2 / 2 plus the multiplier times |z|_1, or times |z|_2^2 / 2."""
    if norm == "l1":
        return np.sign(delta) * np.maximum(np.abs(delta) - multiplier, 0)
    return delta / (1 + multiplier)
