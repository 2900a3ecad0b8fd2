"""Certificates and comparisons as tables and sentences; ``console`` prints them."""

from certkd.report.tables.certification import inspection, verification
from certkd.report.tables.comparison import comparison, curve, kept, sides
from certkd.report.tables.contents import answer, contents, facts, figures, instances, pair_summaries, summaries
from certkd.report.tables.experiment import EXPLANATION, experiment
from certkd.report.tables.sizes import sizes
from certkd.report.tables.study import study

__all__ = [
    "EXPLANATION",
    "answer",
    "comparison",
    "contents",
    "curve",
    "experiment",
    "facts",
    "figures",
    "inspection",
    "instances",
    "kept",
    "pair_summaries",
    "sides",
    "sizes",
    "study",
    "summaries",
    "verification",
]
