"""Compare many networks with one reference, each by one or several seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from certkd.comparison.compare import FIGURES, Comparison, compare, plain
from certkd.comparison.groups import seed_of
from certkd.comparison.intervals import Estimate, holm, over_samples, over_seeds
from certkd.comparison.methods import check_same, check_types, common_methods, restated
from certkd.comparison.statistics import Side
from verifiers.certify.audit.meaning import identity_of
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon
from verifiers.results.rows import Certificates


@dataclass(frozen=True)
class Spread:
    """The mean over seeds and the sample standard deviation; nan where there is one seed, or no value."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise one value per seed."""
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan)


@dataclass(frozen=True)
class Entry:
    """One network of a study.

    Attributes:
        label: its name in tables.
        files: a certificate file per seed.
        figures: clean, pgd, certified and mean_radius; retention too, unless it is the reference.
        difference: of certified accuracy minus the reference's; None for the reference.
        p_holm: its p-value, adjusted for the number of networks; nan for the reference.
        comparisons: with the reference, one per seed.
    """

    label: str
    files: tuple[str, ...]
    figures: dict[str, Spread]
    difference: Estimate | None
    p_holm: float
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Study:
    """Networks compared with one reference on the same samples.

    Attributes:
        norm, eps, samples: of all files, or the radius that was chosen.
        methods, settings: those whose radii are compared.
        arithmetic: of the proofs, like "float32+int8"; empty for imported rows.
        engines: of bound propagation that ran; empty without.
        entries: the reference first.
    """

    norm: str
    eps: str
    samples: int
    methods: tuple[str, ...]
    settings: dict[str, dict[str, Any]]
    arithmetic: str
    engines: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def reference(self) -> Entry:
        """The network that the others are compared with."""
        return self.entries[0]

    @property
    def best(self) -> Entry:
        """The compared network with the largest mean certified accuracy."""
        return max(self.entries[1:], key=lambda entry: entry.figures["certified"].mean)

    @property
    def tests(self) -> tuple[str, ...]:
        """The tests and intervals that were used."""
        seeds = {len(set(_certified(entry.comparisons))) > 1 for entry in self.entries[1:]}
        one = "McNemar's exact test and a paired bootstrap over samples"
        several = "Student's t test and interval over seeds"
        return tuple(words for words, used in ((one, False in seeds), (several, True in seeds)) if used)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, ready for JSON."""
        entries = [
            {name: value for name, value in vars(entry).items() if name != "comparisons"}
            | {"figures": {name: asdict(spread) for name, spread in entry.figures.items()}}
            | {"difference": None if entry.difference is None else asdict(entry.difference)}
            | {"comparisons": [each.to_dict() for each in entry.comparisons]}
            for entry in self.entries
        ]
        return dict(plain({**vars(self), "entries": entries, "tests": self.tests}))


def study(
    reference: tuple[str, Certificates | Sequence[Certificates]],
    groups: Mapping[str, Sequence[Certificates]],
    *,
    method: str = "best",
    eps: str | float | Epsilon | None = None,
) -> Study:
    """Compare each network with the reference, by the same methods everywhere.

    Args:
        reference: its label and certificates; or those of several seeds, each of which is compared with the network of
            the same seed in every group.
        groups: the certificates of each network's seeds, by label.
        method: as in ``compare``; "best" takes the proofs that all files have.
        eps: as in ``compare``.

    Raises:
        InputError: as ``compare``; one network twice in a group, or other seeds than the reference's.
    """
    label, given = reference
    teachers = [given] if isinstance(given, Certificates) else list(given)
    files = [*teachers, *(file for group in groups.values() for file in group)]
    check_types(*files)
    for file in files[1:]:
        check_same(files[0], file)
    shown = files if eps is None else [restated(file, Epsilon.parse(eps)) for file in files]
    names = common_methods(shown, method)
    _check_seeds({label: teachers, **groups})
    compared = {
        name: [compare(one, file, method=names, eps=eps) for one, file in _pairs(label, teachers, name, group)]
        for name, group in groups.items()
    }
    some = next(iter(compared.values()))[: len(teachers)]
    first, theirs = some[0], _figures(some, lambda one: one.teacher)
    entries = [Entry(label, tuple(file.path for file in teachers), theirs, None, math.nan, ())]
    differences = {name: _difference(group) for name, group in compared.items()}
    adjusted = holm([found.p for found in differences.values()])
    for (name, group), p in zip(compared.items(), adjusted, strict=True):
        figures = _figures(group, lambda one: one.student)
        figures["retention"] = Spread.of([one.retention.value for one in group])
        paths = tuple(file.path for file in groups[name])
        entries.append(Entry(name, paths, figures, differences[name], p, tuple(group)))
    return Study(
        norm=first.norm,
        eps=first.eps,
        samples=first.samples,
        methods=first.methods,
        settings=first.settings,
        arithmetic="+".join(dict.fromkeys(filter(None, (str(f.attributes.get("arithmetic", "")) for f in files)))),
        engines=tuple(
            sorted({str(f[n].attributes["engine"]) for f in files for n in names if "engine" in f[n].attributes})
        ),
        entries=tuple(entries),
    )


def _figures(group: Sequence[Comparison], side: Callable[[Comparison], Side]) -> dict[str, Spread]:
    return {name: Spread.of([getattr(side(one), name) for one in group]) for name in FIGURES}


def _difference(group: Sequence[Comparison]) -> Estimate:
    """Estimate the difference of certified accuracy to the reference, over samples or over seeds."""
    values = _certified(group)
    if len(set(values)) == 1:  # also of several seeds: their spread is not known, and it is not 0
        alone = [over_samples(len(one.gains), len(one.losses), one.samples, one.mcnemar) for one in group]
        return replace(max(alone, key=lambda each: each.high - each.low), p=max(each.p for each in alone))
    found = over_seeds(values)
    return replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0))  # of shares


def _certified(group: Sequence[Comparison]) -> list[float]:
    """Return each seed's difference of certified accuracy to the reference."""
    return [one.differences["certified"].mean for one in group]


def _pairs(
    label: str, teachers: Sequence[Certificates], name: str, group: Sequence[Certificates]
) -> list[tuple[Certificates, Certificates]]:
    """Pair every seed with the reference, or with the reference of the same seed."""
    if len(teachers) == 1:
        return [(teachers[0], file) for file in group]
    seeds = [[seed_of(file.path) for file in files] for files in (teachers, group)]
    if len(teachers) != len(group) or seeds[0] != seeds[1]:
        shown = [", ".join(file.path for file in files) for files in (teachers, group)]
        raise InputError(
            f"{label} ({shown[0]}) and {name} ({shown[1]}) are not of the same seeds in the same order: give one file "
            f"of {label}, or one for each seed"
        )
    return list(zip(teachers, group, strict=True))


def _check_seeds(groups: Mapping[str, Sequence[Certificates]]) -> None:
    """Refuse a network that stands for two seeds."""
    for label, group in groups.items():
        known: dict[str, str] = {}
        for file in group:
            sha256 = str(identity_of(file).get("model_sha256", ""))
            if sha256 and sha256 in known:
                raise InputError(f"{label}: {known[sha256]} and {file.path} are one network, not two seeds: drop one")
            known[sha256] = file.path
