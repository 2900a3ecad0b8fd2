"""Decide from samples whether a new network keeps what a shipped one had, with a bounded chance of error.

A requirement is about all images of the kind that the samples were drawn from: the mean of a bounded number per sample,
d = new - factor * shipped - plus, is at least 0. Two bets on that number are followed, one against "it is below 0" and
one against "it is at least 0". A bet multiplies its stake by 1 + rate * d (or 1 - rate * d) at each sample, averaged
over many rates. If what it bets against is true its expected stake never grows, so that it ever reaches 1/alpha has
probability at most alpha (Ville's inequality): for every number of samples, also if more are added until it decides.

Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 86, 2024.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from verifiers.core.errors import InputError, did_you_mean, quoted
from verifiers.core.quantities import parse_number

#: What a requirement may be about.
METRICS = ("certified", "clean", "pgd", "retention", "same-class")
#: Those of each network alone; the others are of both together.
SINGLE = ("certified", "clean", "pgd")
#: The number of rates that a bet is averaged over, and the most samples that an estimate of need looks at.
RATES, FAR = 200, 10**6
_FORM = re.compile(r"\s*([\w-]+)\s*>=\s*(?:([\d./e-]+)\s*\*\s*)?(shipped|[\d./e-]+)\s*(?:([+-])\s*([\d./e-]+))?\s*")
_EXAMPLE = "it must look like certified>=0.95*shipped, clean>=shipped-0.02 or same-class>=0.9"


class Verdict(StrEnum):
    """The answer to a requirement."""

    MET = "met"
    FAILED = "failed"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Rule:
    """A requirement: the new network's share is at least ``factor`` times the shipped one's, plus ``plus``."""

    text: str
    metric: str
    factor: float
    plus: float

    @classmethod
    def parse(cls, text: str, known: Sequence[str] = METRICS) -> "Rule":
        """Read ``metric>=factor*shipped+plus``, or a part of it, about one of the known metrics.

        Raises:
            InputError: another form, an unknown metric, or a number that no share can reach.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise InputError(f"the requirement {quoted(text)}: {_EXAMPLE}")
        metric, factor, base, sign, more = found.groups()
        if metric not in known:
            raise InputError(
                f"{quoted(text)} requires an unknown metric {metric!r}.{did_you_mean(metric, list(known))}"
            )
        shipped = base == "shipped"
        if (factor or sign) and not shipped:
            raise InputError(f"the requirement {quoted(text)}: {_EXAMPLE}")
        times = float(parse_number(factor or 1, name=text)) if shipped else 0.0
        plus = float(parse_number(f"{sign}{more}", name=text)) if sign else 0.0
        rule = cls(text.strip(), metric, times, plus if shipped else float(parse_number(base, name=text)))
        if not (0 <= rule.factor <= 1 and -1 < rule.plus <= 1 and rule.factor + rule.plus <= 1):
            raise InputError(f"{quoted(text)} asks for more than every sample, or for nothing: {_EXAMPLE}")
        if metric not in SINGLE and shipped:
            raise InputError(f"{quoted(text)}: {metric} is about both networks already: write {metric}>=0.9")
        return rule


@dataclass(frozen=True)
class Counts:
    """Number of samples by the new network's and the shipped network's answer."""

    both: int
    gained: int
    lost: int
    neither: int

    @classmethod
    def of(cls, new: np.ndarray, shipped: np.ndarray) -> "Counts":
        """Count paired answers."""
        pairs = (new & shipped, new & ~shipped, ~new & shipped, ~new & ~shipped)
        return cls(*(int(one.sum()) for one in pairs))

    @property
    def samples(self) -> int:
        """Their number."""
        return self.both + self.gained + self.lost + self.neither


@dataclass(frozen=True)
class Decision:
    """The answer to one requirement.

    Attributes:
        rule: the requirement.
        verdict: met or failed, each with a chance of error of at most alpha; or undecided.
        new, shipped: shares of the samples.
        counts: of the samples.
        needed: about how many samples like these would decide; 0 where it is decided, -1 where a million would not.
    """

    rule: Rule
    verdict: Verdict
    new: float
    shipped: float
    counts: Counts
    needed: int

    @property
    def base(self) -> str:
        """The shipped network's share; empty for a metric of both networks."""
        return f"{self.shipped:.1%}" if self.rule.metric in SINGLE else ""

    @property
    def moved(self) -> str:
        """The samples that the new network gained and lost; empty where a sample has one answer for both."""
        separate = self.rule.metric in (*SINGLE, "retention")
        return f"{self.counts.gained} gained, {self.counts.lost} lost" if separate else ""

    @property
    def sentence(self) -> str:
        """The answer in one line."""
        base = f"shipped {self.base}" if self.base else ""
        detail = ", ".join(part for part in (f"{self.rule.metric} {self.new:.1%}", base, self.moved) if part)
        more = "" if self.verdict is not Verdict.UNDECIDED else f"; {self._need()}"
        return f"{self.verdict}: {self.rule.text} ({detail}, n = {self.counts.samples}{more})"

    def _need(self) -> str:
        if self.needed < 0:
            return "that many cannot decide, nor could a million like these"
        return f"that many cannot decide, about {self.needed} could"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {
            "requirement": self.rule.text,
            "verdict": str(self.verdict),
            "new": self.new,
            "shipped": self.shipped,
            "needed": self.needed,
            **vars(self.counts),
        }


def decide(rules: Sequence[Rule], answers: Mapping[str, tuple[np.ndarray, np.ndarray]], alpha: float) -> list[Decision]:
    """Answer each requirement.

    That the gate fails although all requirements hold has probability at most alpha, however many there are; that it
    finds all met although one does not hold, too.

    Args:
        rules: the requirements.
        answers: by metric, the new and the shipped network's answer to each sample.
        alpha: the chance of error.

    Raises:
        InputError: alpha is no probability, or a metric has no answers.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha must be between 0 and 1, got {alpha}")
    decisions = []
    for rule in rules:
        counts = Counts.of(*(one.astype(bool) for one in answers[rule.metric]))
        verdict = judge(rule, counts, alpha, alpha / len(rules))
        needed = 0 if verdict is not Verdict.UNDECIDED else _needed(rule, counts, alpha, alpha / len(rules))
        new = (counts.both + counts.gained) / counts.samples
        shipped = (counts.both + counts.lost) / counts.samples
        if rule.metric == "retention":
            new = counts.both / (counts.both + counts.lost) if counts.both + counts.lost else math.nan
        decisions.append(Decision(rule, verdict, new, shipped, counts, needed))
    return decisions


def judge(rule: Rule, counts: Counts, met: float, failed: float) -> Verdict:
    """Answer a requirement from counts.

    Args:
        rule: the requirement.
        counts: of the samples.
        met, failed: the chance of error of each answer.
    """
    values, numbers = _values(rule, counts)
    if values.min() >= 0 or stake(values, numbers) >= 1 / met:
        return Verdict.MET
    return Verdict.FAILED if stake(-values, numbers) >= 1 / failed else Verdict.UNDECIDED


def _values(rule: Rule, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers d that a sample can have, and how many samples have each."""
    if rule.metric == "retention":  # of those that the shipped network has, the new one has at least a share
        return np.array([1 - rule.plus, -rule.plus, 0.0]), np.array(
            [counts.both, counts.lost, counts.samples - counts.both - counts.lost]
        )
    values = np.array([new - rule.factor * old - rule.plus for new, old in ((1, 1), (1, 0), (0, 1), (0, 0))])
    return values, np.array([counts.both, counts.gained, counts.lost, counts.neither])


def stake(values: np.ndarray, numbers: np.ndarray) -> float:
    """Return the final stake of a bet that the mean is above 0; its expectation is at most 1 if it is not.

    Args:
        values: the numbers that a sample can have.
        numbers: how many samples have each.
    """
    worst = -float(values.min())
    if worst <= 0:  # no sample can lose: one that wins settles it
        return math.inf if (numbers[values > 0] > 0).any() else 1.0
    rates = (np.arange(RATES) + 0.5) / RATES / worst
    logs = np.log1p(np.outer(rates, values)) @ numbers
    top = float(logs.max())
    return math.exp(min(top + math.log(float(np.exp(logs - top).mean())), 700.0))


def _needed(rule: Rule, counts: Counts, met: float, failed: float) -> int:
    """Return about how many samples with the same shares would decide; -1 if a million would not."""
    factor = 1.0
    while factor * counts.samples <= FAR:
        factor *= 1.1
        scaled = Counts(*(round(number * factor) for number in vars(counts).values()))
        if judge(rule, scaled, met, failed) is not Verdict.UNDECIDED:
            return scaled.samples
    return -1
