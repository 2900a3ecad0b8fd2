"""Run one experiment for each seed, with every value of some settings, and put each method's front together.

Run again, a sweep keeps its finished parts; more values or seeds add to it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from certkd import files
from certkd.comparison.compare import figures
from certkd.comparison.front import Point, area, by_method, front
from certkd.config.experiment import ExperimentConfig
from certkd.config.sweep import Axis, Variant, expanded
from certkd.experiment import run as run_experiment
from certkd.report.fronts import About, fronts
from certkd.reporter import TrainingReporter
from verifiers.core.errors import InputError
from verifiers.core.reporter import Reporter
from verifiers.results.rows import Certificates


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep: a point for each student, and how they were measured."""

    points: list[Point]
    about: About
    folder: Path


def run(
    config: ExperimentConfig,
    axes: Sequence[Axis],
    seeds: Sequence[int],
    *,
    training_reporter: Callable[[str], TrainingReporter] | None = None,
    reporter: Callable[[str], Reporter] | None = None,
) -> Sweep:
    """Run a sweep into ``config.out``: an experiment in ``seed-N/`` for each seed, with a teacher of its own.

    Writes ``front.png``, and ``sweep.json`` with every point and the area below each method's front. Compressed copies
    of the configuration are left out.

    Raises:
        InputError: no axis or seed, a value that an objective refuses, and whatever the experiments refuse.
    """
    if not axes or not seeds:
        raise InputError("a sweep needs a setting with its values, like objective.alpha=0.1,0.3, and a seed")
    variants, objectives = expanded(config, axes)
    students = config.students.model_copy(update={"objectives": objectives, "copies": {}})
    found: dict[str, list[Certificates]] = {name: [] for name in variants}
    for seed in seeds:
        changes = {"seed": seed, "students": students, "out": str(Path(config.out) / f"seed-{seed}")}
        done = run_experiment(config.model_copy(update=changes), training_reporter=training_reporter, reporter=reporter)
        for name, certificates in found.items():
            certificates.append(done.networks[name])
    points = [point_of(variants[name], certificates) for name, certificates in found.items()]
    one = next(iter(found.values()))[0]
    about = About(str(one.norm), one.eps_text, int(one.attributes["samples"]), tuple(seeds))
    _write(Path(config.out), points, about)
    return Sweep(points, about, Path(config.out))


def point_of(variant: Variant, certificates: Sequence[Certificates]) -> Point:
    """Summarise one student's certificates, one file for each seed."""
    sides = [figures(each) for each in certificates]
    settings = ", ".join(f"{name} {value}" for name, value in variant.settings.items())
    return Point(variant.method, settings, tuple(s.clean for s in sides), tuple(s.certified for s in sides))


def _write(folder: Path, points: Sequence[Point], about: About) -> None:
    content = {
        **asdict(about),
        "points": [asdict(point) for point in points],
        "fronts": {
            method: {"settings": [point.settings for point in front(own)], "area": area(own)}
            for method, own in by_method(points).items()
        },
    }
    files.write_whole(folder / "sweep.json", lambda path: path.write_text(json.dumps(content, indent=1)))
    fronts(folder / "front.png", points, about)
