"""Relations between a student and a teacher that are decided over a region."""

from dataclasses import dataclass
from enum import StrEnum

from verifiers.core.errors import InputError


class Property(StrEnum):
    """The properties of a pair."""

    SAME_CLASS = "same-class"
    CLOSE = "close"
    NOT_WORSE = "not-worse"
    TRANSFER = "transfer"


#: The properties that have a tolerance.
TOLERANT = (Property.CLOSE, Property.NOT_WORSE)


def settings_of(text: str) -> dict[str, str]:
    """Read a property with its threshold, like close=0.5, as settings of ``match``.

    Raises:
        InputError: it has a threshold that the property does not have.
    """
    name, sign, threshold = text.replace(" ", "").partition("=")
    if not sign:
        return {"property": name}
    if name == Property.TRANSFER:
        raise InputError(f"{name} has no threshold: drop ={threshold}")
    return {"property": name, "delta" if name == Property.SAME_CLASS else "tolerance": threshold}


@dataclass(frozen=True)
class Relation:
    """A property of a pair, with its threshold in logits.

    Let c be the teacher's class at the image, S and T the logits, and m the margin of c.

    * ``same-class``: wherever the teacher prefers a class by more than ``delta``, the student predicts it.
    * ``close``: ``|S_k - T_k| <= tolerance`` for every class k.
    * ``not-worse``: ``m_S >= m_T - tolerance``.
    * ``transfer``: wherever the teacher predicts c, the student does.

    Raises:
        InputError: the property has no such threshold, or it is negative.
    """

    kind: Property = Property.SAME_CLASS
    tolerance: int | float = 0.0
    delta: int | float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf") or not 0 <= self.delta < float("inf"):
            raise InputError(f"tolerance {self.tolerance:g} and delta {self.delta:g} must be numbers of at least 0")
        if self.tolerance and self.kind not in TOLERANT:
            raise InputError(f"{self.kind} has no tolerance: drop tolerance {self.tolerance:g}")
        if self.delta and self.kind is not Property.SAME_CLASS:
            raise InputError(f"{self.kind} has no delta: drop delta {self.delta:g}")
        if self.kind is Property.CLOSE and not self.tolerance:
            raise InputError("close needs a tolerance above 0, in logits, like 0.05")

    @property
    def threshold(self) -> float:
        """The tolerance or delta."""
        return self.delta if self.kind is Property.SAME_CLASS else self.tolerance

    @property
    def label(self) -> str:
        """The property and its threshold in the name of a file."""
        return f"{self.kind}{self.threshold:g}" if self.threshold else str(self.kind)

    @property
    def of_classes(self) -> bool:
        """True if the property compares the classes of both networks, and not their logits."""
        return self.kind not in TOLERANT

    def at(self, threshold: float) -> "Relation":
        """Return the same property with another threshold."""
        if self.kind is Property.SAME_CLASS:
            return Relation(self.kind, delta=threshold)
        return Relation(self.kind, tolerance=threshold)
