"""A sweep: an experiment for each seed, their points, and the real thing on a few digits."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from certkd.comparison.compare import figures
from certkd.config.experiment import ExperimentConfig
from certkd.config.sweep import Axis
from certkd.report.fronts import table
from certkd.sweep import Sweep, run
from tests.certificate_files import write_file
from tests.cli import certkd
from verifiers.core.errors import InputError
from verifiers.core.status import Status
from verifiers.core.table import Table
from verifiers.results.reader import read

CONFIG = {
    "data": {"name": "digits", "limit": 40},
    "teacher": {"objective": {"kind": "standard"}, "model": {"options": {"hidden": [4]}}, "epochs": 1},
    "students": {
        "model": {"options": {"hidden": [4]}},
        "epochs": 1,
        "objectives": {"ibp": {"kind": "ibp", "eps": 0.02}, "kd": {"kind": "kd"}},
        "copies": {"small": {"of": "kd", "how": {"kind": "prune", "share": 0.5}}},
    },
    "certify": {"eps": 0.02, "methods": ["ibp"], "limit": 10},
}


def swept(out: Path, values: str, seeds: list[int]) -> Sweep:
    config = ExperimentConfig.parse({**CONFIG, "out": str(out)})
    return run(config, [Axis.parse(f"objective.kappa={values}")], seeds)


#: Of four samples: how many are right, and how many certified, by student and seed.
KNOWN = {
    "ibp+kappa-0.2": {0: (2, 2), 1: (3, 2)},
    "ibp+kappa-0.9": {0: (4, 1), 1: (4, 0)},
    "kd": {0: (4, 1), 1: (3, 0)},
}


def test_every_seed_is_an_experiment_and_its_points_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def experiment(config: ExperimentConfig, **_: Any) -> SimpleNamespace:
        assert config.out == str(tmp_path / f"seed-{config.seed}") and not config.students.copies
        networks = {}
        for name in config.students.objectives:
            right, proved = KNOWN[name][config.seed]
            correct = np.arange(4) < right
            status = np.where(correct, Status.NOT_CERTIFIED.value, Status.MISCLASSIFIED.value)
            status[:proved] = Status.CERTIFIED.value
            radius = np.where(np.arange(4) < proved, 0.03, 0.0)
            rows = {"status": status, "correct": correct, "radius": radius}
            networks[name] = write_file(tmp_path / f"{name}-{config.seed}.h5", {"ibp": rows}, eps=0.02)
        return SimpleNamespace(networks=networks)

    monkeypatch.setattr("certkd.sweep.run_experiment", experiment)
    found = swept(tmp_path, "0.2,0.9", [0, 1])
    assert [(p.method, p.settings) for p in found.points] == [("ibp", "kappa 0.2"), ("ibp", "kappa 0.9"), ("kd", "")]
    assert [p.clean for p in found.points] == [(0.5, 0.75), (1.0, 1.0), (1.0, 0.75)]
    assert [p.certified for p in found.points] == [(0.5, 0.5), (0.25, 0.0), (0.25, 0.0)]
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content["seeds"] == [0, 1] and content["eps"] == "0.02" and len(content["points"]) == 3
    assert content["fronts"]["ibp"]["settings"] == ["kappa 0.9", "kappa 0.2"]
    assert content["fronts"]["ibp"]["area"] == pytest.approx(0.125 + 0.625 * 0.375)
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    rows, areas = (part.rows for part in table(found.points, found.about) if isinstance(part, Table))
    assert [row[-1] for row in rows] == ["of all", "of all", "of the method"]
    assert rows[0][2:4] == ["62.5% ± 17.7", "50.0%"] and [row[0] for row in areas] == ["ibp", "kd"]


@pytest.mark.slow
def test_points_are_those_of_the_certificates_and_what_is_finished_stays(tmp_path: Path) -> None:
    first = swept(tmp_path, "0.2", [0])
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("seed-0/**/best.pt")}
    assert len(kept) == 3
    for name, one in zip(("ibp+kappa-0.2", "kd"), first.points, strict=True):
        side = figures(read(tmp_path / "seed-0" / "certificates" / f"{name}.h5"))
        assert one.clean == (side.clean,) and one.certified == (side.certified,)
    more = swept(tmp_path, "0.2,0.9", [0])
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items()), "a finished training ran again"
    assert [more.points[0], more.points[2]] == first.points


def test_a_sweep_without_seeds_or_settings_is_refused(tmp_path: Path) -> None:
    config = ExperimentConfig.parse({**CONFIG, "out": str(tmp_path)})
    for axes, seeds in (([], [0]), ([Axis.parse("objective.kappa=0.5")], [])):
        with pytest.raises(InputError, match="a sweep needs a setting with its values"):
            run(config, axes, seeds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--over", "kappa"], "certkd: a sweep is over a setting's values, like objective.alpha=0.1,0.3, got 'kappa'"),
        (["--over", "objective.kapa=1"], "no objective has setting 'kapa'"),
        (["--over", "objective.lambda_iga=1", "--seeds", "0,0"], "--seeds '0,0' names a seed twice: drop one of them"),
        (["--over", "objective.lambda_iga=1", "--seeds", "a"], "--seeds are whole numbers like 0,1,2, got 'a'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    result = certkd("sweep", "configs/digits.yaml", *arguments)
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1
