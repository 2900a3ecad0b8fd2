"""Bound the values of cases over thousands of boxes at once: by matrices where they fit, else by the native engine."""

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor
from torch.nn import functional as F

from verifiers.bound_propagation.boxes.chains import Chain, chain_of
from verifiers.bound_propagation.boxes.network import Boxed, Found, settled
from verifiers.bound_propagation.boxes.pair import BoxedPair, Relations
from verifiers.bound_propagation.half_spaces import HalfSpaces, lower_values
from verifiers.bound_propagation.joint import JointEngine
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Arithmetic
from verifiers.geometry.boxes import Boxes
from verifiers.graph.operators import Interval
from verifiers.graph.rows import shape_size
from verifiers.runtime.modes import trusted_arithmetic

#: The most values in the nodes of one round's boxes, and the most boxes of a round by the engine and by matrices.
ROUND, ENGINE_BOXES, MATRIX_BOXES = 2**21, 512, 1024


@dataclass
class Cuts:
    """Halve each of some boxes along one side.

    Attributes:
        boxes: the numbers of the boxes that are cut.
        side: the side of each.
        length: half of its length: what the lower half loses above, and the upper half below.
    """

    boxes: Int[Tensor, " cut"]
    side: Int[Tensor, " cut"]
    length: Float[Tensor, " cut"]

    def rise(self, slopes: Float[Tensor, "cut ..."]) -> tuple[Tensor, Tensor]:
        """Return how much the least values of linear functions rise, from the box to its lower and its upper half."""
        along = slopes.gather(-1, self.side.reshape(-1, *[1] * (slopes.ndim - 1)).expand(*slopes.shape[:-1], 1))[..., 0]
        length = self.length.reshape(-1, *[1] * (along.ndim - 1))
        return -along.clamp_max(0) * length, along.clamp_min(0) * length


@dataclass
class Bounded:
    """Lower bounds of values over boxes, with the linear functions of the inputs whose least values they are.

    Attributes:
        values: the bounds; nan where nothing is known.
        slopes: the functions' slopes.
        signs: known signs of neurons, to be given to later rounds.
        found: bounds of neurons, from which more signs follow on parts of the boxes.
    """

    values: Float[Tensor, "batch values"]
    slopes: Float[Tensor, "batch values inputs"]
    signs: Int8[Tensor, "batch neurons"]
    found: list[Found] = field(default_factory=list)

    def halved(self, cuts: Cuts) -> Int8[Tensor, "both neurons"]:
        """Return the signs that are known on the lower halves, then on the upper halves."""
        lower, upper = (self.signs[cuts.boxes].clone() for _ in range(2))
        place = torch.full((len(self.values),), -1, dtype=torch.long, device=self.values.device)
        place[cuts.boxes] = torch.arange(len(cuts.boxes), device=place.device)
        for found in self.found:
            at = place[found.at]
            kept = (at >= 0).nonzero().flatten()
            at, neuron = at[kept], found.neuron[kept]
            cut = Cuts(at, cuts.side[at], cuts.length[at])
            moved = cut.rise(found.slopes[:, kept].transpose(0, 1))
            for signs, rise in zip((lower, upper), moved, strict=True):
                known, sign = settled(found.bound[:, kept] + rise.T)
                signs[at[known], neuron[known]] = sign[known]
        return torch.cat([lower, upper])


class Bounder(Protocol):
    """Bound values of one set of cases; ``size`` is the number of boxes of a round, ``neurons`` that of signs kept."""

    size: int
    neurons: int

    def __call__(self, low: Tensor, high: Tensor, signs: Int8[Tensor, "batch neurons"]) -> Bounded:
        """Bound the values over boxes, given by their corners, on which the signs are known to hold."""


class ByEngine:
    """Bound values by native engines, the better row by row; further outputs of an engine count for nothing."""

    neurons = 0

    def __init__(self, engines: list[Native], spaces: HalfSpaces) -> None:
        outputs = spaces.outputs
        self.asked = [
            (engine, replace(spaces, outputs=F.pad(outputs, (0, engine.graph.classes - outputs.shape[1]))))
            for engine in engines
        ]
        nodes = max(sum(shape_size(node.shape) for node in engine.graph.nodes) for engine in engines)
        self.size = max(1, min(ENGINE_BOXES, ROUND // nodes))

    def __call__(self, low: Tensor, high: Tensor, signs: Tensor) -> Bounded:
        boxes = Boxes.between(low, high)
        values, slopes = best([lower_values(engine, boxes, spaces) for engine, spaces in self.asked])
        return Bounded(values, slopes, signs)


class ByMatrices:
    """Bound values of a small chain of ReLUs.

    Args:
        chain: the network.
        spaces: the cases.
        rounded: bound every float32 machine, not the exact network.
    """

    def __init__(self, chain: Chain, spaces: HalfSpaces, *, rounded: bool) -> None:
        self.chain, self.spaces, self.rounded = chain, spaces, rounded
        self.size, self.neurons = MATRIX_BOXES, chain.hidden

    def __call__(self, low: Tensor, high: Tensor, signs: Tensor) -> Bounded:
        with torch.no_grad(), trusted_arithmetic():
            box = Interval(low.flatten(1), high.flatten(1))
            boxed = Boxed(self.chain, box, signs, rounded=self.rounded)
            found = boxed.run()
            rows = boxed.values(self.spaces.outputs)
            return _bounded(self.spaces, boxed, [rows], signs, found, boxed.overflow)


class PairByMatrices:
    """Bound values of two small chains of ReLUs of one structure; the outputs are the student's, then the teacher's.

    Args:
        chains: student and teacher.
        spaces: the cases.
        rounded: bound every float32 machine, not the exact networks.
        relations: the relaxations.
    """

    def __init__(
        self,
        chains: tuple[Chain, Chain],
        spaces: HalfSpaces,
        *,
        rounded: bool,
        relations: Relations = Relations.BOTH,
    ) -> None:
        self.chains, self.spaces, self.rounded, self.relations = chains, spaces, rounded, relations
        self.size, self.neurons = MATRIX_BOXES, sum(chain.hidden for chain in chains)

    def __call__(self, low: Tensor, high: Tensor, signs: Tensor) -> Bounded:
        with torch.no_grad(), trusted_arithmetic():
            box = Interval(low.flatten(1), high.flatten(1))
            pair = BoxedPair(self.chains, box, signs, rounded=self.rounded, relations=self.relations)
            rows = pair.values(self.spaces.outputs)
            return _bounded(self.spaces, pair.student, rows, signs, pair.found, pair.overflow)


def _bounded(
    spaces: HalfSpaces,
    boxed: Boxed,
    rows: list[tuple[Tensor, Tensor]],
    signs: Tensor,
    found: list[Found],
    overflow: Bool[Tensor, " batch"],
) -> Bounded:
    """Minimise rows of the inputs, and take the best of each value."""
    done = []
    for slopes, constant in rows:
        if spaces.inputs is not None:
            slopes = slopes + spaces.inputs[:, None]
        values = boxed.least(slopes, constant + spaces.constant[:, None], None)
        values = values.where(values.isfinite() & ~overflow, torch.nan)
        done.append((values.T, slopes.transpose(0, 1)))
    return Bounded(*best(done), signs, found)


def best(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Take the largest bound of every value, with its slopes; nan is no bound."""
    values, slopes = found[0]
    for more, others in found[1:]:
        better = (more > values) | (values.isnan() & ~more.isnan())
        values, slopes = more.where(better, values), others.where(better[..., None], slopes)
    return values, slopes


def bounder_of(native: Native, spaces: HalfSpaces) -> Bounder:
    """Choose the way to bound one network."""
    chain = chain_of(native.graph)
    if chain is None or native.dtype != torch.float64 or not native.intersect:
        return ByEngine([native], spaces)
    return ByMatrices(chain, spaces, rounded=native.arithmetic is Arithmetic.FLOAT32)


def pair_bounder_of(engine: JointEngine, spaces: HalfSpaces) -> Bounder:
    """Choose the way to bound a pair of networks."""
    chains = tuple(chain_of(graph) for graph in engine.graphs)
    student, teacher = chains
    if student is None or teacher is None or student.shape != teacher.shape:
        return ByEngine(engine.engines, spaces)
    rounded = engine.engines[0].arithmetic is Arithmetic.FLOAT32
    return PairByMatrices((student, teacher), spaces, rounded=rounded)
