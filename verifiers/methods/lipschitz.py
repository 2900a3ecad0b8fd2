"""The method ``lipschitz``: how steep each margin can be, everywhere and on a ball, and the radius that follows."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.rounding import careful_allowance
from verifiers.core.columns import Column, Columns
from verifiers.core.errors import Contradiction, InputError, Unsupported
from verifiers.core.quantities import Norm
from verifiers.core.status import Guarantee, Status
from verifiers.geometry.balls import random_start, whole_box
from verifiers.geometry.margins import margin_specification
from verifiers.lipschitz.global_bounds import GlobalBounds, global_bounds
from verifiers.lipschitz.jacobians import Linearised
from verifiers.lipschitz.layers import Network
from verifiers.lipschitz.local_bounds import integrate, local_constants, slope_ranges
from verifiers.methods.base import MethodInfo, Request, stored

#: A radius below this many pixels is a bound without use.
USELESS = 1e-6
#: Values that the paths between the layers of one batch may hold.
BATCH = 2**25


@dataclass
class _Certifier:
    model: nn.Module
    network: Network
    known: GlobalBounds | None
    request: Request
    remarks: dict[str, str] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        if self.network.layers is None:
            return self.network.native.batch_size
        entries = sum(w.numel() for layer in self.network.layers.layers for w in layer.weights.values())
        return max(1, min(self.network.native.batch_size, BATCH // max(1, 4 * entries)))

    @property
    def notes(self) -> dict[str, str]:
        return self.remarks

    def __call__(
        self, x: Float[Tensor, "batch *shape"], predicted: Int[Tensor, " batch"], indices: Int[Tensor, " batch"]
    ) -> Columns:
        eps, shells = self.request.eps.value, int(self.request.options["shells"])
        with torch.no_grad():
            logits = self.model(x)
        allowance = careful_allowance(self.model, self.network.native.model, x, logits, eps)
        rows = margin_specification(predicted, logits.shape[1], torch.float64)
        linear = Linearised.at(self.network.native.model, x.double(), rows)
        margins = linear.values - allowance[:, None]
        anywhere = self._anywhere(predicted, rows)

        def constants(chosen: Tensor, radius: Tensor) -> Tensor:
            return self._constants(x[chosen].double(), radius, rows[chosen], anywhere[chosen])

        with torch.no_grad():
            found = integrate(constants, margins, eps, whole_box(self.request.norm, x[0].numel()), shells)
        radius = found.radius * (1 - 1e-12)
        radius = torch.where(found.margin > 0, radius.clamp_min(eps), radius)  # eps was proved as it stands
        useful = (found.radius >= USELESS) & torch.isfinite(found.radius)
        spent = (margins.amin(1) > 0) & ~useful
        status = torch.where(useful, Status.CERTIFIED.value, Status.NOT_CERTIFIED.value)
        values = {
            "radius": torch.where(useful, radius, 0.0),
            "margin": found.margin,
            "constant": found.constants.amax(1),
            "global_constant": anywhere.amax(1),
            "gradient": linear.steepness(self.request.norm).amax(1),
        }
        return stored(torch.where(spent, Status.VACUOUS.value, status), values)

    def _anywhere(self, predicted: Tensor, rows: Tensor) -> Float[Tensor, "batch rows"]:
        """The global constants of each row's pair of classes."""
        if self.known is None or self.request.norm is not Norm.L2:
            return torch.full(rows.shape[:2], float("inf"), dtype=torch.float64, device=rows.device)
        others = (rows == -1).double().argmax(2)
        return self.known.best.to(rows.device)[predicted[:, None], others]

    def _constants(self, x: Tensor, radius: Tensor, rows: Tensor, anywhere: Tensor) -> Tensor:
        if self.network.layers is None:
            return anywhere
        ranges = slope_ranges(self.network.native, self.network.layers, x, radius, self.request.norm)
        return torch.minimum(local_constants(ranges, rows, self.request.norm), anywhere)

    def withstand(self, samples: Tensor) -> None:
        """Gradients at points of the ball stay below the constants.

        Raises:
            Contradiction: with both numbers.
        """
        x, generator = samples.double(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            predicted = self.network.native.model(x).argmax(1)
        rows = margin_specification(predicted, self.network.native.graph.classes, torch.float64)
        eps = torch.full((len(x),), self.request.eps.value, dtype=torch.float64, device=x.device)
        bound = self._constants(x, eps, rows, self._anywhere(predicted, rows))
        for _ in range(8):
            point = (x + random_start(x, eps, self.request.norm, generator)).clamp(0.0, 1.0)
            steep = Linearised.at(self.network.native.model, point, rows).steepness(self.request.norm)
            if bool((steep > bound * (1 + 1e-9) + 1e-12).any()):
                raise Contradiction(f"a gradient of dual norm {float((steep - bound).max()):.3g} above its bound")


def _prepare(model: nn.Module, samples: Tensor, request: Request) -> _Certifier:
    """Write the layers out, bound the network everywhere, and try to break both at the samples.

    Raises:
        Unsupported: no bound takes the network; the layer is named.
        Contradiction: a gradient exceeds a bound.
    """
    network = Network.prepare(model, samples)
    remarks = {"local": f"no bounds on balls: {network.reason}"} if network.reason else {}
    known = None
    if request.norm is Norm.L2:
        known = global_bounds(network.native.graph, network.layers, tight=request.options["constants"] == "tight")
        remarks["global"] = ", ".join(f"{name} {float(k.max()):.6g}" for name, k in known.values.items())
        if known.reasons:
            remarks["left_out"] = "; ".join(f"{name}: {reason}" for name, reason in known.reasons.items())
    if network.layers is None and (known is None or not known.values):
        raise Unsupported(remarks.get("left_out") or remarks["local"])
    certifier = _Certifier(model, network, known, request, remarks)
    certifier.withstand(samples)
    return certifier


def _check(request: Request) -> None:
    if request.options["constants"] not in ("fast", "tight"):
        raise InputError(f"option constants must be fast or tight, got {request.options['constants']!r}")


LIPSCHITZ = MethodInfo(
    name="lipschitz",
    guarantee=Guarantee.DETERMINISTIC,
    norms=(Norm.L2, Norm.LINF, Norm.L1),
    claim="no margin can fall to zero within the radius, however steep the network is allowed to be on the way",
    paper="Fazlyab et al., arXiv 1906.04893 and 2310.00116; Xu and Sivaranjani, arXiv 2404.04375",
    cost="30 to 80 CROWN passes of the hidden layers; for l2 the norms of the layers between them",
    prepare=_prepare,
    check=_check,
    columns=(
        Column(
            "constant", "float64", "logits per pixel", "Lipschitz constant of the steepest margin on the ball at eps"
        ),
        Column("global_constant", "float64", "logits per pixel", "the same over all images; for l2"),
        Column("gradient", "float64", "logits per pixel", "largest dual norm of a margin's gradient at the image"),
    ),
    options={"shells": 15, "constants": "tight"},
)
