"""Certificates of the reference checkpoints, method by method, as a table that changes only on purpose.

``python -m tests.verifiers.certify.test_reference`` writes the table anew.
"""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from certkd.config.settings import DataConfig
from certkd.data import sources as data
from certkd.networks import resolve as networks
from tests.certifying import certify
from tests.paths import REFERENCE
from verifiers.bound_propagation import auto_lirpa_version
from verifiers.core.status import Status
from verifiers.methods.registry import find, settings_of
from verifiers.results.rows import MethodRows

TABLE = Path(__file__).with_name("reference.csv")
SAMPLES = 40
EPS = {"linf": "0.05", "l2": "0.3", "l1": "1"}
OPTIONS = {"smoothing": {"sigma": 0.25, "n": 1000}, "complete": {"time_limit": 3600}}
PAIRS = ("joint", "transfer", "diagnostics")
#: Sums of values that other processors and libraries add up in another order.
ROUNDING, OF_MARGINS = 1e-8, 5e-6


class Row(NamedTuple):
    """One method on one network: a letter a status, and sums over the samples with all their digits."""

    network: str
    norm: str
    engine: str
    method: str
    statuses: str
    radius: float
    margin: float


def summed(network: str, norm: str, engine: str, method: str, rows: MethodRows) -> Row:
    """The row of the table for certificates."""
    statuses = "".join(Status(value).name[0] for value in rows["status"])
    return Row(network, norm, engine, method, statuses, float(rows["radius"].sum()), float(np.nansum(rows["margin"])))


@cache
def _network(name: str) -> torch.nn.Module:
    return networks.load(str(REFERENCE / f"{name}.pt")).model


@cache
def _samples() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    first = data.load(DataConfig(name="digits")).splits["test"].take(torch.arange(SAMPLES))
    return first.images[torch.arange(SAMPLES)], first.labels, first.indices


def certified(network: str, norm: str, engine: str, method: str) -> Row:
    """The same certificates now."""
    images, labels, indices = _samples()
    options = dict(OPTIONS.get(method, {}))
    if "engine" in settings_of(find(method)):
        options["engine"] = engine
    teacher = {"teacher": _network("teacher")} if method in PAIRS else {}
    given = {"eps": EPS[norm], "norm": norm, "options": options, "indices": indices}
    rows = certify(_network(network), images, labels, methods=(method,), **given, **teacher)[method]
    return summed(network, norm, engine, method, rows)


def read() -> list[Row]:
    """The committed table."""
    with open(TABLE, newline="", encoding="utf-8") as file:
        return [Row(*line[:5], *map(float, line[5:])) for line in list(csv.reader(file))[1:]]


def _quick(row: Row) -> bool:
    return row.network == "kdiga" and row.norm == "linf" and row.method != "alpha-crown"


CASES = [pytest.param(row, id="-".join(row[:4]), marks=() if _quick(row) else pytest.mark.slow) for row in read()]


@pytest.mark.parametrize("row", CASES)
@pytest.mark.thin(5)
def test_certificates_of_the_reference_checkpoints_stay(row: Row) -> None:
    if row.engine == "auto-lirpa" and auto_lirpa_version() is None:
        pytest.skip("auto-LiRPA is not installed")
    now, slack = certified(*row[:4]), 1e-4 if row.method == "alpha-crown" else ROUNDING  # its search is in float32
    searched = 1e-4 if row.method in ("alpha-crown", "complete") else OF_MARGINS
    assert now.statuses == row.statuses, "a sample has another status"
    assert now.radius == pytest.approx(row.radius, rel=slack, abs=slack), "radii changed"
    assert now.margin == pytest.approx(row.margin, rel=searched, abs=searched), "margins changed"


def test_the_default_engine_proves_the_radii_of_the_other_one() -> None:
    """Searches end within 0.5 % of the largest radius."""
    table = {row[:4]: row for row in read()}
    for row in table.values():
        if row.engine == "auto-lirpa":
            native = table[(row.network, row.norm, "native", row.method)]
            assert native.radius >= row.radius * 0.995, row[:4]


if __name__ == "__main__":
    lines = [certified(*row[:4]) for row in read()]
    with open(TABLE, "w", newline="", encoding="utf-8") as target:
        csv.writer(target, lineterminator="\n").writerows([Row._fields, *lines])
