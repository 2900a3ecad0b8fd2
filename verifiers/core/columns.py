"""The per-sample columns of a certificate file."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from verifiers.core.status import Guarantee, Status


@dataclass(frozen=True)
class Column:
    """One per-sample value of a method, as it is stored.

    Attributes:
        name: dataset name in the certificate file.
        dtype: numpy dtype string.
        units: "pixels", "logits", "seconds" or "" for counts, flags and labels.
        description: of the value, in one line.
        axes: of a row that is not a scalar: a length, "image" for the axes of an image, "class" for one per class.
        guarantee: strength of the value, if it differs from that of the method.
    """

    name: str
    dtype: str
    units: str
    description: str
    axes: tuple[int | str, ...] = ()
    guarantee: Guarantee | None = None

    @property
    def fill(self) -> Any:
        """The value of a row that has not been computed."""
        return np.nan if self.dtype.startswith("float") else -1 if self.dtype.startswith("int") else 0


#: The columns that every method has. ``certify.py`` fills all but radius and margin.
COMMON_COLUMNS = (
    Column("index", "int64", "", "index of the sample in its data set split"),
    Column("label", "int64", "", "true class"),
    Column("predicted", "int64", "", "class predicted by the network on the clean image"),
    Column("correct", "uint8", "", "1 when the predicted class is the true class"),
    Column(
        "radius",
        "float64",
        "pixels",
        "largest radius proved, rounded down, no larger than a ball of all images; 0 when none",
    ),
    Column(
        "margin",
        "float64",
        "logits",
        "smallest margin at eps: found by an attack, or bounded from below for the file's arithmetic",
    ),
    Column("certified", "uint8", "", "1 when correct and radius >= eps"),
    Column("seconds", "float64", "seconds", "time spent on the row: its batch's time over the batch's rows"),
    Column("status", "uint8", "", "; ".join(f"{s.value} {s.name}" for s in Status)),
)

#: The columns of methods that store a counterexample.
COUNTEREXAMPLE = (
    Column("distance", "float64", "pixels", "length of the shortest counterexample found; nan when none"),
    Column("counterexample", "float32", "pixels", "the misclassified image, inside the ball", axes=("image",)),
)

#: The rounding term of methods that prove their radii.
ROUNDING = Column(
    "rounding",
    "float64",
    "logits",
    "amount by which the smallest margin's bound at eps was lowered for rounding in float32; inf where values may "
    "overflow; 0 in real arithmetic",
)


def indices_sha256(indices: np.ndarray) -> str:
    """Compute the SHA-256 of sample indices, in their order."""
    return hashlib.sha256(indices.astype(np.int64).tobytes()).hexdigest()


Columns = dict[str, np.ndarray]
