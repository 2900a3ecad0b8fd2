"""Decide a relation of two networks on one region: by bounds of each alone, then of both together."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.bound_propagation.box_proofs import Tries, by_neurons
from verifiers.bound_propagation.boxes.splitting import FEW_INPUTS, split_pair
from verifiers.bound_propagation.half_spaces import Ended, HalfSpaces
from verifiers.bound_propagation.joint import JointEngine
from verifiers.bound_propagation.native.engine import Native
from verifiers.bound_propagation.native.places import is_relu
from verifiers.bound_propagation.relations import unsafe, violation
from verifiers.core.quantities import Norm
from verifiers.core.relation import Property, Relation
from verifiers.geometry.balls import Balls, within_eps
from verifiers.geometry.boxes import Boxes
from verifiers.geometry.disagreement import PairAttack
from verifiers.geometry.margins import margin_specification, margins
from verifiers.graph.rows import shape_size
from verifiers.results.summaries.match import Stage

#: The share of the time that is left which each network alone may take.
ALONE_SHARE = 0.3
#: Neurons are split before the ball up to this many ReLUs in both networks.
FEW_NEURONS = 100
#: The share of the time that is left which the first of the two may take.
FIRST_SHARE = 0.7
#: Points of a round that are followed, the most promising first.
MOST = 4


@dataclass
class Decision:
    """The answer for one region.

    Attributes:
        proved: the relation holds everywhere.
        bound: the bound that proves it, or the least one.
        point: a point where it fails in float32, run alone.
        violation: by how much it fails there.
        stage: the stage that ended the search.
        parts: number of bounded parts of the region.
        late: the deadline came first.
        full: memory could run out.
    """

    proved: bool = False
    bound: float = float("nan")
    point: Float[Tensor, "1 *shape"] | None = None
    violation: float = float("nan")
    stage: Stage = Stage.TOGETHER
    parts: int = 0
    late: bool = False
    full: bool = False


@dataclass
class PairSearch:
    """Search one ball around an image.

    Attributes:
        engine: bounds of both networks together.
        alone: bounds of the student alone and of the teacher alone.
        attack: runs both networks, and follows points.
        x: the image.
        c: the teacher's class there.
        iterations: steps of alpha-CROWN.
        found: the decision so far.
    """

    engine: JointEngine
    alone: tuple[Native, Native]
    attack: PairAttack
    x: Float[Tensor, "1 *shape"]
    c: Int[Tensor, "1"]
    iterations: int
    found: Decision = field(default_factory=Decision)

    def decide(self, relation: Relation, bounds: Float[Tensor, " rows"], deadline: float) -> Decision:
        """Decide a relation; ``bounds`` are those of ``screening_rows``, and the deadline is on ``time.monotonic``."""
        self.found, bounds = Decision(), bounds.where(bounds < torch.inf, -torch.inf)  # nan and inf prove nothing
        self.attack = replace(self.attack, violation=partial(violation, relation))
        if not (relation.of_classes and self._each_alone(relation, bounds, deadline)):
            self._together(relation, bounds, deadline)
        return self.found

    def _each_alone(self, relation: Relation, bounds: Tensor, deadline: float) -> bool:
        """Prove that each network keeps the class, which suffices; stop at a point where one of them does not.

        A teacher that is never sure by more than delta suffices in the place of the student's class.
        """
        sides = (0, 1) if relation.kind is Property.SAME_CLASS else (0,)
        least = float("inf")
        for side in sides:
            spaces = self._keeps(side, relation.delta * side)
            known = bounds.chunk(3)[side] + relation.delta * side
            least = min(least, least_positive(known))
            if not len(left := (~(known > 0)).nonzero().flatten()):
                continue
            share = time.monotonic() + ALONE_SHARE * (deadline - time.monotonic())
            end = self._refute(self.alone[side], spaces.take(left), share, partial(self._flips, side))
            self.found.stage, self.found.parts = Stage.ALONE, self.found.parts + end.parts
            if self.found.point is not None:
                return True
            if not end.proved:
                return False
            least = min(least, end.bound)
        self.found = replace(self.found, proved=True, bound=least, stage=Stage.ALONE)
        return True

    def _keeps(self, side: int, delta: float) -> HalfSpaces:
        """Build the cases in which one network leaves the class by delta."""
        classes = self.alone[side].graph.classes
        rows = margin_specification(self.c, classes, torch.float64)[0]
        return HalfSpaces(rows, None, rows.new_full((classes - 1,), delta), torch.arange(classes - 1))

    def _together(self, relation: Relation, bounds: Tensor, deadline: float) -> None:
        """Split neurons, or with few inputs the ball too: first what ends sooner, for a share of the time."""
        classes = self.alone[0].graph.classes
        spaces = unsafe(relation, int(self.c), classes, list(self._pairs(relation, bounds, classes)))
        spaces = spaces.take(self._open(relation, bounds, spaces))
        ways = [(self._by_neurons, Stage.TOGETHER)]
        if self.x.numel() <= FEW_INPUTS and self.attack.norm is Norm.LINF:
            ways.insert(len(ways) * self._few_neurons, (self._by_boxes, Stage.SPLITTING))
        for place, (way, stage) in enumerate(ways, start=1):
            left = deadline - time.monotonic()
            end = way(spaces, deadline if place == len(ways) else deadline - (1 - FIRST_SHARE) * left)
            self.found.parts += end.parts
            self.found = replace(
                self.found, proved=end.proved, bound=end.bound, stage=stage, late=end.late, full=end.full
            )
            if end.proved:
                self.found.bound = min(end.bound, self._known(relation, bounds))
            if end.proved or self.found.point is not None:
                return

    @property
    def _few_neurons(self) -> bool:
        graphs = [native.graph for native in self.alone]
        relus = (shape_size(node.shape) for graph in graphs for node in graph.nodes if is_relu(node.operator))
        return sum(relus) <= FEW_NEURONS

    def _by_neurons(self, spaces: HalfSpaces, deadline: float) -> Ended:
        engine = self.engine.engines[-1]  # the coupled graph where there is one; its further outputs count for nothing
        return self._refute(engine, spaces.padded(engine.graph.classes), deadline, self._fails)

    def _by_boxes(self, spaces: HalfSpaces, deadline: float) -> Ended:
        boxes = Boxes.between(*self._region.box())
        return split_pair(self.engine, spaces, boxes, deadline=deadline, tries=self._fails)

    @property
    def _region(self) -> Balls:
        return Balls.around(self.x.double(), self.attack.eps, self.attack.norm)

    def _pairs(self, relation: Relation, bounds: Tensor, classes: int) -> Iterator[tuple[int, int]]:
        """List the pairs of the teacher's and the student's class that the bounds leave possible."""
        if relation.kind is not Property.SAME_CLASS:
            return
        own, teacher, apart = (part.tolist() for part in bounds.chunk(3))
        c = int(self.c)
        others = [j for j in range(classes) if j != c]
        student = [c] + [j for j, low in zip(others, own, strict=True) if not low > 0]
        theirs = [k for k, low in zip(others, teacher, strict=True) if not low + relation.delta > 0]
        alike = {j for j, low in zip(others, apart, strict=True) if low + relation.delta > 0}
        yield from ((c, j) for j in student if j != c and j not in alike)
        yield from ((k, j) for k in theirs for j in student if j != k)

    def _open(self, relation: Relation, bounds: Tensor, spaces: HalfSpaces) -> Int[Tensor, " cases"]:
        """Return the cases that the bounds do not refute."""
        cases = torch.arange(spaces.cases)
        match relation.kind:
            case Property.SAME_CLASS:
                return cases
            case Property.TRANSFER:
                own, _, apart = bounds.chunk(3)
                return cases[~((own > 0) | (apart > 0)).cpu()]
            case _:
                return cases[~(bounds + relation.tolerance > 0).cpu()]

    def _known(self, relation: Relation, bounds: Tensor) -> float:
        """Return the least of the bounds that refute cases without a search; inf if there is none."""
        own, teacher, apart = bounds.chunk(3) if relation.of_classes else (bounds,) * 3
        match relation.kind:
            case Property.SAME_CLASS:
                values = torch.cat([own, teacher + relation.delta, apart + relation.delta])
            case Property.TRANSFER:
                values = own.maximum(apart)
            case _:
                values = bounds + relation.tolerance
        return least_positive(values)

    def _refute(self, engine: Native, spaces: HalfSpaces, deadline: float, tries: Tries) -> Ended:
        return by_neurons(engine, spaces, self._region, iterations=self.iterations, deadline=deadline, tries=tries)

    def _flips(self, side: int, points: Float[Tensor, "points *shape"]) -> Bool[Tensor, " points"]:
        """Return where one network leaves the class, and look for a violation on the way there."""
        network = (self.attack.student, self.attack.teacher)[side]
        images = points.float()
        with torch.no_grad():
            margin = margins(network(images), self.c.expand(len(images)))
        hits = (margin < 0) & self._inside(images)
        for i in margin.where(hits, torch.inf).argsort()[: min(MOST, int(hits.sum()))].tolist():
            point, value = self.attack.along(self.x, images[i : i + 1], self.c)
            if float(value) > 0 and self._keep(point):
                break
        return hits

    def _fails(self, points: Float[Tensor, "points *shape"]) -> Bool[Tensor, " points"]:
        """Return which points break the relation, alone in float32; keep the first."""
        images = points.float()
        value = self.attack.at(images, self.c.expand(len(images))).where(self._inside(images), -torch.inf)
        hits = torch.zeros_like(value, dtype=torch.bool)
        for i in value.argsort(descending=True)[: min(MOST, int((value > 0).sum()))].tolist():
            if self._keep(images[i : i + 1]):
                hits[i] = True
                break
        return hits

    def _inside(self, images: Tensor) -> Tensor:
        return within_eps(self.x.expand_as(images), images, self.attack.eps, self.attack.norm)

    def _keep(self, point: Float[Tensor, "1 *shape"]) -> bool:
        violation = self.attack.alone(point[0], self.c[0])
        if violation > 0:
            self.found.point, self.found.violation = point, violation
        return violation > 0


def least_positive(values: Float[Tensor, " _"]) -> float:
    """Return the least of the values above 0; inf without one."""
    return float(values.where(values > 0, torch.inf).amin())
