"""The answer of a release gate: for a terminal, as JUnit XML for any CI, and as Markdown for a pull request."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from certkd.comparison.gate import Decision, Verdict
from certkd.report.paper import markdown_text
from verifiers.core.errors import printable
from verifiers.core.table import counted

#: The most samples that a summary lists.
SHOWN = 20
_MARKS = {Verdict.MET: "✅ met", Verdict.FAILED: "❌ failed", Verdict.UNDECIDED: "❔ undecided"}


@dataclass(frozen=True)
class Gated:
    """The answer of a gate.

    Attributes:
        names: the new and the shipped network's file.
        facts: norm, eps, samples, methods, alpha and hashes, by name.
        decisions: one a requirement.
        lost: indices of the samples that only the shipped network has certified.
    """

    names: tuple[str, str]
    facts: dict[str, str]
    decisions: Sequence[Decision]
    lost: tuple[int, ...]

    @property
    def verdict(self) -> Verdict:
        """Failed if any requirement failed, met if all are met, else undecided."""
        found = {decision.verdict for decision in self.decisions}
        return next(one for one in (Verdict.FAILED, Verdict.UNDECIDED, Verdict.MET) if one in found)

    @property
    def sentence(self) -> str:
        """The answer in one line."""
        counts = [sum(one.verdict is verdict for one in self.decisions) for verdict in Verdict]
        whole = counted(len(self.decisions), "requirement")
        words = {
            Verdict.MET: "passes: {0} of {3} met",
            Verdict.FAILED: "fails: {1} of {3} failed",
            Verdict.UNDECIDED: f"is not decided: {{2}} of {{3}} {'needs' if counts[2] == 1 else 'need'} more samples",
        }[self.verdict]
        chance = f"each answer is wrong with probability {self.facts['alpha']} at most"
        return f"The gate {words.format(*counts, whole)} ({chance})."

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values."""
        decisions = [decision.to_dict() for decision in self.decisions]
        new, shipped = self.names
        return {
            "verdict": str(self.verdict),
            "new": new,
            "shipped": shipped,
            **self.facts,
            "decisions": decisions,
            "lost": list(self.lost),
        }

    def lines(self) -> list[str]:
        """The answer, each requirement, and the samples that were lost."""
        shown = ", ".join(map(str, self.lost[:SHOWN])) + (" ..." if len(self.lost) > SHOWN else "")
        lost = [f"lost certificates, by index: {shown}"] if self.lost else []
        return [self.sentence, *(decision.sentence for decision in self.decisions), *lost]


def junit(found: Gated) -> str:
    """Write JUnit XML: a test a requirement; undecided ones are errors."""
    counts = {verdict: sum(one.verdict is verdict for one in found.decisions) for verdict in Verdict}
    numbers = {
        "tests": str(len(found.decisions)),
        "failures": str(counts[Verdict.FAILED]),
        "errors": str(counts[Verdict.UNDECIDED]),
    }
    root = ElementTree.Element("testsuites", numbers)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "certkd gate", **numbers})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in {"new": found.names[0], "shipped": found.names[1], **found.facts}.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": printable(value)})
    for decision in found.decisions:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": "certkd.gate", "name": printable(decision.rule.text), "time": "0"}
        )
        if decision.verdict is not Verdict.MET:
            kind = "failure" if decision.verdict is Verdict.FAILED else "error"
            ElementTree.SubElement(case, kind, {"message": printable(decision.sentence), "type": str(decision.verdict)})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(found: Gated) -> str:
    """Write a short summary for a pull request."""
    rows = [
        f"| {markdown_text(one.rule.text)} | {_MARKS[one.verdict]} | {one.new:.1%} | {one.base or '-'} | "
        f"{one.moved or '-'} |"
        for one in found.decisions
    ]
    facts = ", ".join(f"{name} {markdown_text(value)}" for name, value in found.facts.items())
    remarks = [one.sentence for one in found.decisions if one.verdict is Verdict.UNDECIDED]
    remarks += found.lines()[1 + len(found.decisions) :]
    return "\n".join(
        [
            f"### Robustness gate: {found.verdict}",
            "",
            found.sentence,
            "",
            "| requirement | | new | shipped | samples |",
            "| --- | --- | ---: | ---: | --- |",
            *rows,
            "",
            *(f"{markdown_text(line)}\n" for line in remarks),
            f"New {markdown_text(found.names[0])}, shipped {markdown_text(found.names[1])}: {facts}.",
            "",
        ]
    )
