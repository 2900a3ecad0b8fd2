"""Commands that only read files load none of the heavy libraries; one process runs them all."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.certificate_files import write_file
from tests.paths import ROOT
from verifiers.core.status import Status

HEAVY = ("matplotlib", "pandas", "scipy", "sklearn", "timm", "torch", "torchvision")
#: Runs each command in turn; after each, which heavy libraries are loaded.
CODE = """
import contextlib, io, json, sys
from certkd.cli import main
loaded = {}
for command in json.loads(sys.argv[1]):
    sys.argv, out = ["certkd", *command], io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as end:
            code = end.code
    name = " ".join(command)
    loaded[name] = [code, len(out.getvalue()), [name for name in HEAVY if name in sys.modules]]
print(json.dumps(loaded))
"""


def rows(radius: float) -> dict[str, np.ndarray]:
    correct = np.ones(4, "uint8")
    return {
        "index": np.arange(4),
        "label": np.zeros(4, np.int64),
        "predicted": np.zeros(4, np.int64),
        "correct": correct,
        "radius": np.full(4, radius),
        "margin": np.full(4, 1.0 if radius >= 0.1 else -1.0),
        "certified": correct * (radius >= 0.1),
        "seconds": np.zeros(4),
        "status": np.full(4, Status.CERTIFIED.value, "uint8"),
    }


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """Exit code, length of the output and heavy libraries, by command."""
    folder = tmp_path_factory.mktemp("files")
    facts = {name: "x" for name in ("model_sha256", "architecture", "certkd_version", "torch_version", "device")}
    facts |= {name: "x" for name in ("auto_lirpa_version", "started", "command")}
    files = [folder / f"{name}.h5" for name in ("teacher", "student")]
    for file, radius in zip(files, (0.2, 0.15), strict=True):
        own = {**facts, "model_sha256": file.stem}
        write_file(file, {"crown": rows(radius), "ibp": rows(0.05)}, eps=0.1, **own)
    commands = [
        ["--help"],
        ["show", files[0]],
        ["compare", *files],
        ["export", files[0], "--out", folder / "rows.csv"],
        ["cite", files[0]],
        ["methods"],
        ["methods", "smoothing"],
        ["objectives"],
        ["objectives", "kdiga"],
    ]
    written = json.dumps([list(map(str, command)) for command in commands])
    run = [sys.executable, "-c", f"HEAVY = {HEAVY}\n{CODE}", written]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) == len(commands)
    return dict(found)


@pytest.mark.slow
def test_commands_that_read_files_load_nothing_heavy(loaded: dict[str, list]) -> None:
    for command, (code, printed, heavy) in loaded.items():
        assert code == 0 and printed > 20, command
        assert heavy == [], command


def test_reading_in_python_loads_nothing_heavy() -> None:
    code = f"import sys, verifiers.results as r; r.read; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
