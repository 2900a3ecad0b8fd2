"""The method ``joint``: student and teacher predict the same class everywhere on the ball."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.engine import Memory
from verifiers.bound_propagation.joint import JointEngine
from verifiers.bound_propagation.radius import Evaluation
from verifiers.core.columns import Column, Columns
from verifiers.core.quantities import Norm
from verifiers.core.status import Guarantee
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margins
from verifiers.methods.base import MethodInfo, Request
from verifiers.methods.search import columns_of, search_as_asked


@dataclass
class _Certifier:
    engine: JointEngine
    request: Request

    @property
    def batch_size(self) -> int:
        return self.engine.batch_size

    @property
    def notes(self) -> dict[str, str]:
        graphs = "joint and differential" if self.engine.copies else "joint"
        return {"engine": self.engine.name, "graphs": graphs}

    def __call__(
        self, x: Float[Tensor, "batch *shape"], predicted: Int[Tensor, " batch"], indices: Int[Tensor, " batch"]
    ) -> Columns:
        logits, allowance = self.engine.allowed(x, self.request.eps.value)
        balls, memory = Balls.around(x, self.request.eps.value, self.request.norm), Memory(len(x))
        at_eps = self.engine.pair_bounds(balls, predicted, allowance, memory=memory)

        def bound(rows: Tensor, radius: Tensor) -> Evaluation:
            if torch.equal(radius, balls.eps[rows]):
                return Evaluation(at_eps.agreement[rows], at_eps.radius[rows])
            smaller = Balls(x[rows], radius, balls.norm)
            found = self.engine.pair_bounds(smaller, predicted[rows], allowance[rows], memory=memory.of(rows))
            return Evaluation(found.agreement, found.radius)

        clean = torch.minimum(*(margins(part, predicted) for part in logits.double().chunk(2, 1)))
        return {
            **columns_of(search_as_asked(bound, clean, x, self.request), self.request.eps.value),
            "margin": at_eps.agreement.cpu().numpy(),
            "gap": at_eps.gap.cpu().numpy(),
            "deficit": at_eps.deficit.cpu().numpy(),
        }


def _prepare(model: nn.Module, samples: Tensor, request: Request) -> _Certifier:
    """Build both graphs and try to break them on the samples.

    Raises:
        Unsupported: there is no teacher, or a network cannot be captured.
        Contradiction: a point of the ball breaks a bound.
    """
    return _Certifier(JointEngine.prepare(model, samples, request), request)


JOINT = MethodInfo(
    name="joint",
    guarantee=Guarantee.DETERMINISTIC,
    norms=(Norm.LINF, Norm.L2, Norm.L1),
    claim="student and teacher both predict this class everywhere on the ball",
    paper="CROWN on the joint graph; for copies ReluDiff, arXiv 2001.03662",
    cost="CROWN of both networks per radius tried, twice for copies",
    prepare=_prepare,
    needs_teacher=True,
    columns=(
        Column("gap", "float64", "logits", "upper bound of |student margin - teacher margin| on the ball at eps"),
        Column("deficit", "float64", "logits", "upper bound of teacher margin - student margin on the ball at eps"),
    ),
    options={"tolerance": 0.005, "time_limit": 3600.0},
)
