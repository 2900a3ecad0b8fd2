"""Simulate pairs with known truth: how often the gate answers each way. Prints the table of docs/gate.md."""

import argparse
from functools import cache

import numpy as np

from certkd.comparison.gate import Counts, Rule, Verdict, judge

#: Shares of samples that both networks have certified, only the new one, only the shipped one, neither.
TRUTHS = {
    "nothing lost (holds)": (0.60, 0.00, 0.00, 0.40),
    "3 % lost, 3 % gained (holds)": (0.57, 0.03, 0.03, 0.37),
    "3 % lost (on the limit)": (0.57, 0.00, 0.03, 0.40),
    "6 % lost (does not hold)": (0.54, 0.00, 0.06, 0.40),
    "10 % lost (does not hold)": (0.50, 0.00, 0.10, 0.40),
}
SIZES = (100, 360, 1000, 10_000)


def main() -> None:
    """Print the share of simulated sets of samples that are met and failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--alpha", type=float, default=0.05)
    given = parser.parse_args()
    rule, random = Rule.parse("certified>=0.95*shipped"), np.random.default_rng(0)

    @cache
    def verdict(*counts: int) -> Verdict:
        return judge(rule, Counts(*counts), given.alpha, given.alpha)

    print(f"| truth | {' | '.join(f'n = {size}' for size in SIZES)} |\n| --- |{' --- |' * len(SIZES)}")
    for name, shares in TRUTHS.items():
        cells = []
        for size in SIZES:
            found = [verdict(*map(int, drawn)) for drawn in random.multinomial(size, shares, given.runs)]
            met, failed = (found.count(one) / given.runs for one in (Verdict.MET, Verdict.FAILED))
            cells.append(f"{met:.1%}, {failed:.1%}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
