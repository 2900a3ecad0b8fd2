"""The exact least value of a case of a small ReLU network, by mixed-integer programming (HiGHS)."""

from fractions import Fraction

import numpy as np
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
