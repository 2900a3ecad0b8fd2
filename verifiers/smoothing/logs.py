"""Logs that published smoothing code writes, as certificate files.

Such a log has one line per image with its radius, printed to about three digits. Printing rounds to the nearest, so a
printed radius can lie above the one that was certified. But a radius comes from an integer count of votes: the exact
radius of the smallest count that prints as the logged text is never above what the true count certifies. The counts
also tell whether the log was made with the n and alpha that are stated for it.
"""

import gzip
import hashlib
import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from verifiers.core.columns import Columns
from verifiers.core.errors import InputError, did_you_mean
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.status import Status
from verifiers.methods.base import Option, Request
from verifiers.methods.smoothing import SMOOTHING, what_holds
from verifiers.results.rows import Certificates
from verifiers.results.writer import CertificateFile
from verifiers.runtime.fingerprint import indices_sha256
from verifiers.smoothing.statistics import Law, Noise, Schedule, attainable, lower

#: No data set has as many classes.
MOST_CLASSES = 100_000
COLUMNS = ("idx", "label", "predict", "radius", "correct")
#: What (n, alpha) usually are; alpha also halved, as a two-sided interval has it.
USUAL_N = (1_000, 10_000, 100_000, 1_000_000)
USUAL_ALPHA = (0.001, 0.01, 0.05, 0.0001)
#: Relative error that a logged radius may have before it is printed: that of float32.
TOLERANCE = 1e-7
#: How many (n, alpha) that fit an error names.
NAMED = 3


@dataclass(frozen=True)
class Log:
    """The rows of a log by ascending index.

    Attributes:
        name: of the file, without its folder.
        sha256: of its bytes.
        index, label, predicted: as logged; predicted is -1 where the vote abstained.
        radius: as printed, pixel units.
        low, high: what prints as that radius lies between them.
        seconds: spent on the row; nan where the log does not say.
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
        """Rows that did not abstain: each has a radius, whether its class is right or not."""
        return self.predicted >= 0

    @property
    def correct(self) -> Bool[np.ndarray, " rows"]:
        return self.predicted == self.label

    @property
    def mean_radius(self) -> float:
        """As printed, over all rows; wrong and abstained ones count 0."""
        return float((self.radius * self.correct).mean())

    @property
    def data_sha256(self) -> str:
        """Of the (index, label) pairs: all that a log says about its images."""
        return hashlib.sha256(np.stack([self.index, self.label], 1).astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class _Row:
    index: int
    label: int
    predicted: int
    radius: Decimal
    seconds: float


def import_log(
    path: str | PathLike[str],
    *,
    sigma: float,
    n: int,
    alpha: float,
    n0: int = 100,
    noise: str = "gaussian",
    eps: str | float | Epsilon = "0.5",
    out: str | PathLike[str] | None = None,
    data: str = "",
) -> Certificates:
    """Write a log as the certificate file that the method ``smoothing`` would have written.

    Args:
        path: tab-separated idx, label, predict (-1 where it abstained), radius, correct and perhaps time; plain or gz.
        sigma: standard deviation of the noise, pixel units.
        n: noisy copies for the estimate.
        alpha: one-sided error probability of a sample.
        n0: copies that selected the class.
        noise: ``gaussian`` (l2 radii) or ``uniform`` (l1 radii).
        eps: radius that certified accuracy is reported at.
        out: certificate file; in memory when None.
        data: name of the data set.

    Raises:
        InputError: no such log, or radii that no count gives with this sigma, n and alpha.
    """
    law, options = _settings(sigma, n, alpha, n0, noise)
    log, request = read_log(path), Request(Epsilon.parse(eps), law.norm, 0, options)
    counts = counts_of(log, law, n, alpha)
    columns = _columns(log, law, n, alpha, counts, request.eps.value)
    with CertificateFile(
        out,
        identity=_identity(log, request, data),
        facts=_facts(log),
        samples=len(log.index),
        sizes={"class": (max(2, int(max(log.label.max(), log.predicted.max())) + 1),)},
        methods=[SMOOTHING],
        requests={SMOOTHING.name: request},
    ) as file:
        for name, value in _notes(log, law, Schedule.single(n, alpha), columns).items():
            file.note(SMOOTHING.name, name, value)
        file.write(SMOOTHING.name, np.arange(len(log.index)), columns)
        return file.read()


def read_log(path: str | PathLike[str]) -> Log:
    """Read a log.

    Raises:
        InputError: missing, cut off, without a column that is needed, or with a line that cannot be right.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise InputError(f"cannot read the log {path}: {problem.strerror}") from None
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


def smallest_count(law: Law, n: int, alpha: float, radius: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """The smallest of the counts 0 to n that certifies at least this radius; n + 1 where none does."""
    low, high = np.zeros(len(radius), np.int64), np.full(len(radius), n + 1)
    for _ in range((n + 1).bit_length()):
        middle = (low + high) // 2
        reached = (middle > n) | (_exact(law, n, alpha, np.minimum(middle, n)) >= radius)
        low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
    return high


def counts_of(log: Log, law: Law, n: int, alpha: float) -> Int[np.ndarray, " rows"]:
    """For each row the smallest count whose exact radius prints as the logged one; 0 where the vote abstained.

    Raises:
        InputError: a row that no count prints as, with what usual (n, alpha) would fit them all.
    """
    counts, fits = _fitted(log, law, n, alpha)
    if fits.all():
        return counts
    first, top = int(np.flatnonzero(~fits)[0]), float(log.radius[log.votes].max())
    found = " or ".join(_fitting(log, law, USUAL_N)[:NAMED])
    raise InputError(
        f"{log.name}: {int((~fits).sum())} of {int(log.votes.sum())} radii come from no count of n={n}, "
        f"alpha={alpha:g} at sigma {law.sigma:g}, the first at idx {log.index[first]} ({log.radius[first]:g}); "
        f"the largest is {top / law.sigma:.4g} sigma, where {_cap(law, n, alpha):.4g} is attainable; "
        f"{f'fits {found}' if found else 'no usual n and alpha fit: is sigma right?'}"
    )


def _fitted(log: Log, law: Law, n: int, alpha: float) -> tuple[Int[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Smallest counts that print as the logged radii, and whether there is one; each text is tried once."""
    least = np.maximum(log.low[log.votes], np.finfo(float).tiny)  # a row that voted has a radius
    wanted, place = np.unique(np.stack([least, log.high[log.votes]]), axis=1, return_inverse=True)
    found = smallest_count(law, n, alpha, wanted[0])
    good = (found <= n) & (_exact(law, n, alpha, np.minimum(found, n)) <= wanted[1])
    counts, fits = np.zeros(len(log.index), np.int64), np.ones(len(log.index), bool)
    counts[log.votes], fits[log.votes] = found[place.reshape(-1)], good[place.reshape(-1)]
    return counts, fits


def _fitting(log: Log, law: Law, numbers: Sequence[int]) -> list[str]:
    """The usual alpha that fit every row, for the least of these n that has one: a large n fits any short text."""
    for n in sorted(numbers):
        levels = [level / half for half in (1, 2) for level in USUAL_ALPHA]
        found = [f"n={n}, alpha={level:g}" for level in levels if _fitted(log, law, n, level)[1].all()]
        if found:
            return found
    return []


def _exact(law: Law, n: int, alpha: float, counts: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    return law.one_class(lower(counts, n, alpha))


def _cap(law: Law, n: int, alpha: float) -> float:
    """The largest radius of n copies over sigma."""
    return attainable(law, Schedule.single(n, alpha)) / law.sigma


def _settings(sigma: float, n: int, alpha: float, n0: int, noise: str) -> tuple[Law, dict[str, Option]]:
    """The noise's law and the method's settings.

    Raises:
        InputError: one out of its range.
    """
    if not 0 < sigma < float("inf"):
        raise InputError(f"sigma must be positive and finite, got {sigma:g}")
    if n < 1 or n0 < 1:
        raise InputError(f"n and n0 must be at least 1, got {n} and {n0}")
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha must be in (0, 0.5), got {alpha:g}: 0.001 is usual")
    kinds = [kind.value for kind in Noise]
    if noise not in kinds:
        raise InputError(f"unknown noise {noise!r}.{did_you_mean(noise, kinds)}")
    kind = Noise(noise)
    norm = Norm.L1 if kind is Noise.UNIFORM else Norm.L2
    given: dict[str, Option] = {"sigma": sigma, "n": n, "n0": n0, "alpha": alpha, "noise": noise}
    return Law(kind, sigma, norm, 1), {**SMOOTHING.options, **given, "question": "full", "dtype": "unknown"}


def _columns(log: Log, law: Law, n: int, alpha: float, counts: Int[np.ndarray, " rows"], eps: float) -> Columns:
    """The columns that a log tells; the others keep their fill value."""
    bound = lower(counts, n, alpha)
    certificate = np.where(log.votes, law.one_class(bound), 0.0)
    radius = np.where(log.correct, certificate, 0.0)
    voted = np.where(log.correct, Status.CERTIFIED.value, Status.MISCLASSIFIED.value)
    return {
        "index": log.index,
        "label": log.label,
        "predicted": log.predicted,
        "correct": log.correct.astype("uint8"),
        "radius": radius,
        "certified": (log.correct & (radius >= eps)).astype("uint8"),
        "seconds": log.seconds,
        "status": np.where(log.votes, voted, Status.ABSTAINED.value).astype("uint8"),
        "selected": log.predicted,
        "radius_one_class": certificate,
        "p_lower": np.where(log.votes, bound, np.nan),
        "stage": np.ones(len(radius), "uint8"),
        "used": np.full(len(radius), n),
    }


def _identity(log: Log, request: Request, data: str) -> dict[str, object]:
    return {
        "imported": True,
        "log_sha256": log.sha256,
        "data": data,
        "data_sha256": log.data_sha256,
        "indices_sha256": indices_sha256(log.index),
        "samples": len(log.index),
        "norm": str(request.norm),
        "eps_text": request.eps.text,
        "seed": request.seed,
        "settings": {SMOOTHING.name: dict(request.options)},
    }


def _facts(log: Log) -> dict[str, object]:
    from verifiers import __version__

    return {
        "log": log.name,
        "certkd_version": __version__,
        "numpy_version": np.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _notes(log: Log, law: Law, schedule: Schedule, columns: Columns) -> dict[str, str]:
    n = schedule.counts[0]
    fewer = _fitting(log, law, [number for number in USUAL_N if number < n]) if log.votes.any() else []
    doubt = f"every radius comes from a count of {' '.join(fewer)} too: is n={n} right?"
    return {
        **({"doubt": doubt} if len(fewer) == 1 else {}),  # more of them fit by chance
        "generator": "unknown",
        **what_holds(law, schedule),
        "radii": f"exact ones of the smallest counts that print as logged: mean {columns['radius'].mean():.4f}, "
        f"of the printed ones {log.mean_radius:.4f}",
    }


def _text(path: Path, raw: bytes) -> str:
    try:
        return (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise InputError(f"{path} cannot be unpacked: {problem}; is it cut off?") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no log of smoothing: it is not text") from None


def _rows(path: Path, text: str) -> list[_Row]:
    first, *lines = text.splitlines() or [""]
    header, rows = first.split("\t"), []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(f"{path} is no log of smoothing: its first line, split at tabs, lacks {', '.join(missing)}")
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
        raise InputError(f"{name} {cells[name]!r} is not a whole number") from None


def _radius(text: str) -> Decimal:
    try:
        radius = Decimal(text)
    except InvalidOperation:
        raise InputError(f"radius {text!r} is not a number") from None
    if not radius.is_finite() or not 0 <= radius < 10**9:
        raise InputError(f"radius {text!r} must be finite and at least 0")
    return radius


def _seconds(text: str) -> float:
    """Seconds from ``12.5`` or ``0:00:12.5``."""
    try:
        return sum(float(part) * 60.0**place for place, part in enumerate(reversed(text.split(":"))))
    except ValueError:
        raise InputError(f"time {text!r} is neither seconds nor h:mm:ss") from None


def _half_units(rows: Sequence[_Row]) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """How far below and above each printed radius a number may lie that prints as it.

    Writers keep a number of significant digits or a number of decimals, and drop zeros at the end; the most of either
    in the file is taken, and of both the coarser. A range too wide makes a stored radius smaller, never larger.
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
