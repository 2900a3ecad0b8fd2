"""The interface of all certificate methods: frozen settings that prepare a certifier for a network.

A method is written like a training objective: one class with its settings as fields and its facts as class variables.
Its module imports torch only inside ``prepare``, so that listing methods and reading files stay fast.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from verifiers.core.columns import Column
from verifiers.core.quantities import Norm
from verifiers.core.question import Question
from verifiers.core.settings import Strict
from verifiers.core.status import About, Guarantee
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
ALL_NORMS = (Norm.LINF, Norm.L2, Norm.L1)


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

    def preview(self, certifier: "Certifier", samples: "Samples", device: "torch.device") -> Iterable[str]:
        """Return lines to show before the run."""
        return ()

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
