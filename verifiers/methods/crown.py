"""The bound-propagation methods: bound margins over the ball, and find the largest radius that this proves."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from verifiers.core.columns import ROUNDING, Column
from verifiers.core.quantities import Norm
from verifiers.core.question import Question
from verifiers.core.settings import Count, CountOrZero, Positive
from verifiers.core.status import Guarantee
from verifiers.methods.base import Method, Problems, at_eps_by_margin
from verifiers.results.rows import MethodRows

if TYPE_CHECKING:
    from torch import Tensor

    from verifiers.graph.program import Program
    from verifiers.runtime.certifier import Certifier


class _MarginBound(Method):
    """Search for the largest radius at which lower bounds of all margins are positive.

    tolerance: the search ends when the bracket around the largest certified radius is this share of it.
    time_limit: seconds per sample; after that, the largest radius proved so far counts.
    engine: native, auto-lirpa, or auto: native if it supports the network, else auto-lirpa.
    cross_check: samples whose bounds are compared with the other engine's, if that supports the network.
    """

    tolerance: Positive = 0.005
    time_limit: Positive = 3600.0
    engine: Literal["auto", "native", "auto-lirpa"] = "auto"
    cross_check: CountOrZero = 2
    guarantee: ClassVar[Guarantee] = Guarantee.DETERMINISTIC
    columns: ClassVar[tuple[Column, ...]] = (ROUNDING,)

    def spreads(self) -> Mapping[str, float]:
        return {"radius": 2 * self.tolerance}

    def again(self, time_limit: float) -> Method:
        return self.model_copy(update={"cross_check": 0})

    def problems(self, rows: MethodRows, path: str, pixels: int | None) -> Problems:
        return at_eps_by_margin(rows)

    def prepare(self, program: "Program", samples: "Tensor", question: Question) -> "Certifier":
        from verifiers.bound_propagation import MarginCertifier

        return MarginCertifier.prepare(program, samples, question, self)


class Ibp(_MarginBound):
    """Bound margins by interval bound propagation."""

    kind: Literal["ibp"] = "ibp"
    claim: ClassVar[str] = "interval bounds of the margins are positive on the ball"
    paper: ClassVar[str] = "Gowal et al., arXiv 1810.12715"
    cost: ClassVar[str] = "2 forward passes per radius tried"


class CrownIbp(_MarginBound):
    """Bound margins by backward linear relaxation over interval bounds of the layers."""

    kind: Literal["crown-ibp"] = "crown-ibp"
    claim: ClassVar[str] = (
        "linear relaxation bounds of the margins, over interval bounds of the layers, are positive on the ball"
    )
    paper: ClassVar[str] = "Zhang et al., arXiv 1906.06316"
    cost: ClassVar[str] = "one backward pass per class per radius tried"


class Crown(_MarginBound):
    """Bound margins by backward linear relaxation of the margins and of all layers."""

    kind: Literal["crown"] = "crown"
    claim: ClassVar[str] = "linear relaxation bounds of the margins are positive on the ball"
    paper: ClassVar[str] = "Zhang et al., arXiv 1811.00866; Xu et al., arXiv 2002.12920"
    cost: ClassVar[str] = "one backward pass per unstable neuron per radius tried"


class AlphaCrown(_MarginBound):
    """Bound margins by CROWN with optimised slopes, starting from the radius that CROWN proves.

    iterations: steps of the optimiser.
    """

    kind: Literal["alpha-crown"] = "alpha-crown"
    iterations: Count = 20
    claim: ClassVar[str] = "linear relaxation bounds with optimised slopes are positive on the ball"
    paper: ClassVar[str] = "Xu et al., arXiv 2011.13824"
    cost: ClassVar[str] = "CROWN, and 2 to 3 times its cost per iteration and radius tried"


class SdpCrown(_MarginBound):
    """Bound margins on l2 balls by CROWN with a multiplier for every unstable ReLU, which follows the ball.

    iterations: steps of the optimiser.
    """

    kind: Literal["sdp-crown"] = "sdp-crown"
    iterations: Count = 30
    norms: ClassVar[tuple[Norm, ...]] = (Norm.L2,)
    claim: ClassVar[str] = "relaxation bounds that follow the l2 ball through the network are positive on it"
    paper: ClassVar[str] = "after Chiu et al., arXiv 2506.06665 (SDP-CROWN)"
    cost: ClassVar[str] = "2 to 3 times CROWN, and about a backward pass per class and iteration, per radius tried"
