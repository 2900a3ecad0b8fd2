"""A row of the table of training objectives."""

from collections.abc import Callable
from dataclasses import dataclass, field

from certkd.objectives import Objective
from certkd.objectives.base import Batch


@dataclass(frozen=True)
class Row:
    """An objective with settings other than the defaults, its literal version, and what is particular to it.

    Attributes:
        weights: of each term.
        forwards: student forward passes in train mode in one step; the teachers' all.
        zero: terms that vanish when all networks are the same.
        blind: classes of no probability change nothing (not so where all logits are aligned, bounded or subtracted).
    """

    objective: Objective
    oracle: Callable[[Batch], dict[str, float]]
    weights: dict[str, float]
    forwards: int = 1
    teacher_forwards: int = 0
    natural_forwards: int = 0
    zero: frozenset[str] = field(default=frozenset())
    blind: bool = True
    note: str = ""

    @property
    def name(self) -> str:
        """For test ids; marked where only the paper's abstract was read."""
        marks = [self.note, "(abstract)" * self.objective.paper.endswith("(abstract)")]
        return " ".join([self.objective.kind, *filter(None, marks)])
