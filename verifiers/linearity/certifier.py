"""The certifier of ``local-linearity``."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation import attack_bounds
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.geometry.margins import margin_specification
from verifiers.graph.program import Program
from verifiers.linearity.certified import measure, of_cross_entropy
from verifiers.linearity.estimates import attacked
from verifiers.lipschitz.layers import Network
from verifiers.runtime.certifier import Answer, Batch, as_columns


@runtime_checkable
class Steps(Protocol):
    """The settings of the method; see ``verifiers.methods.local_linearity``."""

    @property
    def steps(self) -> int: ...


@dataclass
class LinearityCertifier:
    """The method prepared for one network."""

    network: Network
    settings: Steps
    question: Question

    @classmethod
    def prepare(
        cls, program: Program, samples: Float[Tensor, "two *shape"], question: Question, settings: Steps
    ) -> "LinearityCertifier":
        """Build the graph and attack its bounds on the samples.

        Raises:
            Unsupported: the native engine does not support the network.
            Contradiction: a point of the ball breaks a bound.
        """
        network = Network.prepare(program, samples, question.arithmetic)
        attack_bounds(network.native, samples, question.eps.value, norm=question.norm, method="crown")
        return cls(network, settings, question)

    @property
    def batch_size(self) -> int:
        return max(1, self.network.native.batch_size // 4)

    @property
    def notes(self) -> dict[str, str]:
        return {"interval": self.network.reason} if self.network.reason else {}

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        """Bound the distance from the linearisations, derive a radius, and attack the distance."""
        eps, norm, exact = self.question.eps.value, self.question.norm, self.network.native.model
        x = batch.x.double()
        rows = margin_specification(batch.predicted, batch.classes, torch.float64)
        found = measure(self.network, x, rows, eps, norm)
        free = found.linear.values - found.gamma.minus
        radius = (free / found.linear.steepness(norm)).amin(1).clamp(0.0, eps)
        radius = torch.where((free > 0).all(1) & radius.isfinite(), radius, 0.0)
        loss = of_cross_entropy(found, eps, norm)
        guesses = attacked(exact, x, batch.predicted, eps, norm, self.settings.steps)
        values = {
            "radius": radius,
            "margin": found.lowest(eps, norm).amin(1),
            "rounding": found.rounding.amax(1),
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
        yield Answer(batch.rows, as_columns(status, values))
