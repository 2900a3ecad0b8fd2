"""The method ``lipschitz``: bound the slope of each margin, and derive a radius."""

from typing import TYPE_CHECKING, ClassVar, Literal

from verifiers.core.columns import ROUNDING, Column
from verifiers.core.question import Question
from verifiers.core.settings import Count, Positive
from verifiers.core.status import Guarantee
from verifiers.methods.base import REPEATS, Method, Problems, proved_at_eps
from verifiers.results.rows import MethodRows

if TYPE_CHECKING:
    from torch import Tensor

    from verifiers.graph.program import Program
    from verifiers.runtime.certifier import Certifier


class Lipschitz(Method):
    """Bound Lipschitz constants of the margins, globally for l2 and on concentric balls, and integrate them.

    shells: number of concentric balls on which constants are bounded.
    constants: tight or fast global constants.
    time_limit: seconds per sample.
    """

    kind: Literal["lipschitz"] = "lipschitz"
    shells: Count = 15
    constants: Literal["tight", "fast"] = "tight"
    time_limit: Positive = 3600.0
    guarantee: ClassVar[Guarantee] = Guarantee.DETERMINISTIC
    claim: ClassVar[str] = "no margin can fall to zero within the radius at the bounded Lipschitz constants"
    paper: ClassVar[str] = "Fazlyab et al., arXiv 1906.04893 and 2310.00116; Xu and Sivaranjani, arXiv 2404.04375"
    cost: ClassVar[str] = "30 to 80 CROWN passes of the hidden layers; for l2 the norms of the layers between them"
    columns: ClassVar[tuple[Column, ...]] = (
        ROUNDING,
        Column(
            "constant", "float64", "logits per pixel", "Lipschitz constant of the steepest margin on the ball at eps"
        ),
        Column("global_constant", "float64", "logits per pixel", "the same over all images; for l2"),
        Column("gradient", "float64", "logits per pixel", "largest dual norm of a margin's gradient at the image"),
    )

    def problems(self, rows: MethodRows, path: str, pixels: int | None) -> Problems:
        constant, everywhere = rows["constant"] * (1 + REPEATS), rows["global_constant"] * (1 + REPEATS)
        return {
            **proved_at_eps(rows),
            "its constant is below the gradient at the image": constant < rows["gradient"],
            "its constant is above the global one": rows["constant"] > everywhere,
        }

    def prepare(self, program: "Program", samples: "Tensor", question: Question) -> "Certifier":
        from verifiers.lipschitz.certifier import LipschitzCertifier

        return LipschitzCertifier.prepare(program, samples, question, self)
