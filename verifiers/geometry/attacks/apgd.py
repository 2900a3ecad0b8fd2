"""Auto-PGD: projected gradient ascent with momentum, which halves its own steps and keeps the best point."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.core.quantities import Norm
from verifiers.geometry.attacks.losses import Loss
from verifiers.geometry.attacks.search import Reached, Victims, slopes_of
from verifiers.geometry.balls import Balls, per_sample, steepest
from verifiers.geometry.margins import margins
from verifiers.runtime.deadline import check

#: Share of a step that is the new one; the rest repeats the last one.
FRESH = 0.75
#: Steps are halved where less than this share of them raised the loss.
RISING = 0.75
#: Steps until the first check, by how many later intervals are shorter, and their least length; as shares of all steps.
FIRST, SHORTER, LEAST = 0.22, 0.03, 0.06
#: For l1: steps between checks; share of the pixels that the first steps change; how much sparser steps are than the
#: best perturbation; by what steps shrink, and how far at most; the sparsity that counts as progress.
SPARSE_CHECK, DENSE, SPARSER, SHRINK, SHRUNK, PROGRESS = 0.04, 0.2, 1.5, 1.5, 10.0, 0.95
#: For l1: the radii, in eps, that the search begins with, and their shares of the steps.
WIDER = ((3.0, 0.3), (2.0, 0.3))


@dataclass(frozen=True)
class _State:
    """The samples of a run that keep their class so far; every field has one entry per sample.

    Attributes:
        rows: positions in the run.
        own, target: the class to leave, the class to reach.
        z, before: the iterate and the one before it.
        loss, gradient: there.
        best, best_loss, best_gradient: the iterate of largest loss.
        point, margin: the iterate of least margin.
        rate: length of a step.
        rises: steps since the last check that raised the loss.
        checked, halved: the best loss at the last check, and whether steps were halved there.
        counts, nonzero: for l1, the pixels that a step changes, and those that the best perturbation did at the check.
    """

    rows: Tensor
    own: Tensor
    target: Tensor
    z: Tensor
    before: Tensor
    loss: Tensor
    gradient: Tensor
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    point: Tensor
    margin: Tensor
    rate: Tensor
    rises: Tensor
    checked: Tensor
    halved: Tensor
    counts: Tensor
    nonzero: Tensor

    def take(self, chosen: Tensor) -> "_State":
        return _State(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


@dataclass(frozen=True)
class Apgd:
    """Auto-PGD on a loss.

    Attributes:
        loss: the loss, to be raised.
        steps: steps of a run.
        stops: a run drops a sample whose class changes; otherwise it goes on to lessen the margin.
        first_step: length of the first steps in eps; None for the method's own, 2 eps, and in l1 eps.

    Source: Croce and Hein, arXiv 2003.01690; in l1: arXiv 2103.01208. Components of the gradient that the image box
    blocks are left out.
    """

    loss: Loss
    steps: int = 100
    stops: bool = True
    first_step: float | None = None

    def run(
        self,
        victims: Victims,
        target: Int[Tensor, " batch"],
        start: Float[Tensor, "batch *shape"] | None = None,
    ) -> Reached:
        """Search from a perturbation, or from the images; in l1 from a start, through wider balls."""
        balls = victims.balls.inner()
        if balls.norm is not Norm.L1 or start is None:
            z = balls.x if start is None else balls.nearest(balls.x + start)
            return self._climb(victims, balls, target, z, self.steps)
        taken, z = 0, balls.x + start
        for factor, share in WIDER:
            wider = Balls(balls.x, balls.eps * factor, balls.norm)
            steps = math.ceil(share * self.steps)
            if taken + steps < self.steps:
                run = replace(self, stops=False)
                z, taken = run._climb(victims, wider, target, wider.nearest(z), steps, best=True).point, taken + steps
        return self._climb(victims, balls, target, balls.nearest(z), self.steps - taken)

    def _climb(
        self, victims: Victims, balls: Balls, target: Tensor, z: Tensor, steps: int, best: bool = False
    ) -> Reached:
        """Make the steps from z; return the points of least margin, or of largest loss."""
        state = self._first(victims, balls, target, z, torch.arange(len(z), device=z.device))
        flat = ~state.gradient.flatten(1).any(1)
        point, margin = state.point.clone(), state.margin.clone()
        taken = 0
        for interval in _intervals(steps, balls.norm):
            for _ in range(interval):
                check()
                state = self._step(victims, balls, state, taken)
                taken += 1
                lost = state.margin < 0
                if self.stops and int(lost.sum()) * 4 > len(lost):
                    point[state.rows], margin[state.rows] = state.point, state.margin
                    state, balls = state.take(~lost), balls.take(~lost)
                if not len(state.rows):
                    return Reached(point, margin, flat)
            state = _sparser(balls, state) if balls.norm is Norm.L1 else _halved(state, interval)
        point[state.rows], margin[state.rows] = state.best if best else state.point, state.margin
        return Reached(point, margin, flat)

    def _first(self, victims: Victims, balls: Balls, target: Tensor, z: Tensor, rows: Tensor) -> _State:
        loss, gradient, margin = self._at(victims, z, victims.own, target)
        pixels = z[0].numel() if len(z) else 1
        nonzero = (z != balls.x).flatten(1).sum(1)
        dense = torch.full_like(nonzero, math.ceil(DENSE * pixels))
        counts = torch.where(nonzero > 0, (nonzero / SPARSER).long(), dense).clamp_min(1)
        own = 1.0 if balls.norm is Norm.L1 else 2.0
        rate = balls.eps.to(z.dtype) * (own if self.first_step is None else self.first_step)
        return _State(
            rows=rows,
            own=victims.own,
            target=target,
            z=z,
            before=z,
            loss=loss,
            gradient=gradient,
            best=z,
            best_loss=loss,
            best_gradient=gradient,
            point=z,
            margin=margin,
            rate=rate,
            rises=torch.zeros_like(loss),
            checked=loss,
            halved=torch.ones_like(loss, dtype=torch.bool),
            counts=counts,
            nonzero=torch.where(nonzero > 0, nonzero, pixels),
        )

    def _at(self, victims: Victims, z: Tensor, own: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, gradient and margin at points."""
        z = z.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = victims.model(z)
            loss = self.loss(logits, own, target)
            gradient = slopes_of(loss, z)
        return loss.detach(), gradient, margins(logits.detach(), own)

    def _step(self, victims: Victims, balls: Balls, state: _State, taken: int) -> _State:
        low, high = balls.edges()
        z, gradient, norm = state.z, state.gradient, balls.norm
        blocked = ((z <= low) & (gradient < 0)) | ((z >= high) & (gradient > 0))
        way = steepest(gradient.masked_fill(blocked, 0.0), norm, state.counts if norm is Norm.L1 else None)
        new = balls.nearest(z + per_sample(state.rate, z) * way)
        if taken and norm is not Norm.L1:
            new = balls.nearest(z + FRESH * (new - z) + (1 - FRESH) * (z - state.before))
        loss, gradient, margin = self._at(victims, new, state.own, state.target)
        higher, lower = loss > state.best_loss, margin < state.margin
        if self.stops:
            lower &= ~(state.margin < 0)  # the first point stays, whenever its sample is dropped
        up, down = per_sample(higher, z), per_sample(lower, z)
        return replace(
            state,
            z=new,
            before=z,
            loss=loss,
            gradient=gradient,
            best=torch.where(up, new, state.best),
            best_loss=torch.where(higher, loss, state.best_loss),
            best_gradient=torch.where(up, gradient, state.best_gradient),
            point=torch.where(down, new, state.point),
            margin=torch.where(lower, margin, state.margin),
            rises=state.rises + (loss > state.loss),
        )


def _intervals(steps: int, norm: Norm) -> Iterator[int]:
    """Yield the numbers of steps between checks, which sum to all steps."""
    size = max(int((SPARSE_CHECK if norm is Norm.L1 else FIRST) * steps), 1)
    shorter = 0 if norm is Norm.L1 else max(int(SHORTER * steps), 1)
    least = size if norm is Norm.L1 else max(int(LEAST * steps), 1)
    while steps > 0:
        yield min(size, steps)
        steps -= size
        size = max(size - shorter, least)


def _halved(state: _State, interval: int) -> _State:
    """Halve the steps of samples whose loss oscillates or stands still, and send these back to their best points."""
    stuck = ~state.halved & (state.checked >= state.best_loss)
    halved = (state.rises <= RISING * interval) | stuck
    return replace(
        _back(state, halved),
        rate=torch.where(halved, state.rate / 2, state.rate),
        rises=torch.zeros_like(state.rises),
        checked=state.best_loss,
        halved=halved,
    )


def _sparser(balls: Balls, state: _State) -> _State:
    """Set the l1 steps by how sparse the best perturbation is; send a sample whose sparsity grew to its best point."""
    nonzero = (state.best != balls.x).flatten(1).sum(1)
    eps = balls.eps.to(state.rate.dtype)
    sparser = nonzero < PROGRESS * state.nonzero
    rate = torch.where(sparser, eps, (state.rate / SHRINK).clamp_min(eps / SHRUNK))
    counts = (nonzero / SPARSER).long().clamp_min(1)
    return replace(_back(state, sparser), rate=rate, counts=counts, nonzero=nonzero)


def _back(state: _State, chosen: Bool[Tensor, " batch"]) -> _State:
    at = per_sample(chosen, state.z)
    return replace(
        state,
        z=torch.where(at, state.best, state.z),
        before=torch.where(at, state.best, state.before),
        loss=torch.where(chosen, state.best_loss, state.loss),
        gradient=torch.where(at, state.best_gradient, state.gradient),
    )
