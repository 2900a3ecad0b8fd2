"""Bound the values of cases: by the engine of one network, or by the engines of a pair."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation import (
    Ended,
    HalfSpaces,
    InputSplitting,
    JointEngine,
    Native,
    Tries,
    by_neurons,
    lower_values,
    native_engine,
    pair_bounder_of,
    split_pair,
)
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Arithmetic
from verifiers.geometry.boxes import Boxes
from verifiers.graph.program import PairProgram, Program


@runtime_checkable
class Bounding(Protocol):
    """Bound and refute cases on one box."""

    def values(self, boxes: Boxes, spaces: HalfSpaces) -> Float[Tensor, "batch values"]:
        """Bound values from below by CROWN; nan where nothing is known."""

    def by_inputs(self, boxes: Boxes, spaces: HalfSpaces, *, deadline: float, tries: Tries) -> Ended:
        """Refute cases by splitting the box."""

    def by_neurons(self, boxes: Boxes, spaces: HalfSpaces, *, iterations: int, deadline: float, tries: Tries) -> Ended:
        """Refute cases by splitting neurons."""


@dataclass(frozen=True)
class Single:
    """The engine of a network, or of a pair in one graph."""

    native: Native

    def values(self, boxes: Boxes, spaces: HalfSpaces) -> Float[Tensor, "batch values"]:
        return lower_values(self.native, boxes, spaces)[0]

    def by_inputs(self, boxes: Boxes, spaces: HalfSpaces, *, deadline: float, tries: Tries) -> Ended:
        return InputSplitting(self.native, spaces, deadline=deadline, tries=tries).run(boxes)

    def by_neurons(self, boxes: Boxes, spaces: HalfSpaces, *, iterations: int, deadline: float, tries: Tries) -> Ended:
        return by_neurons(self.native, spaces, boxes, iterations=iterations, deadline=deadline, tries=tries)


@dataclass(frozen=True)
class Joint:
    """The engines of a pair; of copies, the better of two graphs counts for boxes, and the coupled one for neurons."""

    engine: JointEngine

    def values(self, boxes: Boxes, spaces: HalfSpaces) -> Float[Tensor, "batch values"]:
        bounder = pair_bounder_of(self.engine, spaces)
        signs = torch.zeros((len(boxes), bounder.neurons), dtype=torch.int8, device=boxes.x.device)
        return bounder(*boxes.box(), signs)[0].values

    def by_inputs(self, boxes: Boxes, spaces: HalfSpaces, *, deadline: float, tries: Tries) -> Ended:
        return split_pair(self.engine, spaces, boxes, deadline=deadline, tries=tries)

    def by_neurons(self, boxes: Boxes, spaces: HalfSpaces, *, iterations: int, deadline: float, tries: Tries) -> Ended:
        native = self.engine.engines[-1]  # of copies the coupled graph, whose further outputs count for nothing
        spaces = spaces.padded(native.graph.classes)
        return by_neurons(native, spaces, boxes, iterations=iterations, deadline=deadline, tries=tries)


def bounding_of(program: Program, samples: Float[Tensor, "two *shape"], arithmetic: Arithmetic) -> Bounding:
    """Build the engines of a program, once per program and arithmetic.

    Raises:
        Unsupported: the network cannot be captured, or an operator has no bounds.
        Contradiction: a graph is not the network.
    """
    if isinstance(program, PairProgram):
        student, teacher = program.parts
        with suppress(Unsupported):  # networks with other numbers of outputs are bounded in one graph
            key = ("joint", arithmetic)
            return Joint(program.once(key, lambda: JointEngine(student, teacher, samples, arithmetic)))
    return Single(native_engine(program, samples, arithmetic))
