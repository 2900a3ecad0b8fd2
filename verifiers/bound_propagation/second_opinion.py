"""Check a few samples of a run by the other engine."""

from dataclasses import dataclass, field
from functools import partial

from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation.cross_check import CrossCheck
from verifiers.bound_propagation.engine import Engine
from verifiers.core.errors import Unsupported
from verifiers.core.question import Question
from verifiers.core.table import counted
from verifiers.geometry.balls import Balls
from verifiers.graph.program import Program
from verifiers.runtime.certifier import Batch
from verifiers.runtime.oom import fits


@dataclass
class SecondOpinion:
    """Cross-check the first samples of a run against the other engine.

    Attributes:
        check: the check; None if the other engine does not support the network.
        wanted: number of samples to check.
        note: one line about the checks, or the reason why there were none.
        method: the bound method.
    """

    check: CrossCheck | None
    wanted: int
    note: str
    question: Question
    method: str
    checked: set[int] = field(default_factory=set)

    @classmethod
    def prepare(
        cls,
        program: Program,
        samples: Float[Tensor, "two *shape"],
        engine: Engine,
        question: Question,
        method: str,
        wanted: int,
    ) -> "SecondOpinion":
        """Build the other engine and try it on a sample."""
        made: list[CrossCheck] = []

        def make() -> None:
            check = CrossCheck(program, samples, engine)
            check.try_out(Balls.around(samples[:1].double(), question.eps.value, question.norm), method)
            made.append(check)

        try:
            fitted, why = fits(make), "a sample does not fit into memory with the other engine"
        except Unsupported as error:
            fitted, why = False, str(error)
        opinion = cls(made[0] if fitted else None, wanted, f"not cross-checked: {why}", question, method)
        if fitted:
            opinion._say()
        return opinion

    def __call__(self, batch: Batch) -> None:
        """Check further samples until enough are checked.

        Raises:
            Contradiction: the engines exclude each other, or a point of the ball breaks a bound.
        """
        if self.check is None:
            return
        unfit = False
        for i, index in enumerate(batch.indices.tolist()):
            if len(self.checked) >= self.wanted or index in self.checked:
                continue
            one = slice(i, i + 1)
            balls = Balls.around(batch.x[one], self.question.eps.value, self.question.norm)
            if fits(partial(self.check, balls, batch.predicted[one], self.method)):
                self.checked.add(index)
            else:
                unfit = True
        self._say("; some did not fit into memory" if unfit else "")

    def _say(self, more: str = "") -> None:
        assert self.check is not None
        self.note = f"{counted(len(self.checked), 'sample')} cross-checked by {self.check.other.name}{more}"
