"""The certificate methods IBP and CROWN: margin bounds over the ball, and the largest radius they prove."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.auto_lirpa.adapter import AutoLirpa
from verifiers.bound_propagation.auto_lirpa.guard import check_sandwich
from verifiers.bound_propagation.engine import (
    Engine,
    margin_specification,
    measured_rounding,
    rounding_allowance,
)
from verifiers.certificate import Columns, Guarantee, MethodInfo, Norm, Request, Status, margins
from verifiers.radius import largest_certified

#: A margin's bound must exceed this many times the difference of float32 and float64 logits that was measured.
SAFETY = 16.0
ARITHMETIC = "float64; margins exceed 2^-17 x max(1, largest |logit|) and 16 x the measured float32 error"


@dataclass
class _Certifier:
    model: nn.Module
    engine: Engine
    method: str
    request: Request

    @property
    def batch_size(self) -> int:
        return self.engine.batch_size

    @property
    def notes(self) -> dict[str, str]:
        return {"engine": self.engine.name, "arithmetic": ARITHMETIC}

    def __call__(
        self, x: Float[Tensor, "batch *shape"], predicted: Int[Tensor, " batch"], indices: Int[Tensor, " batch"]
    ) -> Columns:
        with torch.no_grad():
            logits = self.model(x)
        measured = measured_rounding(self.model, self.engine.model, x, self.request.eps.value)
        allowance = torch.maximum(rounding_allowance(logits), SAFETY * measured)
        specification = margin_specification(predicted, logits.shape[1], torch.float64)

        def bound(rows: Tensor, eps: Tensor) -> Tensor:
            lower = self.engine.lower_bounds(
                x[rows], eps, specification[rows], norm=self.request.norm, method=self.method
            )
            return lower.amin(1) - allowance[rows]

        radius, margin = largest_certified(
            bound,
            margins(logits, predicted).double(),
            eps=self.request.eps.value,
            limit=whole_box(self.request.norm, x[0].numel()),
            tolerance=self.request.options["tolerance"],
        )
        # The stored radius is rounded down; eps itself was proved as it stands, and says so.
        radius = torch.where(margin > 0, radius.clamp_min(self.request.eps.value), radius)
        status = torch.where(radius > 0, Status.CERTIFIED.value, Status.NOT_CERTIFIED.value)
        return {
            "status": status.cpu().numpy().astype("uint8"),
            "radius": radius.cpu().numpy(),
            "margin": margin.cpu().numpy(),
        }


def whole_box(norm: Norm, pixels: int) -> float:
    """The radius at which a ball around any image contains the whole image box."""
    return {Norm.LINF: 1.0, Norm.L2: math.sqrt(pixels), Norm.L1: float(pixels)}[norm]


def _prepare(method: str, model: nn.Module, samples: Tensor, request: Request) -> _Certifier:
    """Build the graph and try to break it on the samples, at the requested eps and at a larger one.

    Raises:
        Unsupported: a layer is not on the allow-list, or auto-LiRPA is not installed.
        Contradiction: a point of the ball breaks a bound.
    """
    engine = AutoLirpa(model, samples)
    for scale in (1.0, 8.0):  # the search goes beyond eps
        eps = torch.full((len(samples),), scale * request.eps.value, dtype=torch.float64, device=samples.device)
        check_sandwich(engine.model, engine, samples.double(), eps, norm=request.norm, method=method)
    return _Certifier(model, engine, method, request)


def _prepare_ibp(model: nn.Module, samples: Tensor, request: Request) -> _Certifier:
    return _prepare("ibp", model, samples, request)


def _prepare_crown(model: nn.Module, samples: Tensor, request: Request) -> _Certifier:
    return _prepare("crown", model, samples, request)


#: A search ends when the bracket around the largest certified radius is this share of it.
_OPTIONS = {"tolerance": 0.005}

IBP = MethodInfo(
    name="ibp",
    guarantee=Guarantee.DETERMINISTIC,
    norms=(Norm.LINF, Norm.L2, Norm.L1),
    claim="interval bounds of the margins are positive on the ball",
    paper="Gowal et al., arXiv 1810.12715",
    cost="2 forward passes per radius tried",
    prepare=_prepare_ibp,
    options=_OPTIONS,
)

CROWN = MethodInfo(
    name="crown",
    guarantee=Guarantee.DETERMINISTIC,
    norms=(Norm.LINF, Norm.L2, Norm.L1),
    claim="linear relaxation bounds of the margins are positive on the ball",
    paper="Zhang et al., arXiv 1811.00866; Xu et al., arXiv 2002.12920",
    cost="one backward pass per neuron per radius tried",
    prepare=_prepare_crown,
    options=_OPTIONS,
)
