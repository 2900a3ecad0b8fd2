"""Decide a property of one network, or of a pair: a counterexample that runs, a proof, or neither with a reason."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from verifiers.bound_propagation import FEW_INPUTS, ITERATIONS, Ended, HalfSpaces
from verifiers.core.errors import Contradiction, Unsupported
from verifiers.core.quantities import Arithmetic
from verifiers.geometry.boxes import Boxes
from verifiers.graph.program import Program
from verifiers.properties.engines import Bounding, bounding_of
from verifiers.properties.property import Case, Property
from verifiers.properties.spaces import half_spaces
from verifiers.properties.witnesses import Descent, Reference, Witness, WitnessSearch
from verifiers.runtime.modes import eval_mode, trusted_arithmetic
from verifiers.runtime.oom import MEMORY_ERRORS, out_of_memory

#: Boxes beyond which bounds come before the search for counterexamples.
MANY = 16
#: The share of the time that is left for a random search before neurons are split.
HUNT_SHARE = 0.1


class Verdict(StrEnum):
    """The answer to a property."""

    SAT = "sat"
    UNSAT = "unsat"
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Answer:
    """The answer to a property.

    Attributes:
        verdict: ``sat`` only with a witness, ``unsat`` only with a proof for every case.
        witness: a point that satisfies the property.
        reason: why it is unknown; empty otherwise.
        parts: number of parts of boxes that were bounded.
    """

    verdict: Verdict
    witness: Witness | None = None
    reason: str = ""
    parts: int = 0


@dataclass(frozen=True)
class Solver:
    """Decide properties of one network, or of a pair whose outputs are those of both in a row.

    Attributes:
        program: the network, entire: a property is about its outputs, not about the scores before a last layer.
        shape: shape of one input.
        reference: another implementation of the network; a counterexample must satisfy the property in both.
        arithmetic: what a proof is about.
        descent: the search for counterexamples.
        iterations: steps of alpha-CROWN.
    """

    program: Program
    shape: tuple[int, ...]
    reference: Reference | None = None
    arithmetic: Arithmetic = Arithmetic.FLOAT32
    descent: Descent = field(default_factory=Descent)
    iterations: int = ITERATIONS

    def __call__(self, question: Property, deadline: float) -> Answer:
        """Decide a property; ``deadline`` is on ``time.monotonic``.

        Raises:
            ValueError: the program leaves out a last layer.
        """
        if not self.program.entire:
            raise ValueError("a property is about the entire network: Program(network, entire=True)")
        with eval_mode(self.program.given), trusted_arithmetic():
            return self._decide(question, deadline)

    def _decide(self, question: Property, deadline: float) -> Answer:
        engine, groups = self._engine(question), grouped(question.cases)
        parts, open_, late, reason = 0, 0, False, ""
        for cases in groups:
            if late or time.monotonic() > deadline:
                return Answer(Verdict.UNKNOWN if reason else Verdict.TIMEOUT, reason=reason, parts=parts)
            search = WitnessSearch(self.program.module, cases, self.shape, self.reference)
            end = self._refute(engine, search, question, deadline, many=len(groups) > MANY)
            parts, late = parts + end.parts, end.late
            if search.found is not None:
                return Answer(Verdict.SAT, search.found, parts=parts)
            reason = reason or search.doubt or end.reason
            open_ += bool(search.doubt) or not end.proved
        if not open_:
            return Answer(Verdict.UNSAT, parts=parts)
        if late and not reason:
            return Answer(Verdict.TIMEOUT, parts=parts)
        return Answer(Verdict.UNKNOWN, reason=reason or "nothing was proved", parts=parts)

    def _engine(self, question: Property) -> Bounding | str:
        """Build the engine, or return the reason why there is none."""
        if not question.cases:
            return "the property has no case"
        ends = [torch.from_numpy(end).reshape(1, *self.shape) for end in question.cases[0].box.images]
        try:
            return bounding_of(self.program, torch.cat(ends), self.arithmetic)
        except (Unsupported, Contradiction) as error:
            return str(error)

    def _refute(
        self, engine: Bounding | str, search: WitnessSearch, question: Property, deadline: float, *, many: bool
    ) -> Ended:
        """Refute the cases of one box or find a counterexample; every failure but a lack of time gives a reason.

        A short search comes first, except among many boxes, of which CROWN refutes most.
        """
        try:
            spaces = half_spaces(search.cases, question.inputs, question.outputs)
        except Unsupported as error:
            search.tries(search.low / 2 + search.high / 2, None)
            return Ended(False, reason=str(error))

        try:
            if not many:
                self.descent.first(search, spaces)
            if search.found is None and not isinstance(engine, str):
                left = self._left(engine, search, spaces)
                if not len(left):
                    return Ended(True, 1)
                spaces = spaces.take(left)
            self.descent(search, spaces, deadline)
            if search.found is not None or isinstance(engine, str):
                return Ended(False, reason=engine if isinstance(engine, str) else "")
            return self._split(engine, search, spaces, deadline)
        except (Unsupported, Contradiction) as error:
            return Ended(False, reason=str(error))
        except MEMORY_ERRORS as error:
            if not out_of_memory(error):
                raise
            return Ended(False, reason="a bound does not fit into memory")

    def _split(self, engine: Bounding, search: WitnessSearch, spaces: HalfSpaces, deadline: float) -> Ended:
        """Refute cases by splitting inputs or neurons."""
        boxes = self._boxes(search)

        def tries(points: Tensor) -> Tensor:
            return search.tries(points, spaces)

        if int((boxes.low < boxes.high).sum()) <= FEW_INPUTS:
            return engine.by_inputs(boxes, spaces, deadline=deadline, tries=tries)
        now = time.monotonic()
        self.descent.hunt(search, spaces, now + HUNT_SHARE * (deadline - now))
        if search.found is not None:
            return Ended(False)
        return engine.by_neurons(boxes, spaces, iterations=self.iterations, deadline=deadline, tries=tries)

    def _boxes(self, search: WitnessSearch) -> Boxes:
        return Boxes.between(*(torch.from_numpy(end).reshape(1, *self.shape).double() for end in search.box.hull))

    def _left(self, engine: Bounding, search: WitnessSearch, spaces: HalfSpaces) -> Tensor:
        """Return the numbers of the cases that CROWN does not refute on the whole box.

        Raises:
            Contradiction: a point of the box breaks a bound.
        """
        values = engine.values(self._boxes(search), spaces)
        self._check(search, spaces, values)
        return (~(spaces.largest(values)[0] > 0)).nonzero().flatten()

    def _check(self, search: WitnessSearch, spaces: HalfSpaces, values: Tensor) -> None:
        """Check bounds at corners and the centre.

        Raises:
            Contradiction: a point of the box breaks a bound.
        """
        points = torch.cat([search.low, search.high, search.low / 2 + search.high / 2])
        with torch.no_grad():
            found = spaces.values(points, self.program.module(points).flatten(1))
        slack = 1e-9 * found.abs().nan_to_num(0.0, 0.0, 0.0).amax().clamp_min(1.0)
        if bool((found < spaces.largest(values) - slack).any()):
            raise Contradiction("native: a point of the box breaks a bound")


def grouped(cases: Sequence[Case]) -> list[list[Case]]:
    """Group cases that share a box object, in the order of the first of each."""
    groups: dict[int, list[Case]] = {}
    for case in cases:
        groups.setdefault(id(case.box), []).append(case)
    return list(groups.values())
