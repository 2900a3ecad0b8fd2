"""The interface of all certificate methods: frozen settings that prepare a certifier for a network.

A method is written like a training objective: one class with its settings as fields and its facts as class variables.
Its module imports torch only inside ``prepare``, so that listing methods and reading files stay fast.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from verifiers.core.columns import Column
from verifiers.core.quantities import Norm
from verifiers.core.question import Question
from verifiers.core.settings import Strict
from verifiers.core.status import About, Guarantee, Status
from verifiers.core.table import Part
from verifiers.results.rows import Certificates, MethodRows

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from verifiers.graph.program import Program
    from verifiers.runtime.certifier import Certifier
    from verifiers.runtime.samples import Samples

#: Summarises a method's rows for display.
Summary = Callable[[MethodRows, Certificates], list[Part]]
#: Marks the rows of each problem, which is put into words.
Problems = Mapping[str, np.ndarray]
#: Largest relative difference of a value when its row is computed again, on another machine or in another batch.
REPEATS = 1e-3
#: Differences below this are rounding.
ROUNDING = 1e-6
#: The same as REPEATS, for the result of an attack, which follows gradients and so amplifies rounding.
ATTACKED = 0.05
ALL_NORMS = (Norm.LINF, Norm.L2, Norm.L1)


def at_eps_by_margin(rows: MethodRows) -> Problems:
    """Mark rows whose radius is at least eps and whose bound of the margin at eps says otherwise, or the reverse."""
    return {
        "its radius is at least eps and its margin at eps is not positive": (rows["radius"] >= rows.eps)
        & (rows["margin"] < -ROUNDING),
        **proved_at_eps(rows),
    }


def proved_at_eps(rows: MethodRows) -> Problems:
    """Mark rows whose bound of the margin at eps is positive and whose radius is smaller."""
    answered = np.isin(rows["status"], [Status.CERTIFIED, Status.NOT_CERTIFIED])
    less = answered & (rows["radius"] < rows.eps * (1 - ROUNDING)) & (rows["margin"] > ROUNDING)
    return {"its margin at eps is positive and its radius is less than eps": less}


class Method(Strict):
    """Settings of a certificate method; ``kind`` is its name on the command line and in files.

    Class variables:
        guarantee: the strength of its radii: a proof, a probability or an estimate.
        norms: the supported norms.
        claim: the claim of a certified row, in one line.
        paper: the source.
        cost: the rough cost of a sample, in forward passes or words.
        columns: its own columns, after the common ones.
        about: the subject of the certificate: the network, a pair of networks, or the smoothed network. A smoothed
            network has its own prediction, in a column ``predicted``; its column ``base`` holds the network's.
        both: True if a certified row of a pair is about both networks, and not about the student alone.
        relational: True if a row of a pair relates the two networks and says nothing about a prediction: every sample
            has an answer, and a certified row means that the relation is proved at eps, even if the student is wrong.
        at_eps_alone: True if a radius is eps or 0, so that rows say nothing at another radius.
        runs_again: True if a row can be computed again alone, and then has the same values (``spreads``); False if the
            certifier looks at stored rows in its own way (``verifiers.runtime.certifier.Recounts``).
        summary: summarises its rows after the common table; None for no summary.
    """

    kind: str
    guarantee: ClassVar[Guarantee]
    norms: ClassVar[tuple[Norm, ...]] = ALL_NORMS
    claim: ClassVar[str]
    paper: ClassVar[str]
    cost: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]] = ()
    about: ClassVar[About] = About.NETWORK
    both: ClassVar[bool] = False
    relational: ClassVar[bool] = False
    at_eps_alone: ClassVar[bool] = False
    runs_again: ClassVar[bool] = True
    summary: ClassVar[Summary | None] = None

    @property
    def options(self) -> dict[str, Any]:
        """The settings as plain values, without the kind."""
        return {name: value for name, value in self.model_dump(mode="json").items() if name != "kind"}

    def check(self, question: Question) -> None:
        """Reject a question that the settings do not fit, before anything is computed.

        Raises:
            InputError: the question does not fit; the message is one line.
        """

    def warnings(self, program: "Program", first: "Tensor") -> Iterable[str]:
        """Return warnings about the answers that this network can give, from its first images."""
        return ()

    def preview(self, certifier: "Certifier", samples: "Samples", device: "torch.device") -> Iterable[str]:
        """Return lines to show before the run."""
        return ()

    def spreads(self) -> Mapping[str, float]:
        """Return how far values may be from the stored ones when a row is computed again.

        A relative difference for numbers, a share of the rows for counts and flags; inf where a value does not repeat.
        Columns left out have ``REPEATS`` and 0, estimates ``ATTACKED`` for both.
        """
        return {}

    def repeats(self, stored: MethodRows, again: MethodRows) -> Mapping[str, np.ndarray]:
        """Mark the rows in which columns of spread inf repeat after all, within ``REPEATS``."""
        return {}

    def claims_more(self, stored: MethodRows, again: MethodRows) -> np.ndarray:
        """Mark rows that claim more than was proved again, where time decides how much is proved."""
        return np.zeros(len(again), bool)

    def flags(self, rows: MethodRows) -> Iterable[str]:
        """Return warnings that follow from the finished rows."""
        return ()

    def again(self, time_limit: float) -> "Method":
        """Return the settings for computing rows again, with at most ``time_limit`` seconds each if that is enough."""
        return self

    def problems(self, rows: MethodRows, path: str, pixels: int | None) -> Problems:
        """Mark finished rows whose own columns contradict each other or do not follow from one another.

        Args:
            rows: stored rows with these settings.
            path: their file; "" or a missing file if there is none.
            pixels: values of an image; None if unknown.
        """
        return {}

    @abstractmethod
    def prepare(self, program: "Program", samples: "Float[Tensor, 'two *shape']", question: Question) -> "Certifier":
        """Prepare the method for a network.

        Args:
            program: the network, in eval mode.
            samples: two sample images in [0, 1], for trying the method.
            question: the ball, the seed, and the teacher of a pair.

        Raises:
            Unsupported: the method does not support the network; the message names the layer or the missing part.
            Contradiction: a point of a ball breaks a bound.
        """
