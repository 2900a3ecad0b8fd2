"""Import the logs of published smoothing code as certificate files.

Such a log has one line per image with its radius, printed to about three digits. Printing rounds to the nearest, so a
printed radius can exceed the certified one. But a radius comes from an integer count of votes. The exact radius of the
smallest count that prints as the logged text never exceeds the radius of the true count. The counts also reveal
whether the log was made with the stated n and alpha.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from os import PathLike

import numpy as np
from jaxtyping import Bool, Float, Int

from verifiers.core.columns import Columns, indices_sha256
from verifiers.core.errors import InputError, did_you_mean
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.status import Guarantee, Status
from verifiers.results.rows import Certificates
from verifiers.results.writer import CertificateFile, MethodTable, check_output
from verifiers.smoothing import table
from verifiers.smoothing.log_file import Log, read_log
from verifiers.smoothing.statistics import Law, Noise, Schedule, attainable, lower, notes_of, smallest

#: Usual values of n and alpha; alpha is also tried halved, as in a two-sided interval.
USUAL_N = (1_000, 10_000, 100_000, 1_000_000)
USUAL_ALPHA = (0.001, 0.01, 0.05, 0.0001)
#: An error names at most this many fitting pairs (n, alpha).
NAMED = 3
#: The method whose rows a log holds.
METHOD = "smoothing"


@dataclass(frozen=True)
class Vote:
    """The settings of a log, which the log itself does not record.

    Attributes:
        sigma: standard deviation of the noise, in pixel units.
        n: noisy copies for the estimate.
        alpha: one-sided error probability of a sample.
        n0: copies for selecting the class.
        noise: ``gaussian`` (l2 radii) or ``uniform`` (l1 radii).

    Raises:
        InputError: a setting is out of range.
    """

    sigma: float
    n: int
    alpha: float
    n0: int = 100
    noise: str = "gaussian"

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise InputError(f"sigma must be positive and finite, got {self.sigma:g}")
        if self.n < 1 or self.n0 < 1:
            raise InputError(f"n and n0 must be at least 1, got {self.n} and {self.n0}")
        if not 0 < self.alpha < 0.5:
            raise InputError(f"alpha must be in (0, 0.5), got {self.alpha:g}: 0.001 is usual")
        kinds = [kind.value for kind in Noise]
        if self.noise not in kinds:
            raise InputError(f"unknown noise {self.noise!r}.{did_you_mean(self.noise, kinds)}")

    @property
    def law(self) -> Law:
        """The noise's law, and the norm of its radii."""
        kind = Noise(self.noise)
        return Law(kind, self.sigma, Norm.L1 if kind is Noise.UNIFORM else Norm.L2, 1)

    @property
    def settings(self) -> dict[str, str | int | float]:
        """The settings as the certificate file stores them."""
        return {**asdict(self), "question": "full", "dtype": "unknown"}


def import_log(
    path: str | PathLike[str],
    vote: Vote,
    *,
    eps: str | float | Epsilon = "0.5",
    out: str | PathLike[str] | None = None,
    data: str = "",
) -> Certificates:
    """Convert a log to the certificate file that the method ``smoothing`` would have written.

    Args:
        path: the log: tab-separated idx, label, predict (-1 for abstained), radius, correct and optionally time; plain
            or gz.
        vote: the settings of the log.
        eps: the radius at which certified accuracy is reported.
        out: certificate file; in memory when None.
        data: name of the data set.

    Raises:
        InputError: there is no such log, or no count gives its radii with these settings.
    """
    if out is not None:
        check_output(out)
    log, radius = read_log(path), Epsilon.parse(eps)
    columns = _columns(log, vote, counts_of(log, vote.law, vote.n, vote.alpha), radius.value)
    with CertificateFile(
        out,
        identity=_identity(log, vote, radius, data),
        facts=_facts(log),
        samples=len(log.index),
        sizes={"class": (max(2, int(max(log.label.max(), log.predicted.max())) + 1),)},
        methods=[_table(vote, radius)],
    ) as file:
        for name, value in _notes(log, vote, columns).items():
            file.note(METHOD, name, value)
        file.write(METHOD, np.arange(len(log.index)), columns)
        return file.read()


def smallest_count(law: Law, n: int, alpha: float, radius: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """Find the smallest count from 0 to n that certifies at least this radius; n + 1 if none does."""
    return smallest(lambda k: _exact(law, n, alpha, np.minimum(k, n)) >= radius, n + 1, len(radius))


def counts_of(log: Log, law: Law, n: int, alpha: float) -> Int[np.ndarray, " rows"]:
    """Find for each row the smallest count whose exact radius prints as the logged one; 0 where the vote abstained.

    Raises:
        InputError: a row fits no count; the message names usual pairs (n, alpha) that fit all rows.
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
    """Find the smallest counts that print as the logged radii, and whether they exist; each text is tried once."""
    least = np.maximum(log.low[log.votes], np.finfo(float).tiny)  # a row with a vote has a radius
    wanted, place = np.unique(np.stack([least, log.high[log.votes]]), axis=1, return_inverse=True)
    found = smallest_count(law, n, alpha, wanted[0])
    good = (found <= n) & (_exact(law, n, alpha, np.minimum(found, n)) <= wanted[1])
    counts, fits = np.zeros(len(log.index), np.int64), np.ones(len(log.index), bool)
    counts[log.votes], fits[log.votes] = found[place.reshape(-1)], good[place.reshape(-1)]
    return counts, fits


def _fitting(log: Log, law: Law, numbers: Sequence[int]) -> list[str]:
    """Find the usual alpha that fit every row, for the least n that has one: a large n fits any short text."""
    for n in sorted(numbers):
        levels = [level / half for half in (1, 2) for level in USUAL_ALPHA]
        found = [f"n={n}, alpha={level:g}" for level in levels if _fitted(log, law, n, level)[1].all()]
        if found:
            return found
    return []


def _exact(law: Law, n: int, alpha: float, counts: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    return law.one_class(lower(counts, n, alpha))


def _cap(law: Law, n: int, alpha: float) -> float:
    """Compute the largest radius of n copies, divided by sigma."""
    return attainable(law, Schedule.single(n, alpha)) / law.sigma


def _columns(log: Log, vote: Vote, counts: Int[np.ndarray, " rows"], eps: float) -> Columns:
    """Build the columns that follow from a log; the others keep their fill value."""
    bound = lower(counts, vote.n, vote.alpha)
    certificate = np.where(log.votes, vote.law.one_class(bound), 0.0)
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
        "used": np.full(len(radius), vote.n),
    }


def _table(vote: Vote, eps: Epsilon) -> MethodTable:
    attributes: dict[str, str | int | float] = {
        "guarantee": str(Guarantee.PROBABILISTIC),
        "claim": table.CLAIM,
        "paper": table.PAPER,
        "eps": eps.value,
        "eps_text": eps.text,
        "norm": str(vote.law.norm),
        "seed": 0,
        **vote.settings,
    }
    return MethodTable(METHOD, table.COLUMNS, attributes)


def _identity(log: Log, vote: Vote, eps: Epsilon, data: str) -> dict[str, object]:
    return {
        "imported": True,
        "log_sha256": log.sha256,
        "data": data,
        "data_sha256": log.data_sha256,
        "indices_sha256": indices_sha256(log.index),
        "samples": len(log.index),
        "norm": str(vote.law.norm),
        "eps_text": eps.text,
        "seed": 0,
        "settings": {METHOD: vote.settings},
    }


def _facts(log: Log) -> dict[str, object]:
    from verifiers import __version__

    return {
        "log": log.name,
        "certkd_version": __version__,
        "numpy_version": np.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _notes(log: Log, vote: Vote, columns: Columns) -> dict[str, str]:
    law, n = vote.law, vote.n
    fewer = _fitting(log, law, [number for number in USUAL_N if number < n]) if log.votes.any() else []
    doubt = f"every radius comes from a count of {' '.join(fewer)} too: is n={n} right?"
    return {
        **({"doubt": doubt} if len(fewer) == 1 else {}),  # several fit by chance
        "generator": "unknown",
        **notes_of(law, Schedule.single(n, vote.alpha)),
        "radii": f"exact ones of the smallest counts that print as logged: mean {columns['radius'].mean():.4f}, "
        f"of the printed ones {log.mean_radius:.4f}",
    }
