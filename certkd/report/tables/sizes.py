"""Sizes of networks and their copies as a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from verifiers.core.table import Table, percent

if TYPE_CHECKING:
    from certkd.networks.copies.facts import Facts


def sizes(networks: "Mapping[str, tuple[Facts, Path]]") -> Table:
    """Tabulate networks' weights, multiply-adds and files, by their names."""
    rows = []
    for name, (facts, file) in networks.items():
        size = f"{file.stat().st_size:,}" if file.exists() else ""
        rows.append([name, f"{facts.weights:,}", percent(facts.sparsity), f"{facts.multiply_adds:,}", size])
    return Table(
        "Multiply-adds: products of weights other than 0, for one image",
        ["network", "weights", "of them 0", "multiply-adds", "bytes of the file"],
        rows,
    )
