"""Summarise where a student provably matches its teacher, where a point shows that it does not, and what is open."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from verifiers.core.errors import InputError
from verifiers.core.relation import Property, Relation
from verifiers.core.status import Status
from verifiers.core.table import Part, Table, counted, figure
from verifiers.results.rows import Certificates, MethodRows


class Stage(IntEnum):
    """The stages, in the order in which a sample meets them; identity comes before all others."""

    IMAGE = 1
    ATTACK = 2
    CROWN = 3
    ALONE = 4
    TOGETHER = 5
    SPLITTING = 6
    IDENTITY = 7

    @property
    def title(self) -> str:
        """Its name in tables and descriptions."""
        return _TITLES[self]


_TITLES = {
    Stage.IMAGE: "the image itself",
    Stage.ATTACK: "attack",
    Stage.CROWN: "CROWN",
    Stage.ALONE: "each network alone",
    Stage.TOGETHER: "both together",
    Stage.SPLITTING: "input splitting",
    Stage.IDENTITY: "identity of the two networks",
}
#: The stages that can only refute; the others prove, or meet a point on the way.
SEARCHES = (Stage.IMAGE, Stage.ATTACK)
#: Rows that are open, by the reason; NOT_CERTIFIED ones need none.
_OPEN = {
    Status.TIMEOUT: "out of time",
    Status.OUT_OF_MEMORY: "out of memory",
    Status.UNSUPPORTED: "unsupported",
    Status.ERROR: "in error",
    Status.PENDING: "not asked yet",
}
#: Quantiles of the least threshold that is proved.
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Matched:
    """The answers of the method ``match``.

    Attributes:
        kind, tolerance, delta: of the relation.
        samples: their number.
        proved: samples on whose ball the property holds.
        refuted: samples with a stored point that breaks it.
        open: samples that are neither, by the reason.
        seconds: mean time of a sample; nan without one.
    """

    kind: str
    tolerance: float
    delta: float
    samples: int
    proved: int
    refuted: int
    open: dict[str, int]
    seconds: float

    @classmethod
    def of(cls, rows: MethodRows, certificates: Certificates) -> "Matched":
        """Count the answers of a file's rows.

        Raises:
            InputError: the file's settings name no property of a pair.
        """
        try:
            settings = json.loads(str(certificates.attributes["settings"]))[rows.name]
            relation = Relation(Property(settings["property"]), settings["tolerance"], settings["delta"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{certificates.path}: the settings of {rows.name} are no property of a pair") from None
        decided = rows.count(Status.CERTIFIED), rows.count(Status.FALSIFIED)
        reasons = {words: rows.count(status) for status, words in _OPEN.items()}
        reasons["undecided"] = len(rows) - sum(decided) - sum(reasons.values())
        left = {words: count for words, count in reasons.items() if count}
        spent = rows["seconds"][np.isfinite(rows["seconds"])]
        seconds = float(spent.mean()) if len(spent) else math.nan
        return cls(str(relation.kind), relation.tolerance, relation.delta, len(rows), *decided, left, seconds)

    @property
    def relation(self) -> Relation:
        """The property and its threshold."""
        return Relation(Property(self.kind), self.tolerance, self.delta)

    @property
    def threshold(self) -> str:
        """The word for its threshold."""
        return "delta" if self.kind == Property.SAME_CLASS else "tolerance"

    @property
    def name(self) -> str:
        """The property and its threshold in a table."""
        value = self.relation.threshold
        return f"{self.kind}, {self.threshold} {value:g}" if value else self.kind

    @property
    def sentence(self) -> str:
        """The result in one sentence, for a sign-off."""
        holds, fails = _words(self.relation)
        samples = "sample" if self.samples == 1 else "samples"
        share = f"all {self.samples}" if self.proved == self.samples > 1 else f"{self.proved} of {self.samples}"
        refuted = "none is refuted"
        if self.refuted:
            refuted = f"on {self.refuted} {fails}, here is a point{' for each' if self.refuted > 1 else ''}"
        return f"{holds} for {share} {samples}; {refuted}; {self._open()}."

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, the sentence among them."""
        return {**asdict(self), "sentence": self.sentence}

    def _open(self) -> str:
        count = sum(self.open.values())
        several = len(self.open) > 1
        reasons = ", ".join(f"{number} {words}" if several else words for words, number in self.open.items())
        return f"{count} {'is' if count == 1 else 'are'} open ({reasons})" if count else "none is open"


def _words(relation: Relation) -> tuple[str, str]:
    """Say that a property holds on the ball of the samples that follow, and that it does not."""
    threshold = f"{relation.threshold:g}"
    if relation.kind is Property.CLOSE:
        return f"The student's logits are within {threshold} of the teacher's everywhere in the ball", "they are not"
    if relation.kind is Property.NOT_WORSE:
        below = f"more than {threshold} below" if relation.tolerance else "below"
        return f"The student's margin is nowhere in the ball {below} the teacher's", "it is"
    if relation.kind is Property.TRANSFER:
        return "The student keeps the teacher's class of the image wherever in the ball the teacher does", "it does not"
    if relation.delta:
        sure = f"wherever in the ball the teacher prefers it by more than {threshold}"
        return f"The student gives the teacher's class {sure}", "it does not"
    return "The student gives the teacher's class everywhere in the ball", "it does not"


def summary(rows: MethodRows, certificates: Certificates) -> list[Part]:
    """Say the result in one sentence, then tabulate the answers and the stages that gave them."""
    found = Matched.of(rows, certificates)
    title = f"Student and teacher on the {rows.norm} ball of eps {rows.eps_text}, {counted(len(rows), 'sample')}"
    return [found.sentence, answers(title, [found]), _stages(rows), *_least(found, rows["least"])]


def answers(title: str, several: Sequence[Matched]) -> Table:
    """Tabulate the answers, a line for each property."""
    lines = [
        [one.name, str(one.proved), str(one.refuted), str(sum(one.open.values())), figure(one.seconds)]
        for one in several
    ]
    return Table(title, ["property", "proved", "refuted", "open", "s/sample"], lines)


def _stages(rows: MethodRows) -> Table:
    """Count the samples that each stage decided; stages without any are left out."""
    lines, ended = [], np.isin(rows["status"], [Status.CERTIFIED, Status.FALSIFIED])
    for stage in (stage for stage in Stage if (ended & (rows["stage"] == stage)).any()):
        here = rows["stage"] == stage
        decided = [int((here & (rows["status"] == status)).sum()) for status in (Status.CERTIFIED, Status.FALSIFIED)]
        lines.append([stage.title, *("-" if stage in SEARCHES and not i else str(n) for i, n in enumerate(decided))])
    return Table("Decided by", ["stage", "proved", "refuted"], lines)


def _least(found: Matched, least: np.ndarray) -> list[Part]:
    """Tabulate the least tolerance or delta proved, where it was bisected."""
    known = least[np.isfinite(least)]
    if not len(known):
        return []
    title = f"Least {found.threshold} proved, logits, {counted(len(known), 'sample')}"
    values = [figure(float(value)) for value in np.quantile(known, _QUANTILES)]
    return [Table(title, [f"{q:.0%}" for q in _QUANTILES], [values])]
