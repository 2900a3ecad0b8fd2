"""The certifier of ``lipschitz``: bound the slope of each margin, globally and on a ball, and derive a radius."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verifiers.bound_propagation import deviation
from verifiers.core.errors import Contradiction, Unsupported
from verifiers.core.quantities import Arithmetic, Norm, whole_box
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.geometry.balls import off_the_faces, random_start
from verifiers.geometry.margins import margin_specification
from verifiers.graph.program import Program
from verifiers.lipschitz.global_bounds import GlobalBounds, global_bounds
from verifiers.lipschitz.jacobians import Linearised
from verifiers.lipschitz.layers import Network
from verifiers.lipschitz.local_bounds import OnBall, bounds_on, integrate, local_constants, slope_ranges
from verifiers.runtime.certifier import Answer, Batch, as_columns
from verifiers.runtime.last_places import refuse_coarse
from verifiers.runtime.oom import fits

#: A radius below this, in pixel units, is useless.
USELESS = 1e-6
#: Values in the paths between the layers of one batch, at most.
BATCH = 2**25


@runtime_checkable
class LipschitzSettings(Protocol):
    """The settings of the method; see ``verifiers.methods.lipschitz``."""

    @property
    def shells(self) -> int: ...
    @property
    def constants(self) -> str: ...


@dataclass
class LipschitzCertifier:
    """The method prepared for one network."""

    network: Network
    known: GlobalBounds | None
    settings: LipschitzSettings
    question: Question
    notes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls, program: Program, samples: Float[Tensor, "two *shape"], question: Question, settings: LipschitzSettings
    ) -> "LipschitzCertifier":
        """Write out the layers as matrices, bound the network globally, and attack both at the samples.

        Raises:
            Unsupported: no bound supports the network; the message names the layer.
            Contradiction: a gradient exceeds a bound.
        """
        network = Network.prepare(program, samples, question.arithmetic)
        notes = {"local": f"no bounds on balls: {network.reason}"} if network.reason else {}
        known = None
        if question.norm is Norm.L2:
            known = global_bounds(network.native.graph, network.layers, tight=settings.constants == "tight")
            notes["global"] = ", ".join(f"{name} {float(k.max()):.6g}" for name, k in known.values.items())
            if known.reasons:
                notes["left_out"] = "; ".join(f"{name}: {reason}" for name, reason in known.reasons.items())
        if network.layers is None and (known is None or not known.values):
            raise Unsupported(notes.get("left_out") or notes["local"])
        certifier = cls(network, known, settings, question, notes)
        if not any([fits(partial(certifier.attack_constants, sample)) for sample in samples.split(1)]):
            raise MemoryError("not even one sample fits into memory")
        return certifier

    @property
    def batch_size(self) -> int:
        if self.network.layers is None:
            return self.network.native.batch_size
        entries = sum(w.numel() for layer in self.network.layers.layers for w in layer.weights.values())
        return max(1, min(self.network.native.batch_size, BATCH // max(1, 4 * entries)))

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        """Integrate the constants on concentric balls until a margin may reach zero."""
        eps, x = self.question.eps.value, batch.x
        rows = margin_specification(batch.predicted, batch.classes, torch.float64)
        linear = Linearised.at(self.network.native.model, x.double(), rows, off_the_faces(x.double(), eps))
        margins, anywhere = linear.values, self._anywhere(batch.predicted, rows)

        def on_balls(chosen: Tensor, radius: Tensor) -> OnBall:
            return self._on_balls(x[chosen].double(), radius, rows[chosen], anywhere[chosen])

        with torch.no_grad():
            found = integrate(on_balls, margins, eps, whole_box(self.question.norm, x[0].numel()), self.settings.shells)
        radius = found.radius * (1 - 1e-12)
        radius = torch.where(found.margin > 0, radius.clamp_min(eps), radius)  # eps itself was proved
        useful = (found.radius >= USELESS) & torch.isfinite(found.radius)
        spent = (margins.amin(1) > 0) & ~useful
        status = torch.where(useful, Status.CERTIFIED.value, Status.NOT_CERTIFIED.value)
        values = {
            "radius": torch.where(useful, radius, 0.0),
            "margin": found.margin,
            "rounding": found.at_eps.rounding.amax(1),
            "constant": found.at_eps.constants.amax(1),
            "global_constant": anywhere.amax(1),
            "gradient": linear.steepness(self.question.norm).amax(1),
        }
        yield Answer(batch.rows, as_columns(torch.where(spent, Status.VACUOUS.value, status), values))

    def _anywhere(self, predicted: Tensor, rows: Tensor) -> Float[Tensor, "batch rows"]:
        """Return the global constants of each row's pair of classes."""
        if self.known is None or self.question.norm is not Norm.L2:
            return torch.full(rows.shape[:2], float("inf"), dtype=torch.float64, device=rows.device)
        others = (rows == -1).double().argmax(2)
        return self.known.best.to(rows.device)[predicted[:, None], others]

    def _on_balls(self, x: Tensor, radius: Tensor, rows: Tensor, anywhere: Tensor) -> OnBall:
        """Bound the constants of rows and the rounding on balls."""
        layers, native = self.network.layers, self.network.native
        if layers is None and native.arithmetic is Arithmetic.REAL:
            return OnBall(anywhere, torch.zeros_like(anywhere))
        bounds = bounds_on(native, x, radius, self.question.norm)
        rounding = deviation(bounds, rows)
        if layers is None:
            return OnBall(anywhere, rounding)
        local = local_constants(slope_ranges(bounds, layers), rows, self.question.norm)
        return OnBall(torch.minimum(local, anywhere), rounding)

    def attack_constants(self, samples: Tensor) -> None:
        """Check that gradients at random points of the ball stay below the constants.

        Raises:
            Contradiction: a gradient exceeds its bound.
            Unsupported: it does by no more than rounding in float64 can make of weights that cancel.
        """
        x, generator = samples.double(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            predicted = self.network.native.model(x).argmax(1)
        rows = margin_specification(predicted, self.network.native.graph.classes, torch.float64)
        eps = torch.full((len(x),), self.question.eps.value, dtype=torch.float64, device=x.device)
        bound = self._on_balls(x, eps, rows, self._anywhere(predicted, rows)).constants
        inner = off_the_faces(x, self.question.eps.value)
        for _ in range(8):
            point = (x + random_start(x, eps, self.question.norm, generator)).clamp(0.0, 1.0).lerp(inner, 0.01)
            steep = self._steepness(point, rows, self.network.native.model)
            if not bool((steep > bound * (1 + 1e-9) + 1e-12).any()):
                continue
            excess = float((steep - bound).max())
            refuse_coarse("lipschitz", excess, self.network.native.model, partial(self._steepness, point, rows))
            raise Contradiction(f"a gradient of dual norm {excess:.3g} above its bound")

    def _steepness(self, point: Tensor, rows: Tensor, model: nn.Module) -> Float[Tensor, "batch rows"]:
        return Linearised.at(model, point, rows).steepness(self.question.norm)
