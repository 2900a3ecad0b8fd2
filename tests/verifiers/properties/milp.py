"""The exact least value of a case of a small ReLU network, by mixed-integer programming (HiGHS)."""

from fractions import Fraction

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from verifiers.properties.property import Box, Case, Inequality

#: Bounds of all neurons of the networks that are used here.
LARGE = 1e3


def least(network: nn.Sequential, case: Case) -> float:
    """Minimise the largest value of a case's inequalities over its box; the inequalities hold if it is not positive.

    Every neuron z has the variables z, max(z, 0) and a sign; t is at least every value.
    """
    layers = [
        (m.weight.detach().double().numpy(), m.bias.detach().double().numpy())
        for m in network
        if isinstance(m, nn.Linear)
    ]
    hidden = [len(bias) for _, bias in layers[:-1]]
    count = len(case.box.low) + 3 * sum(hidden) + len(layers[-1][1]) + 1
    rows, low, high = [], [], []

    def constrain(terms: list[tuple[int, float]], least_: float, most: float) -> None:
        row = np.zeros(count)
        for place, value in terms:
            row[place] += value
        rows.append(row)
        low.append(least_)
        high.append(most)

    before, place = list(range(len(case.box.low))), len(case.box.low)
    ends = np.full((2, count), 0.0)
    ends[0], ends[1] = -np.inf, np.inf
    ends[0, : len(before)], ends[1, : len(before)] = [*map(float, case.box.low)], [*map(float, case.box.high)]
    integral = np.zeros(count)
    for number, (weight, bias) in enumerate(layers):
        made = list(range(place, place + len(bias)))
        for z, row, shift in zip(made, weight, bias, strict=True):
            constrain([(z, 1.0), *((x, -w) for x, w in zip(before, row, strict=True))], shift, shift)
        place += len(bias)
        if number == len(layers) - 1:
            before = made
            break
        relus, signs = (list(range(place + i * len(bias), place + (i + 1) * len(bias))) for i in (0, 1))
        for z, a, s in zip(made, relus, signs, strict=True):
            ends[:, a], ends[:, s], integral[s] = (0, LARGE), (0, 1), 1
            constrain([(a, 1.0), (z, -1.0)], 0, np.inf)
            constrain([(a, 1.0), (z, -1.0), (s, LARGE)], -np.inf, LARGE)
            constrain([(a, 1.0), (s, -LARGE)], -np.inf, 0)
        before, place = relus, place + 2 * len(bias)
    for inequality in case.inequalities:
        terms = [(before[i], float(v)) for i, v in inequality.outputs] + [(i, float(v)) for i, v in inequality.inputs]
        constrain([(count - 1, 1.0), *((i, -v) for i, v in terms)], float(inequality.constant), np.inf)
    cost = np.zeros(count)
    cost[-1] = 1.0
    solved = milp(
        cost, constraints=LinearConstraint(np.array(rows), low, high), integrality=integral, bounds=Bounds(*ends)
    )
    assert solved.status == 0, solved.message
    return float(solved.fun)


def box(low: list[float], high: list[float]) -> Box:
    return Box(tuple(map(Fraction, low)), tuple(map(Fraction, high)))


def inequality(
    outputs: dict[int, float], constant: float, inputs: dict[int, float] | None = None, strict: bool = False
) -> Inequality:
    """``outputs @ y + inputs @ x + constant <= 0``."""
    y, x = (tuple((i, Fraction(value)) for i, value in terms.items()) for terms in (outputs, inputs or {}))
    return Inequality(y, x, Fraction(constant), strict)


def least_of_pair(
    one: list[np.ndarray], other: list[np.ndarray], ends: tuple[float, float], outputs: dict[int, float]
) -> float:
    """Minimise a linear function of the outputs of two networks ``v relu(w x + b)`` over a cube that both share."""
    network = nn.Sequential(nn.Linear(one[0].shape[1], 2 * len(one[1])), nn.ReLU(), nn.Linear(2 * len(one[1]), 1))
    zero = torch.zeros_like(network[2].weight)
    with torch.no_grad():
        network[0].weight.copy_(torch.from_numpy(np.concatenate([one[0], other[0]])))
        network[0].bias.copy_(torch.from_numpy(np.concatenate([one[1], other[1]])))
        both = np.zeros((2 * len(one[2]), 2 * len(one[1])), np.float32)
        both[: len(one[2]), : len(one[1])], both[len(one[2]) :, len(one[1]) :] = one[2], other[2]
        row = sum(value * both[i] for i, value in outputs.items())
        network[2].weight.copy_(zero + torch.from_numpy(row))
        network[2].bias.zero_()
    size = one[0].shape[1]
    return least(network, Case(box([ends[0]] * size, [ends[1]] * size), (inequality({0: 1.0}, 0.0),)))
