"""Tiny pairs of networks, and the exact truth about them by mixed-integer programs."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from verifiers.bound_propagation import match_certifier
from verifiers.bound_propagation.relations import unsafe, violation
from verifiers.core.columns import Columns
from verifiers.core.quantities import Arithmetic, Epsilon, Norm
from verifiers.core.question import Question
from verifiers.core.relation import Property, Relation
from verifiers.graph.program import Program
from verifiers.runtime.certifier import Batch
from verifiers.runtime.modes import trusted_arithmetic

CLASSES = 3


@dataclass(frozen=True)
class Tiny:
    """A pair and an image."""

    student: nn.Sequential
    teacher: nn.Sequential
    x: Tensor
    eps: float


def network(rng: np.random.Generator, inputs: int, hidden: list[int], scale: float = 1.5) -> nn.Sequential:
    sizes, layers = [inputs, *hidden, CLASSES], list[nn.Module]()
    for before, after in pairwise(sizes):
        layer = nn.Linear(before, after)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(rng.normal(0, scale / before**0.5, (after, before))))
            layer.bias.copy_(torch.from_numpy(rng.normal(0, 0.3, after)))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def copied(rng: np.random.Generator, teacher: nn.Sequential, noise: float, pruned: float) -> nn.Sequential:
    """Copy a network with noise on its weights, and some of them set to zero."""
    copy = nn.Sequential(*(type(m)(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in teacher))
    copy.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        for weight in (m.weight for m in copy if isinstance(m, nn.Linear)):
            weight.mul_(1 + noise * torch.from_numpy(rng.normal(size=tuple(weight.shape))))
            weight.mul_(torch.from_numpy(rng.random(tuple(weight.shape)) >= pruned))
    return copy


def tiny(seed: int) -> Tiny:
    """Make a pair: copies of one network, or two networks of different sizes."""
    rng = np.random.default_rng(seed)
    inputs = int(rng.integers(2, 4))
    teacher = network(rng, inputs, [int(n) for n in rng.integers(3, 6, rng.integers(1, 3))])
    if seed % 2:
        student = copied(rng, teacher, float(rng.choice([0.0, 0.01, 0.1])), float(rng.choice([0.0, 0.2])))
    else:
        student = network(rng, inputs, [int(rng.integers(3, 6))])
    x = torch.from_numpy(rng.random((1, inputs))).float()
    return Tiny(student, teacher, x, float(rng.choice([0.03, 0.1, 0.3])))


class _Program:
    """A mixed-integer program of networks that read one box: ReLUs with big-M constraints."""

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low, self.high, self.whole = list(low), list(high), [0] * len(low)
        self.rows: list[tuple[dict[int, float], float, float]] = []

    def variable(self, low: float, high: float, whole: int = 0) -> int:
        self.low.append(low)
        self.high.append(high)
        self.whole.append(whole)
        return len(self.low) - 1

    def add(self, net: nn.Sequential) -> list[int]:
        """Add a network; returns the variables of its outputs."""
        values, ends = list(range(net[0].in_features)), None
        ends = np.array(self.low[: len(values)]), np.array(self.high[: len(values)])
        for layer in net:
            if isinstance(layer, nn.Linear):
                w, b = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
                plus, minus = w.clip(0), w.clip(None, 0)
                ends = plus @ ends[0] + minus @ ends[1] + b, plus @ ends[1] + minus @ ends[0] + b
                after = [self.variable(lo - 1, hi + 1) for lo, hi in zip(*ends, strict=True)]
                for i, z in enumerate(after):
                    self.rows.append(({z: 1.0, **{v: -w[i, j] for j, v in enumerate(values)}}, b[i], b[i]))
            else:
                after = [self._relu(z, lo, hi) for z, lo, hi in zip(values, *ends, strict=True)]
                ends = ends[0].clip(0), ends[1].clip(0)
            values = after
        return values

    def _relu(self, z: int, low: float, high: float) -> int:
        y, on = self.variable(0, max(high, 0) + 1), self.variable(0, 1, 1)
        size = max(-low, high, 0) + 1
        self.rows += [
            ({y: 1.0, z: -1.0}, 0, np.inf),
            ({y: 1.0, z: -1.0, on: size}, -np.inf, size),
            ({y: 1.0, on: -size}, -np.inf, 0),
        ]
        return y

    def highest(self, variable: int) -> float:
        matrix = np.zeros((len(self.rows), len(self.low)))
        for i, (row, _, _) in enumerate(self.rows):
            for j, value in row.items():
                matrix[i, j] = value
        goal = np.zeros(len(self.low))
        goal[variable] = -1
        low, high = np.array([r[1] for r in self.rows]), np.array([r[2] for r in self.rows])
        limits, ends = LinearConstraint(matrix, low, high), Bounds(np.array(self.low), np.array(self.high))
        for presolve, gap in product((True, False), (0.0, 1e-4)):  # HiGHS fails on a few programs with either
            options = {"presolve": presolve, "mip_rel_gap": gap}
            found = milp(goal, constraints=limits, integrality=np.array(self.whole), bounds=ends, options=options)
            if found.status == 0:
                break
        assert found.status == 0, found.message
        return float(-found.fun)


def truth(pair: Tiny, relation: Relation) -> float:
    """Compute the largest violation of a relation over the ball, over the real numbers."""
    x = pair.x[0].double().numpy()
    with torch.no_grad():
        c = int(pair.teacher(pair.x).argmax())
    spaces, best = unsafe(relation, c, CLASSES), -np.inf
    for case in range(spaces.cases):
        one = spaces.take(torch.tensor([case]))
        program = _Program((x - pair.eps).clip(0), (x + pair.eps).clip(None, 1))
        outputs = program.add(pair.student) + program.add(pair.teacher)
        size = program.variable(-1e3, 1e3)  # at most how far every value is below 0
        for row, constant in zip(one.outputs.tolist(), one.constant.tolist(), strict=True):
            values = {v: c_ for v, c_ in zip(outputs, row, strict=True) if c_}
            program.rows.append(({**values, size: 1.0}, -np.inf, -constant))
        best = max(best, program.highest(size))
    return best


def matched(pair: Tiny, relation: Relation, arithmetic: Arithmetic = Arithmetic.FLOAT32, **others: Any) -> Columns:
    """Decide a relation by the certifier of ``match``."""
    given = {"time_limit": 20.0, "iterations": 5, "steps": 10, "restarts": 2, "bisect": False, "points": (), **others}
    settings = SimpleNamespace(relation=relation, **given)
    programs = Program(pair.student.eval()), Program(pair.teacher.eval())
    question = Question(Epsilon.parse(str(pair.eps)), Norm.LINF, 0, programs[1], arithmetic)
    with trusted_arithmetic():
        images = pair.x.expand(2, -1)
        certifier = match_certifier(programs[0], images, question, settings)
        with torch.no_grad():
            predicted = pair.student(pair.x).argmax(1)
        batch = Batch(pair.x, predicted, torch.tensor([0]), CLASSES, lambda: torch.zeros(1))
        (answer,) = certifier(batch)
    return answer.columns


def broken(pair: Tiny, relation: Relation, point: np.ndarray) -> float:
    """Return by how much a point breaks a relation in float32, and check that it is in the ball."""
    image = torch.from_numpy(point)[None]
    assert float((image.double() - pair.x.double()).abs().max()) <= pair.eps
    assert float(image.min()) >= 0 and float(image.max()) <= 1
    with torch.no_grad():
        logits = [net(image).double() for net in (pair.student, pair.teacher)]
        c = pair.teacher(pair.x).argmax(1)
    return float(partial(violation, relation)(*logits, c))


#: Every property, with and without thresholds.
RELATIONS = (
    Relation(),
    Relation(delta=0.1),
    Relation(Property.CLOSE, 0.1),
    Relation(Property.CLOSE, 0.5),
    Relation(Property.NOT_WORSE),
    Relation(Property.NOT_WORSE, 0.2),
    Relation(Property.TRANSFER),
)
