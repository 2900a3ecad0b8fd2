"""Compressed copies of a student, beside it: what pruning, low ranks and int8 cost, and what fine-tuning brings back.

Runs configs/DATA-copies.yaml once per seed, in artifacts/bench (a run goes on where it stopped), and prints means over
the seeds: accuracy clean and under all attacks of AutoAttack (what they do not break counts), certified by CROWN,
retention of the teacher's certificates, samples on whose whole ball the copy provably gives the teacher's class, bytes
of the file and multiply-adds.

    uv run python bench/copies.py digits [--seeds 0,1,2] [--set KEY=VALUE ...]
    uv run python bench/copies.py mnist      # a CNN; mnist-mlp: a perceptron. Both need MNIST in CERTKD_DATA
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from certkd.config.experiment import ExperimentConfig
from certkd.config.reading import read
from certkd.experiment import run
from verifiers.core.table import percent

ROOT = Path(__file__).parents[1]
COLUMNS = ("network", "clean", "AutoAttack", "certified", "retention", "same class", "bytes", "multiply-adds")


def measured(data: str, seed: int, changes: list[str]) -> dict[str, dict[str, float]]:
    """Run one seed's experiment, or what is left of it; return the figures of each network."""
    out = ROOT / "artifacts" / "bench" / f"copies-{data}-{seed}"
    changes = [f"out={out}", f"seed={seed}", *changes]
    folder = run(read(ROOT / "configs" / f"{data}-copies.yaml", ExperimentConfig, changes)).folder
    return figures(json.loads((folder / "report" / "summary.json").read_text()))


def figures(summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Read the figures of each network from an experiment's summary."""
    found = {}
    for name, network in summary["networks"].items():
        size, against = summary["sizes"][name], summary["comparisons"].get(name)
        found[name] = {
            "clean": network["clean"],
            "AutoAttack": network["pgd"],
            "certified": network["certified"],
            "bytes": size["file_bytes"],
            "multiply-adds": size["multiply_adds"],
        }
        if against is not None:
            match = against["match"]
            found[name] |= {"retention": against["retention"]["value"]}
            found[name] |= {"same class": match["proved"] / match["samples"]}
    return found


def rows(seeds: list[dict[str, dict[str, float]]]) -> list[list[str]]:
    """Average the figures over the seeds, a row for each network."""
    table = []
    for name in seeds[0]:
        row = [name]
        for column in COLUMNS[1:]:
            values = [seed[name][column] for seed in seeds if seed[name].get(column) is not None]
            whole = column in ("bytes", "multiply-adds")
            mean = statistics.fmean(values) if values else None
            row.append("" if mean is None else f"{mean:,.0f}" if whole else percent(mean))
        table.append(row)
    return table


def main() -> None:
    """Run all seeds and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("digits", "mnist", "mnist-mlp"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    given = parser.parse_args()
    seeds = [measured(given.data, int(seed), given.changes) for seed in given.seeds.split(",")]
    print(f"| {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * (len(COLUMNS) - 1)}")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows(seeds)))


if __name__ == "__main__":
    main()
