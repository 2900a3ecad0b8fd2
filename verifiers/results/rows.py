"""Certificates in memory: the rows of one method and of a whole file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from verifiers.core.status import FAILURES, Status


@dataclass(frozen=True)
class MethodRows:
    """All rows of one method, as arrays, with its attributes (name, guarantee, norm, eps, settings)."""

    name: str
    attributes: Mapping[str, Any]
    columns: Mapping[str, np.ndarray]

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def __len__(self) -> int:
        return len(self.columns["status"])

    @property
    def eps(self) -> float:
        """The radius that certified accuracy is reported at, pixel units."""
        return float(self.attributes["eps"])

    @property
    def deterministic(self) -> bool:
        """Whether its radii are proofs."""
        return bool(self.attributes["guarantee"] == "deterministic")

    @property
    def certifies(self) -> bool:
        """Whether it has radii at all: an estimate has none."""
        return bool(self.attributes["guarantee"] != "estimate")

    @property
    def answered(self) -> bool:
        """Whether every row has an answer: none pending, none that ended in a failure."""
        return not np.isin(self.columns["status"], [Status.PENDING, *FAILURES]).any()

    def count(self, status: Status) -> int:
        """Rows in that status."""
        return int((self.columns["status"] == status).sum())


@dataclass(frozen=True)
class Certificates:
    """A whole certificate file (or an equal result that was never written): attributes and methods by name."""

    attributes: Mapping[str, Any]
    methods: Mapping[str, MethodRows]
    path: str = ""

    def __getitem__(self, method: str) -> MethodRows:
        return self.methods[method]

    @property
    def eps(self) -> float:
        """The radius that certified accuracy is reported at, pixel units."""
        return next(iter(self.methods.values())).eps

    @property
    def pending(self) -> int:
        """Rows without an answer yet, over all methods."""
        return sum(rows.count(Status.PENDING) for rows in self.methods.values())

    def to_dict(self) -> dict[str, dict[str, np.ndarray]]:
        """Columns by method and name, ready for ``pandas.DataFrame``; images are left out."""
        return {
            name: {column: values for column, values in rows.columns.items() if values.ndim == 1}
            for name, rows in self.methods.items()
        }
