"""Bound the values of cases over thousands of boxes at once: by matrices where they fit, else by the native engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from verifiers.bound_propagation.boxes.chains import Chain, chain_of, without
from verifiers.bound_propagation.boxes.network import Boxed, least, signs_of
from verifiers.bound_propagation.boxes.pair import BoxedPair, Relations
from verifiers.bound_propagation.half_spaces import HalfSpaces, lower_values
from verifiers.bound_propagation.joint import JointEngine
from verifiers.bound_propagation.native.engine import Native
from verifiers.geometry.boxes import Boxes
from verifiers.graph.operators import Interval
from verifiers.graph.rows import shape_size
from verifiers.runtime.modes import trusted_arithmetic

#: The most values in the nodes of one round's boxes, and the most boxes of a round by the engine and by matrices.
ROUND, ENGINE_BOXES, MATRIX_BOXES = 2**21, 512, 1024
#: So many boxes are worth a look at their hull first.
MANY = 32


@dataclass
class Bounded:
    """Lower bounds of values over boxes, with the linear functions of the inputs whose least values they are.

    Attributes:
        values: the bounds; nan where nothing is known.
        slopes: the functions' slopes.
        signs: known signs of neurons, to be given to later rounds.
    """

    values: Float[Tensor, "batch values"]
    slopes: Float[Tensor, "batch values inputs"]
    signs: Int8[Tensor, "batch neurons"]

    def take(self, chosen: Tensor) -> "Bounded":
        """Select some of the boxes."""
        return Bounded(self.values[chosen], self.slopes[chosen], self.signs[chosen])


#: Bounds values on parts of boxes, given by each part's box and corners, from the functions below the neurons.
Parts = Callable[[Int[Tensor, " parts"], Tensor, Tensor], Bounded]


@runtime_checkable
class Bounder(Protocol):
    """Bound values of one set of cases; ``size`` is the number of boxes of a round, ``neurons`` that of signs kept."""

    size: int
    neurons: int

    def __call__(self, low: Tensor, high: Tensor, signs: Int8[Tensor, "batch neurons"]) -> tuple[Bounded, Parts | None]:
        """Bound the values over boxes, given by their corners, on which the signs are known to hold.

        Returns:
            The bounds, and what bounds parts of the boxes at a small share of the cost, if anything does.
        """


class ByEngine:
    """Bound values by native engines, the better row by row; further outputs of an engine count for nothing."""

    neurons = 0

    def __init__(self, engines: list[Native], spaces: HalfSpaces) -> None:
        self.asked = [(engine, spaces.padded(engine.graph.classes)) for engine in engines]
        nodes = max(sum(shape_size(node.shape) for node in engine.graph.nodes) for engine in engines)
        self.size = max(1, min(ENGINE_BOXES, ROUND // nodes))

    def __call__(self, low: Tensor, high: Tensor, signs: Tensor) -> tuple[Bounded, None]:
        boxes = Boxes.between(low, high)
        found = [lower_values(engine, boxes, spaces) for engine, spaces in self.asked]
        return Bounded(*best(found), signs), None


@dataclass
class Active:
    """Networks without the ReLUs that are 0 on all boxes of a batch.

    Attributes:
        chains: the smaller networks.
        kept: the neurons of each that are left, counted through all networks.
        neurons: the number of all neurons.
    """

    chains: Sequence[Chain]
    kept: Int[Tensor, " kept"]
    neurons: int

    @classmethod
    def of(cls, chains: Sequence[Chain], signs: Int8[Tensor, "batch neurons"]) -> "Active":
        """Leave out neurons whose signs are negative on all boxes, and in all networks."""
        shape, hidden = chains[0].shape[1:-1], chains[0].hidden
        dead = torch.stack((signs < 0).all(0).chunk(len(chains))).all(0)
        kept = [(~part).nonzero().flatten() for part in dead.split(shape)]
        smaller = [without(chain, kept) for chain in chains]
        found = [chain for chain in smaller if chain is not None]
        if len(found) < len(chains) or not all(len(each) for each in kept):
            return cls(chains, torch.arange(signs.shape[1], device=signs.device), signs.shape[1])
        one = (~dead).nonzero().flatten()
        return cls(found, torch.cat([one + i * hidden for i in range(len(chains))]), signs.shape[1])

    def known(self, signs: Int8[Tensor, "batch neurons"]) -> Int8[Tensor, "batch kept"]:
        """Select the signs of the neurons that are left."""
        return signs[:, self.kept]

    def all_of(self, signs: Sequence[Int8[Tensor, "batch kept"]]) -> Int8[Tensor, "batch neurons"]:
        """Return the signs of all neurons."""
        found = signs[0].new_full((len(signs[0]), self.neurons), -1)
        found[:, self.kept] = torch.cat(list(signs), 1)
        return found


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

    def __call__(self, low: Tensor, high: Tensor, signs: Tensor) -> tuple[Bounded, Parts]:
        signs = of_hull(self, low, high, signs)
        with torch.no_grad(), trusted_arithmetic():
            active = Active.of([self.chain], signs)
            boxed = Boxed(active.chains[0], flat(low, high), active.known(signs), rounded=self.rounded)
            found = boxed.run()

            def parts(parents: Tensor, low: Tensor, high: Tensor) -> Bounded:
                box = flat(low, high)
                return self._bounded(boxed.on(parents, box, boxed.narrowed(parents, box, found)), active)

            return self._bounded(boxed, active), by_blocks(parts)

    def _bounded(self, boxed: Boxed, active: Active) -> Bounded:
        signs = active.all_of([signs_of(boxed.before[: len(boxed.lines)])])
        return bounded(self.spaces, boxed.box, [boxed.values(self.spaces.outputs)], signs, boxed.overflow)


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

    def __call__(self, low: Tensor, high: Tensor, signs: Tensor) -> tuple[Bounded, Parts]:
        signs = of_hull(self, low, high, signs)
        with torch.no_grad(), trusted_arithmetic():
            active = Active.of(self.chains, signs)
            student, teacher = active.chains
            pair = BoxedPair(
                (student, teacher), flat(low, high), active.known(signs), rounded=self.rounded, relations=self.relations
            )
            pair.run()
            parts = by_blocks(lambda parents, low, high: self._bounded(pair.on(parents, flat(low, high)), active))
            return self._bounded(pair, active), parts

    def _bounded(self, pair: BoxedPair, active: Active) -> Bounded:
        nets = pair.student, pair.teacher
        signs = active.all_of([signs_of(net.before[: len(net.lines)]) for net in nets])
        return bounded(self.spaces, pair.box, pair.values(self.spaces.outputs), signs, pair.overflow)


def of_hull(
    bounder: Bounder, low: Tensor, high: Tensor, signs: Int8[Tensor, "batch neurons"]
) -> Int8[Tensor, "batch neurons"]:
    """Find signs that hold on all boxes by bounding their hull, if none is known and the boxes are many.

    Neurons that are 0 everywhere cost nothing from then on.
    """
    if len(low) < MANY or bool(signs.any()):
        return signs
    return bounder(low.amin(0, True), high.amax(0, True), signs[:1])[0].signs.expand(len(low), -1)


def flat(low: Tensor, high: Tensor) -> Interval:
    """Return boxes of flat inputs."""
    return Interval(low.flatten(1), high.flatten(1))


def by_blocks(parts: Parts) -> Parts:
    """Bound parts of boxes block by block, as their number varies."""

    def run(parents: Tensor, low: Tensor, high: Tensor) -> Bounded:
        with torch.no_grad(), trusted_arithmetic():
            blocks = zip(*(each.split(MATRIX_BOXES) for each in (parents, low, high)), strict=True)
            found = [parts(*block) for block in blocks]
        return Bounded(*(torch.cat([getattr(each, field.name) for each in found]) for field in fields(Bounded)))

    return run


def bounded(
    spaces: HalfSpaces,
    box: Interval,
    rows: list[tuple[Tensor, Tensor]],
    signs: Tensor,
    overflow: Bool[Tensor, " batch"],
) -> Bounded:
    """Minimise rows of the inputs, and take the best of each value; no sign is known where values may overflow."""
    done = []
    for slopes, constant in rows:
        if spaces.inputs is not None:
            slopes = slopes + spaces.inputs[:, None]
        values = least(slopes, constant + spaces.constant[:, None], box)
        values = values.where(values.isfinite() & ~overflow, torch.nan)
        done.append((values.T, slopes.transpose(0, 1)))
    return Bounded(*best(done), signs.masked_fill(overflow[:, None], 0))


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
    return ByMatrices(chain, spaces, rounded=native.arithmetic.deployed)


def pair_bounder_of(engine: JointEngine, spaces: HalfSpaces) -> Bounder:
    """Choose the way to bound a pair of networks."""
    chains = tuple(chain_of(graph) for graph in engine.graphs)
    student, teacher = chains
    if student is None or teacher is None or student.shape != teacher.shape:
        return ByEngine(engine.engines, spaces)
    rounded = engine.engines[0].arithmetic.deployed
    return PairByMatrices((student, teacher), spaces, rounded=rounded)
