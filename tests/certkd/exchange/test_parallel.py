"""A list of instances that processes share has the rows of one process."""

from pathlib import Path

import numpy as np
import pytest

from certkd.exchange.instance_table import Instance, Row, read_results
from certkd.exchange.parallel import Solving, Table
from tests.certkd.exchange.test_solving import folder  # noqa: F401 - a fixture
from tests.cli import refused, succeeds
from tests.pools import Inline
from verifiers.properties.solver import Verdict
from verifiers.runtime import staff
from verifiers.runtime.pool import End


def inline(job: Solving, count: int, threads: int) -> "Entered":
    return Entered(job, count, order="last")


class Entered(Inline):
    """A pool that is used as a context manager."""

    def __enter__(self) -> "Entered":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def listed(folder: Path) -> Path:  # noqa: F811
    place = folder / "list.csv"
    place.write_text("".join(f"net.onnx,{name}.vnnlib,900\n" for name in ("sat", "wrong", "unsat")))
    return place


@pytest.mark.slow
def test_rows_are_in_the_order_of_the_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The last instance ends first; a file that cannot be read is a row as with one process."""
    monkeypatch.setattr(staff, "Processes", inline)
    place = listed(folder)
    said = succeeds("solve", place, "--out", folder / "two", "--workers", "2")
    assert said.startswith("3 instances in") and "1 sat, 1 unsat, 1 unknown" in said
    lines = (folder / "two" / "results.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == ["sat.vnnlib", "wrong.vnnlib", "unsat.vnnlib"], lines
    found = read_results(folder / "two" / "results.csv")
    assert sorted(found.values()) == ["sat", "unknown", "unsat"]


def test_a_lost_instance_is_unknown_with_the_reason(tmp_path: Path) -> None:
    one, seen = Instance("net.onnx", "a.vnnlib", 1.0, tmp_path), list[Row]()
    table = Table([one, one], lambda rows, row: seen.append(row))
    table.give_up(1, End(0, "its process was killed by SIGKILL", memory=True, died=True))
    assert table.left(np.arange(2)).tolist() == [0]
    assert seen[0].result == Verdict.UNKNOWN and seen[0].reason == "tried alone: its process was killed by SIGKILL"


def test_the_number_of_workers_is_checked() -> None:
    assert refused("solve", "list.csv", "--workers", "0") == (
        "certkd: --workers must be a whole number of at least 1 and at most 1024, got '0'\n"
    )
