"""Conditions on a comparison, such as ``retention>=0.9``."""

import math
import operator
import re
from dataclasses import dataclass

from certkd.comparison.compare import METRICS, Comparison
from verifiers.core.errors import InputError, did_you_mean

_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Requirement:
    """A condition on one of a comparison's metrics."""

    text: str
    metric: str
    operator: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Requirement":
        """Read ``metric>=number``.

        Raises:
            InputError: another form, or an unknown metric.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*(\S+)\s*", text)
        try:
            if match is None:
                raise ValueError
            metric, comparator, bound = match.groups()
            limit = float(bound)
        except ValueError:
            raise InputError(f"the requirement {text!r} must look like retention>=0.9") from None
        if metric not in METRICS:
            raise InputError(f"{text!r} requires an unknown metric {metric!r}.{did_you_mean(metric, list(METRICS))}")
        return cls(text, metric, comparator, limit)

    def holds(self, comparison: Comparison) -> bool:
        """Return whether the comparison meets it; a metric that is nan never does.

        Raises:
            InputError: it needs transfer rows, and there are none.
        """
        metrics = comparison.metrics()
        if self.metric not in metrics:
            raise InputError(
                f"{self.metric} needs rows of the method transfer about this teacher: 'certkd transfer' writes them "
                "into the student's file"
            )
        return bool(_OPERATORS[self.operator](metrics[self.metric], self.bound))

    def missed(self, comparison: Comparison) -> str:
        """Say that it is not met, with the value."""
        value = comparison.metrics()[self.metric]
        found = "it is not defined here" if math.isnan(value) else f"it is {value:.4f}"
        return f"not met: {self.text} ({found})"
