"""Summarise complete verification: the stages of its cascade."""

from enum import IntEnum

import numpy as np

from verifiers.core.status import Status
from verifiers.core.table import Part, Table
from verifiers.results.rows import Certificates, MethodRows


class Stage(IntEnum):
    """The stages, in the order in which a sample meets them."""

    ATTACK = 1
    IBP = 2
    CROWN = 3
    ALPHA_CROWN = 4
    BRANCH_AND_BOUND = 5

    @property
    def title(self) -> str:
        """Its name in tables and descriptions."""
        return self.name.lower().replace("_", "-").replace("-and-", " and ")

    @property
    def column(self) -> str:
        """The column with its seconds."""
        return f"{self.name.lower()}_seconds"


_DECIDED = (Status.CERTIFIED, Status.FALSIFIED)


def summary(rows: MethodRows, certificates: Certificates) -> list[Part]:
    """Tabulate how many samples met each stage, how many it settled, and what it cost."""
    left, lines = rows["stage"] > 0, []
    for stage in Stage:
        decided = [int(np.sum((rows["stage"] == stage) & (rows["status"] == status))) for status in _DECIDED]
        count, spent = int(left.sum()), float(np.nansum(rows[stage.column][left]))
        left = left & (rows["stage"] != stage)
        open_ = count - sum(decided) if stage is Stage.BRANCH_AND_BOUND else int(left.sum())
        each = f"{spent / count:.4f}" if count else "-"
        lines.append([stage.title, *map(str, (count, *decided, open_)), f"{spent:.1f}", each])
    columns = ["stage", "met", "certified", "falsified", "left", "seconds", "s/sample"]
    return [Table("Stages of complete verification", columns, lines)]
