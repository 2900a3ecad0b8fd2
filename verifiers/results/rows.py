"""Certificates in memory: the rows of one method and of a whole file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from verifiers.core.errors import InputError, did_you_mean
from verifiers.core.status import FAILURES, Status
from verifiers.core.table import counted

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class MethodRows:
    """All rows of one method: an array per column, one entry per sample.

    ``rows["radius"]`` and ``rows.radius`` are the same array. Images are not among the columns: see ``read_images``.

    Attributes:
        name: of the method.
        attributes: facts of all rows: norm, eps, claim, settings, and notes such as the engine that ran.
        columns: arrays by name.
        stored: the attributes of its group in a file, which notes of the same name hide in ``attributes``.
    """

    name: str
    attributes: Mapping[str, Any]
    columns: Mapping[str, np.ndarray]
    stored: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, column: str) -> np.ndarray:
        if column not in self.columns:
            raise KeyError(f"no column {column!r}.{did_you_mean(str(column), list(self.columns))}")
        return self.columns[column]

    def __contains__(self, column: object) -> bool:
        return column in self.columns

    def __getattr__(self, column: str) -> np.ndarray:
        if column.startswith("_") or column == "columns" or column not in self.columns:
            raise AttributeError(f"{type(self).__name__} has no column {column!r}")
        return self.columns[column]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.columns})

    def __len__(self) -> int:
        return len(self.columns["status"])

    def __repr__(self) -> str:
        samples = counted(len(self), "sample")
        return f"<{self.name}: {self.norm}, eps {self.eps_text}, {samples}, {self.at_eps} certified at eps>"

    @property
    def norm(self) -> str:
        """The norm of the ball."""
        return str(self.attributes["norm"])

    @property
    def eps(self) -> float:
        """The radius that certified accuracy is reported at, pixel units."""
        return float(self.attributes["eps"])

    @property
    def eps_text(self) -> str:
        """eps as it was written, like 2/255."""
        return str(self.attributes["eps_text"])

    @property
    def at_eps(self) -> int:
        """Number of samples certified at eps: correct, with a radius of at least eps."""
        return int(self.columns["certified"].sum())

    @property
    def answered(self) -> bool:
        """Whether every row has an answer: none is pending, and none ended in a failure."""
        return not np.isin(self.columns["status"], [Status.PENDING, *FAILURES]).any()

    def count(self, status: Status) -> int:
        """Count the rows in a status."""
        return int((self.columns["status"] == status).sum())

    def to_pandas(self) -> "DataFrame":
        """Convert to a ``pandas.DataFrame``, one row per sample, statuses by name.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise InputError("to_pandas needs pandas, which is not installed: pip install pandas") from None
        columns = {name: values for name, values in self.columns.items() if values.ndim == 1}
        names = [Status(value).name for value in self.columns["status"]]
        return pandas.DataFrame({**columns, "status": names})


@dataclass(frozen=True, repr=False)
class Certificates:
    """A certificate file, or an equal result in memory.

    ``certificates["crown"]`` and ``certificates.crown`` are the rows of one method (alpha-crown is ``alpha_crown``);
    iterating gives the rows of each.

    Attributes:
        attributes: facts of the whole file: hashes of network and data, settings, versions.
        methods: rows by the method's name.
        path: of the file; "in memory" or "" if there is none.
    """

    attributes: Mapping[str, Any]
    methods: Mapping[str, MethodRows]
    path: str = ""

    def __getitem__(self, method: str) -> MethodRows:
        if method not in self.methods:
            raise KeyError(f"no method {method!r}.{did_you_mean(str(method), list(self.methods))}")
        return self.methods[method]

    def __getattr__(self, method: str) -> MethodRows:
        known = () if method.startswith("_") or method == "methods" else self.methods
        found = [name for name in known if name.replace("-", "_") == method]
        if not found:
            raise AttributeError(f"{type(self).__name__} has no method {method!r}")
        return self.methods[found[0]]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name.replace("-", "_") for name in self.methods)})

    def __iter__(self) -> Iterator[MethodRows]:
        return iter(self.methods.values())

    def __contains__(self, method: object) -> bool:
        return method in self.methods

    def __repr__(self) -> str:
        samples = f"{counted(len(next(iter(self))), 'sample')}, methods {', '.join(self.methods)}"
        return f"<{self.path or 'in memory'}: {self.norm}, eps {self.eps_text}, {samples}>"

    @property
    def norm(self) -> str:
        """The norm of the ball."""
        return next(iter(self)).norm

    @property
    def eps(self) -> float:
        """The radius that certified accuracy is reported at, pixel units."""
        return next(iter(self)).eps

    @property
    def eps_text(self) -> str:
        """The same as it was written, like 2/255."""
        return next(iter(self)).eps_text

    @property
    def pending(self) -> int:
        """Number of rows without an answer yet, over all methods."""
        return sum(rows.count(Status.PENDING) for rows in self)

    def to_dict(self) -> dict[str, dict[str, np.ndarray]]:
        """Columns by method and name, ready for ``pandas.DataFrame``; images are left out."""
        return {
            rows.name: {column: values for column, values in rows.columns.items() if values.ndim == 1} for rows in self
        }

    def to_pandas(self) -> "DataFrame":
        """Convert to one ``pandas.DataFrame``: a row per method and sample, the method's name first, statuses by name.

        Columns that a method does not have are nan in its rows.

        Raises:
            InputError: pandas is not installed.
        """
        frames = {rows.name: rows.to_pandas() for rows in self}
        import pandas

        joined = pandas.concat(frames, names=["method", None])
        return joined.reset_index("method").reset_index(drop=True)
