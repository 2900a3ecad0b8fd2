"""``certkd run`` killed at any moment and started again ends as a run without kills."""

import json
import os
import random
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certkd.networks import resolve as networks
from tests.certkd.cli.test_cli import EXPERIMENT
from tests.cli import certkd
from tests.verifiers.certify.test_kill import killed
from verifiers.core.status import Status
from verifiers.results.reader import read

#: Kills in the slow suite; ``CERTKD_KILLS=10`` before a release.
KILLS = int(os.environ.get("CERTKD_KILLS", "1"))
NETWORKS = ("teacher", "plain", "kdiga")
TINY = {
    **EXPERIMENT,
    "certify": {**EXPERIMENT["certify"], "methods": ["pgd", "crown"], "limit": 10, "batch_size": 1},
    "device": "cpu",
}


def _run(folder: Path, connection: Connection | None = None) -> None:
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    settings = {**TINY, "out": str(folder / "out")}
    for role in ("teacher", "students"):
        settings[role] = {**settings[role], "epochs": 2, "batch_size": 64}
    (folder / "tiny.yaml").write_text(json.dumps(settings))
    done = certkd("run", folder / "tiny.yaml")
    assert done.code == 0, done.err


def place_of(name: str) -> str:
    return name if name == "teacher" else f"students/{name}"


def progress(folder: Path) -> int:
    """Count epochs, finished rows and reported files."""
    out = folder / "out"
    logs = [out / place_of(name) / "log.jsonl" for name in NETWORKS]
    found = sum(log.read_text().count("\n") for log in logs if log.exists())
    for path in (out / "certificates").glob("*.h5"):
        found += sum(int((rows["status"] != Status.PENDING).sum()) for rows in read(path))
    return found + len(list((out / "report").glob("*")))


def results(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves, but for times and paths."""
    out, found = folder / "out", dict[str, Any]()
    for name in NETWORKS:
        found[f"{name} weights"] = networks.load(str(out / place_of(name) / "best.pt")).model.state_dict()
        lines = (out / place_of(name) / "log.jsonl").read_text().splitlines()
        found[f"{name} log"] = [
            {key: value for key, value in json.loads(line).items() if "second" not in key} for line in lines
        ]
        for rows in read(out / "certificates" / f"{name}.h5"):
            found[f"{name} {rows.name}"] = {key: v for key, v in rows.columns.items() if key != "seconds"}
    summary = json.loads((out / "report" / "summary.json").read_text())
    found["summary"] = {key: summary[key] for key in ("networks", "comparisons", "collapsed")}
    found["report"] = sorted(path.name for path in (out / "report").iterdir())
    return found


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(value, two[key]) for key, value in one.items())
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
    return bool(one == two)


@pytest.mark.slow
def test_a_killed_run_ends_as_a_run_without_kills(tmp_path: Path) -> None:
    straight, folder, rng = tmp_path / "straight", tmp_path / "killed", random.Random(1)
    _run(straight)
    total, expected = progress(straight), results(straight)
    assert len(expected["teacher weights"]) >= 4 and len(expected["kdiga log"]) == 2
    hits, targets = 0, sorted(rng.sample(range(1, total - 2), KILLS))
    for target in targets:
        hits += killed(_run, folder, messages=0, until=lambda: progress(folder) >= target)  # noqa: B023
    assert hits >= KILLS * 0.8, f"only {hits} of {KILLS} kills were in time"
    assert 0 < progress(folder) < total, "the last kill hit nothing"
    _run(folder)
    found = results(folder)
    assert found.keys() == expected.keys()
    wrong = [name for name in expected if not equal(found[name], expected[name])]
    assert not wrong, f"other than without kills: {wrong}"
