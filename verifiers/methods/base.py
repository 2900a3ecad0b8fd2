"""The seam of all certificate methods: frozen settings that a network is prepared with.

A method is written as a training objective is: one class with its settings as fields and its facts as class variables.
Its module imports torch only inside ``prepare``, so that listing methods and reading files stays quick.
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

#: What screens say about a method's rows.
Summary = Callable[[MethodRows, Certificates], list[Part]]
ALL_NORMS = (Norm.LINF, Norm.L2, Norm.L1)


class Method(Strict):
    """Settings of a certificate method; ``kind`` is its name on the command line and in files.

    Class variables:
        guarantee: what its radius is worth.
        norms: the norms it handles.
        claim: one line: what a certified row says.
        paper: where it comes from.
        cost: rough cost of a sample, in forward passes or words.
        columns: its own columns, after the common ones.
        about: what the certificate is about: the network, a pair of networks, or the smoothed network. A smoothed
            network predicts by itself, in a column ``predicted``; its column ``base`` holds the network's prediction.
        summary: what screens say about its rows besides the common table; None for nothing.
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
        """Refuse a question that the settings do not fit, before anything is computed.

        Raises:
            InputError: in one line.
        """

    def preview(self, certifier: "Certifier", samples: "Samples", device: "torch.device") -> Iterable[str]:
        """Lines that a person should read before the run."""
        return ()

    @abstractmethod
    def prepare(self, program: "Program", samples: "Float[Tensor, 'two *shape']", question: Question) -> "Certifier":
        """Make the method ready for a network.

        Args:
            program: the network, in eval mode.
            samples: two sample images in [0, 1], to try the method on.
            question: the ball, the seed, and the teacher of a pair.

        Raises:
            Unsupported: it cannot handle the network; the message names the layer or what is missing.
            Contradiction: a point of a ball breaks a bound.
        """
