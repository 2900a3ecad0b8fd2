"""The interface of bound-propagation engines: ``ask`` bounds rows of the logits over balls."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.geometry.balls import Balls

#: Methods that an engine may offer, from the cheapest to the tightest.
BOUND_METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown")
#: A method for l2 balls alone, by the native engine alone.
SDP_CROWN = "sdp-crown"
#: Steps of alpha-CROWN's optimiser.
ITERATIONS = 20


@dataclass(frozen=True)
class Planes:
    """Lower bounds of rows over each sample's ball, with the linear functions of the image behind them.

    Each function is below its row on the whole ball. ``value`` is its value at the centre and ``steepness`` its dual
    norm, so value - r * steepness bounds the row on the concentric ball of any smaller radius r. Both are nan if an
    engine does not provide them. ``rounding`` is the amount by which bound and value were lowered for the rounding of
    the deployed network; inf if its values may overflow.
    """

    bound: Float[Tensor, "*rows"]
    value: Float[Tensor, "*rows"]
    steepness: Float[Tensor, "*rows"]
    rounding: Float[Tensor, "*rows"]

    def reshape(self, shape: Sequence[int]) -> "Planes":
        """Reshape all fields."""
        return Planes(*(getattr(self, each.name).reshape(shape) for each in fields(self)))

    def least(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Return each sample's smallest bound, and the rounding that lowered it."""
        margin, row = self.bound.masked_fill(self.bound == torch.inf, torch.nan).min(1)  # inf proves nothing
        return margin, self.rounding.gather(1, row[:, None])[:, 0]


def joined(parts: Sequence[Planes]) -> Planes:
    """Concatenate planes."""
    return Planes(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(Planes)))


def better(one: Planes, other: Planes) -> Planes:
    """Take the planes with the larger bound, row by row; nan is no bound."""
    chosen = (other.bound > one.bound) | (one.bound.isnan() & ~other.bound.isnan())
    pairs = ((getattr(other, each.name), getattr(one, each.name)) for each in fields(Planes))
    return Planes(*(torch.where(chosen, new, old) for new, old in pairs))


def total(one: Planes, other: Planes) -> Planes:
    """Add the planes of two rows: the sum bounds the sum of the rows."""
    return Planes(*(getattr(one, each.name) + getattr(other, each.name) for each in fields(Planes)))


@dataclass(frozen=True)
class Memory:
    """Results of engines on the samples of a batch, kept for later questions about the same samples.

    A bound on a ball holds on every smaller ball, so a question at a smaller radius can start from it. All questions
    must use one norm.

    Attributes:
        samples: size of the batch.
        chosen: the samples of the next question; None for all.
        kept: the results, by engine.
    """

    samples: int
    chosen: Int[Tensor, " rows"] | None = None
    kept: dict[object, Any] = field(default_factory=dict)

    def of(self, chosen: Int[Tensor, " rows"]) -> "Memory":
        """Return the same memory for a question about some of the samples."""
        return replace(self, chosen=chosen)


@runtime_checkable
class Engine(Protocol):
    """Bound linear functions of a network's logits over balls, from a graph that is built once."""

    name: str
    batch_size: int
    model: nn.Module  # the network in float64

    def ask(
        self,
        balls: Balls,
        rows: Float[Tensor, "batch rows classes"],
        method: str,
        *,
        iterations: int = ITERATIONS,
        memory: Memory | None = None,
    ) -> Planes:
        """Bound ``rows @ logits`` from below over each sample's ball, intersected with the image box.

        Args:
            balls: one for each sample.
            rows: linear functions of the logits.
            method: one of ``BOUND_METHODS``, or ``SDP_CROWN``.
            iterations: steps of the optimiser of alpha-CROWN or SDP-CROWN; other methods ignore it.
            memory: memory of the batch of the samples; an engine may ignore it.

        Raises:
            Unsupported: the engine has no such method for this network.
        """


def check_rows(balls: Balls, rows: Tensor) -> None:
    """Reject rows of another batch.

    Raises:
        ValueError: the sizes differ.
    """
    if len(rows) != len(balls):
        raise ValueError(f"rows for {len(rows)} samples and balls around {len(balls)}")
