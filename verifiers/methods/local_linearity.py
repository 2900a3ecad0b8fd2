"""The method ``local-linearity``: certified bounds of the distance from the linearisation."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.checks import withstand
from verifiers.bound_propagation.rounding import careful_allowance
from verifiers.core.columns import Column, Columns
from verifiers.core.quantities import Norm
from verifiers.core.status import Guarantee, Status
from verifiers.geometry.margins import margin_specification
from verifiers.linearity.certified import measure, of_cross_entropy
from verifiers.linearity.estimates import attacked
from verifiers.lipschitz.layers import Network
from verifiers.methods.base import MethodInfo, Request, stored


@dataclass
class _Certifier:
    model: nn.Module
    network: Network
    request: Request

    @property
    def batch_size(self) -> int:
        return max(1, self.network.native.batch_size // 4)

    @property
    def notes(self) -> dict[str, str]:
        return {"interval": self.network.reason} if self.network.reason else {}

    def __call__(
        self, x: Float[Tensor, "batch *shape"], predicted: Int[Tensor, " batch"], indices: Int[Tensor, " batch"]
    ) -> Columns:
        eps, norm, exact = self.request.eps.value, self.request.norm, self.network.native.model
        with torch.no_grad():
            logits = self.model(x)
        allowance = careful_allowance(self.model, exact, x, logits, eps)
        rows = margin_specification(predicted, logits.shape[1], torch.float64)
        found = measure(self.network, x.double(), rows, eps, norm)
        free = found.linear.values - found.gamma.minus - allowance[:, None]
        radius = (free / found.linear.steepness(norm)).amin(1).clamp(0.0, eps)
        radius = torch.where((free > 0).all(1) & radius.isfinite(), radius, 0.0)
        loss = of_cross_entropy(found, eps, norm)
        guesses = attacked(exact, x.double(), predicted, eps, norm, int(self.request.options["steps"]))
        values = {
            "radius": radius,
            "margin": (found.lowest(eps, norm) - allowance[:, None]).amin(1),
            "gradient": found.linear.steepness(norm).amax(1),
            "gamma_minus": found.gamma.minus.amax(1),
            "gamma_plus": found.gamma.plus.amax(1),
            **{f"gamma_{name}": bound.amax(1) for name, bound in found.techniques.items()},
            "gamma_attack": guesses.margin,
            "ce_gamma_minus": torch.fmin(loss.gamma_minus, loss.fall),
            "ce_gamma_plus": torch.fmin(loss.gamma_plus, loss.rise),
            "ce_gamma_attack": guesses.loss,
            "ce_llm": guesses.protocol,
        }
        status = torch.where(radius > 0, Status.CERTIFIED.value, Status.NOT_CERTIFIED.value)
        return stored(status, values)


def _prepare(model: nn.Module, samples: Tensor, request: Request) -> _Certifier:
    """Build the graph and try to break it on the samples.

    Raises:
        Unsupported: the native engine does not take the network.
        Contradiction: a point of the ball breaks a bound.
    """
    network = Network.prepare(model, samples)
    withstand(network.native, samples, request.eps.value, norm=request.norm, method="crown")
    return _Certifier(model, network, request)


def _gamma(name: str, description: str, guarantee: Guarantee = Guarantee.DETERMINISTIC) -> Column:
    return Column(name, "float64", "logits", description, guarantee=guarantee)


LOCAL_LINEARITY = MethodInfo(
    name="local-linearity",
    guarantee=Guarantee.DETERMINISTIC,
    norms=(Norm.LINF, Norm.L2, Norm.L1),
    claim="margins fall along their gradients and by gamma_minus at most, and stay positive within the radius",
    paper="Qin et al., arXiv 1907.02610; Shao et al., arXiv 2110.12072; bounds by CROWN, arXiv 1811.00866",
    cost="CROWN at one radius with two more rows per class, and a short attack",
    prepare=_prepare,
    columns=(
        Column("gradient", "float64", "logits per pixel", "largest dual norm of a margin's gradient at the image"),
        _gamma("gamma_minus", "bound: how far any margin falls below its linearisation on the ball at eps"),
        _gamma("gamma_plus", "bound: how far any margin rises above its linearisation on the ball at eps"),
        _gamma("gamma_relaxation", "bound of both, by linear relaxation"),
        _gamma("gamma_interval", "bound of both, by an interval Jacobian; nan where matrices were not written out"),
        _gamma("gamma_curvature", "bound of both, by curvature; l2 and l1, smooth activations"),
        _gamma("gamma_attack", "found: of the margin to the runner-up, the larger side", Guarantee.ESTIMATE),
        _gamma("ce_gamma_minus", "bound: how far the cross-entropy falls below its linearisation"),
        _gamma("ce_gamma_plus", "bound: how far the cross-entropy rises above its linearisation"),
        _gamma("ce_gamma_attack", "found: of the cross-entropy, the larger side", Guarantee.ESTIMATE),
        _gamma("ce_llm", "found: of the cross-entropy, signed, by 50 sign steps of 0.1; linf", Guarantee.ESTIMATE),
    ),
    options={"steps": 20},
)
