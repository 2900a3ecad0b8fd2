"""Bound a student and a teacher jointly, over one shared image.

Both networks are in one graph, so their equal parts cancel in any linear combination of the logits. If they are copies
of one architecture, a coupled graph follows the difference of every neuron, and the better of the two bounds counts.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from verifiers.bound_propagation.checks import attack_bounds
from verifiers.bound_propagation.engine import ITERATIONS, Memory, Planes, better, total
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Arithmetic
from verifiers.core.question import Question
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification
from verifiers.graph.coded_difference import coupled_codes
from verifiers.graph.composed import composed
from verifiers.graph.difference import coupled, same_structure
from verifiers.graph.graph import Graph
from verifiers.graph.program import PairProgram, Program


class PairBounds(NamedTuple):
    """Bounds over one ball, one value per sample, in logits.

    Attributes:
        gap: upper bound of |student margin - teacher margin|.
        deficit: upper bound of teacher margin - student margin; negative if the student's is always larger.
        agreement: if positive, both networks predict the class everywhere on the ball.
        radius: a radius, at most eps, at which that holds even if ``agreement`` is not positive.
        rounding: the largest amount by which rounding lowered a bound.
    """

    gap: Float[Tensor, " batch"]
    deficit: Float[Tensor, " batch"]
    agreement: Float[Tensor, " batch"]
    radius: Float[Tensor, " batch"]
    rounding: Float[Tensor, " batch"]


class JointEngine:
    """Bound linear combinations of a student's and a teacher's logits.

    Args:
        student, teacher: map the same images in [0, 1] to the same classes, in eval mode; modules or programs.
        x: two or more sample images.
        arithmetic: the arithmetic of both networks; their rounding is independent.

    Attributes:
        joint: the engine of both networks in one graph, with outputs [S, T].
        coupled: for copies the engine of both networks and their difference, with outputs [S, T, S - T]; else None.
        engines: both, without None.
        alone: the engine of each network if one computes in codes: the sum of their bounds counts too, if it is better.
        deployed: both networks in their own precision, in float32 arithmetic; else None.

    Raises:
        Unsupported: a network cannot be captured, or the classes differ.
        Contradiction: a graph's logits are not the pair's.
    """

    name = "native"

    def __init__(
        self,
        student: nn.Module | Program,
        teacher: nn.Module | Program,
        x: Float[Tensor, "batch *shape"],
        arithmetic: Arithmetic = Arithmetic.REAL,
    ) -> None:
        programs = Program.of(student), Program.of(teacher)
        pair = PairProgram(*programs)
        self.joint, self.model, self.pair = Native(pair, x, arithmetic=arithmetic), pair.exact, pair.module
        self.deployed = pair.module if arithmetic.deployed else None
        self.coupled: Native | None = None
        self.graphs = graphs = [program.graph(x) for program in programs]
        if graphs[0].nodes[-1].shape != graphs[1].nodes[-1].shape:
            raise Unsupported(f"student and teacher differ in their logits: {[g.nodes[-1].shape for g in graphs]}")
        alike = graphs if same_structure(*graphs) else [composed(graph) for graph in graphs]  # low-rank copies
        if same_structure(*alike):
            graph: Graph | None = coupled(*alike, rounded=arithmetic.deployed)
        else:
            graph = coupled_codes(*graphs)  # int8 copies
        if graph is not None:
            self.coupled = Native(PairProgram(*programs, difference=True), x, graph=graph, arithmetic=arithmetic)
        self.engines = [self.joint] if self.coupled is None else [self.joint, self.coupled]
        in_codes = any(any(each.coded) for each in graphs)
        self.alone = [Native(program, x, arithmetic=arithmetic) for program in programs] if in_codes else []
        self.batch_size = min(engine.batch_size for engine in self.engines)

    @classmethod
    def prepare(
        cls, program: Program, samples: Float[Tensor, "two *shape"], question: Question, method: str = "crown"
    ) -> "JointEngine":
        """Build the engine of a network and the question's teacher, and attack its bounds by the method on the samples.

        Raises:
            Unsupported: there is no teacher, or a network cannot be captured.
            Contradiction: a point of the ball breaks a bound.
        """
        teacher = question.teacher
        if teacher is None:
            raise Unsupported("joint bounds compare with a teacher: give one")
        arithmetic = question.arithmetic
        engine = program.once(("joint", teacher, arithmetic), lambda: cls(program, teacher, samples, arithmetic))
        attack_bounds(engine, samples, question.eps.value, norm=question.norm, method=method)
        return engine

    @property
    def copies(self) -> bool:
        """True if the two networks are of one architecture."""
        return self.coupled is not None

    @property
    def notes(self) -> dict[str, str]:
        """Its name and its graphs."""
        return {"engine": self.name, "graphs": "joint and coupled" if self.copies else "joint"}

    def ask(
        self,
        balls: Balls,
        rows: Float[Tensor, "batch rows both"],
        method: str,
        *,
        iterations: int = ITERATIONS,
        memory: Memory | None = None,
    ) -> Planes:
        """Bound rows of both networks' logits as ``Engine.ask`` does; the better graph counts, row by row."""
        found = self.joint.ask(balls, rows, method, iterations=iterations, memory=memory)
        if self.alone:
            parts = zip(self.alone, rows.chunk(2, -1), strict=True)
            each = [engine.ask(balls, part, method, iterations=iterations, memory=memory) for engine, part in parts]
            found = better(found, total(*each))
        if self.coupled is None:
            return found
        asked = with_difference(rows)
        return better(found, self.coupled.ask(balls, asked, method, iterations=iterations, memory=memory))

    def pair_bounds(
        self,
        balls: Balls,
        predicted: Int[Tensor, " batch"],
        *,
        method: str = "crown",
        memory: Memory | None = None,
    ) -> PairBounds:
        """Bound both margins towards every other class, and their difference, over each sample's ball.

        Let m_j be the margins towards class j. The smallest margins differ by at most the largest difference of an m_j.
        The student's m_j is positive if its own bound is, or if the teacher's bound exceeds the deficit's.
        """
        rows = margin_specification(predicted, self.joint.graph.classes // 2, torch.float64)
        none = torch.zeros_like(rows)
        student, teacher = torch.cat([rows, none], 2), torch.cat([none, rows], 2)
        asked = torch.cat([student, teacher, student - teacher, teacher - student], 1)
        return _pair_bounds(self.ask(balls, asked, method, memory=memory), balls.eps)


def with_difference(rows: Float[Tensor, "*rows both"]) -> Float[Tensor, "*rows three"]:
    """Write rows of [S, T] as rows of [S, T, S - T], the outputs of the coupled graph.

    No coefficient of S - T is needed: the graph itself divides rows between S, T and their difference, node by node.
    """
    return F.pad(rows, (0, rows.shape[-1] // 2))


def _pair_bounds(planes: Planes, eps: Tensor) -> PairBounds:
    s, t, more, less = planes.bound.chunk(4, 1)
    free = (planes.value / planes.steepness).chunk(4, 1)
    held = torch.minimum(t, torch.maximum(s, t + more)).amin(1)
    radius = torch.minimum(free[0].amin(1), free[1].amin(1))
    return PairBounds(
        gap=torch.maximum((-more).amax(1), (-less).amax(1)),
        deficit=(-more).amax(1),
        agreement=held,
        radius=torch.minimum(radius, eps),
        rounding=planes.rounding.amax(1),
    )
