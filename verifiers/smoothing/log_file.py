"""Read the logs of published smoothing code: one line per image, tab-separated."""

import gzip
import hashlib
import io
import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from verifiers.core.errors import InputError, loading, quoted
from verifiers.core.files import read_bytes

KIND = "a log of smoothing"
#: The largest log, unpacked too, in bytes.
LARGEST = 50_000_000
#: More classes than any data set has.
MOST_CLASSES = 100_000
COLUMNS = ("idx", "label", "predict", "radius", "correct")
#: Relative error of a logged radius before it is printed: that of float32.
TOLERANCE = 1e-7


@dataclass(frozen=True)
class Log:
    """The rows of a log by ascending index.

    Attributes:
        name: the file's name, without its folder.
        sha256: the hash of its bytes.
        index, label, predicted: as logged; predicted is -1 where the vote abstained.
        radius: as printed, in pixel units.
        low, high: every number that prints as that radius is between them.
        seconds: time of the row; nan if the log does not have it.
    """

    name: str
    sha256: str
    index: Int[np.ndarray, " rows"]
    label: Int[np.ndarray, " rows"]
    predicted: Int[np.ndarray, " rows"]
    radius: Float[np.ndarray, " rows"]
    low: Float[np.ndarray, " rows"]
    high: Float[np.ndarray, " rows"]
    seconds: Float[np.ndarray, " rows"]

    @property
    def votes(self) -> Bool[np.ndarray, " rows"]:
        """True for rows that did not abstain: each has a radius, right or wrong."""
        return self.predicted >= 0

    @property
    def correct(self) -> Bool[np.ndarray, " rows"]:
        return self.predicted == self.label

    @property
    def mean_radius(self) -> float:
        """The mean of the printed radii over all rows; wrong and abstained ones count 0."""
        return float((self.radius * self.correct).mean())

    @property
    def data_sha256(self) -> str:
        """The hash of the (index, label) pairs, all that a log records about its images."""
        return hashlib.sha256(np.stack([self.index, self.label], 1).astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class _Row:
    index: int
    label: int
    predicted: int
    radius: Decimal
    seconds: float


def read_log(path: str | PathLike[str]) -> Log:
    """Read a log.

    Raises:
        InputError: the log is missing or cut off, lacks a needed column, or has an impossible line.
    """
    path = Path(path)
    with loading(path, KIND):
        return _log(path, read_bytes(path, KIND, LARGEST))


def _log(path: Path, raw: bytes) -> Log:
    rows = sorted(_rows(path, _text(path, raw)), key=lambda row: row.index)
    for one, next_ in itertools.pairwise(rows):
        if one.index == next_.index:
            raise InputError(f"{path} has idx {one.index} twice: one line a sample")
    below, above = _half_units(rows)
    radius = np.array([float(row.radius) for row in rows])
    slack = radius * TOLERANCE
    return Log(
        name=path.name,
        sha256=hashlib.sha256(raw).hexdigest(),
        index=np.array([row.index for row in rows]),
        label=np.array([row.label for row in rows]),
        predicted=np.array([row.predicted for row in rows]),
        radius=radius,
        low=radius - below - slack,
        high=radius + above + slack,
        seconds=np.array([row.seconds for row in rows]),
    )


def _text(path: Path, raw: bytes) -> str:
    try:
        content = raw
        if raw.startswith(b"\x1f\x8b"):
            content = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(LARGEST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise InputError(f"{path} cannot be unpacked: {problem}; is it cut off?") from None
    if len(content) > LARGEST:
        raise InputError(f"{path} unpacks to more than {KIND} may be ({LARGEST} bytes)")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not {KIND}: it is not text") from None


def _rows(path: Path, text: str) -> list[_Row]:
    first, *lines = text.splitlines() or [""]
    header, rows = first.split("\t"), []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(f"{path} is not a log of smoothing: its first line, split at tabs, lacks {', '.join(missing)}")
    for number, line in enumerate(lines, 2):
        cells = line.split("\t")
        if not line.strip():
            continue
        if len(cells) != len(header):
            raise InputError(f"{path} line {number} has {len(cells)} cells for {len(header)} columns: is it cut off?")
        try:
            rows.append(_row(dict(zip(header, cells, strict=True))))
        except InputError as problem:
            raise InputError(f"{path} line {number}: {problem}") from None
    if not rows:
        raise InputError(f"{path} has no rows")
    return rows


def _row(cells: Mapping[str, str]) -> _Row:
    index, label, predicted, correct = (_whole(cells, name) for name in ("idx", "label", "predict", "correct"))
    radius = _radius(cells["radius"])
    if min(index, label, predicted + 1) < 0:
        raise InputError(f"idx {index}, label {label}, predict {predicted}: only predict may be negative, and then -1")
    if index >= 2**62 or max(label, predicted) >= MOST_CLASSES:
        raise InputError(f"idx {index}, label {label}, predict {predicted}: too large for an index and classes")
    if correct != int(predicted == label):
        raise InputError(f"correct is {correct} where predict is {predicted} and label {label}")
    if predicted < 0 and radius:
        raise InputError(f"radius is {radius} where predict is -1, which abstains")
    return _Row(index, label, predicted, radius, _seconds(cells.get("time", "nan")))


def _whole(cells: Mapping[str, str], name: str) -> int:
    try:
        return int(cells[name])
    except ValueError:
        raise InputError(f"{name} {quoted(cells[name])} is not a whole number") from None


def _radius(text: str) -> Decimal:
    try:
        radius = Decimal(text)
    except InvalidOperation:
        raise InputError(f"radius {quoted(text)} is not a number") from None
    if not radius.is_finite() or not 0 <= radius < 10**9:
        raise InputError(f"radius {quoted(text)} must be finite and at least 0")
    return radius


def _seconds(text: str) -> float:
    """Parse seconds from ``12.5`` or ``0:00:12.5``; ``nan`` is no time."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = [-1.0]
    seconds = sum(part * 60.0**place for place, part in enumerate(reversed(parts)))
    if min(parts) < 0 or seconds == math.inf:
        raise InputError(f"time {quoted(text)} is neither seconds nor h:mm:ss")
    return seconds


def _half_units(rows: Sequence[_Row]) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Compute the largest distance below and above each printed radius of a number that prints as it.

    Writers keep a number of significant digits or of decimals, and drop trailing zeros. The most of either in the file
    is used, and of the two the coarser. A range that is too wide makes a stored radius smaller, never larger.
    """
    printed = [row.radius for row in rows if row.predicted >= 0]
    digits = max((len(radius.as_tuple().digits) for radius in printed), default=0)
    decimals = max((-int(radius.as_tuple().exponent) for radius in printed), default=0)
    places = np.array([row.radius.adjusted() for row in rows]) - digits + 1
    ones = np.array(
        [row.radius.as_tuple().digits[0] == 1 and not any(row.radius.as_tuple().digits[1:]) for row in rows]
    )
    below, above = (np.maximum(10.0**power, 10.0**-decimals) / 2 for power in (places - ones, places))  # 1.0 from .9995
    return below, above
