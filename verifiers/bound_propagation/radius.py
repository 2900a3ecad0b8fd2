"""Search for the largest certified radius of all samples of a batch at once, from certificates at given radii."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.core.quantities import whole_box
from verifiers.core.question import Question
from verifiers.runtime.certifier import Batch
from verifiers.runtime.deadline import TimeUp, now, within
from verifiers.runtime.oom import MEMORY_ERRORS, out_of_memory

#: Power of eps by which CROWN's margins fall, measured on small networks: slightly faster than linear.
USUAL_POWER = 1.4
#: A trial is at most this many times the proved radius: an estimate from one point is coarse.
FARTHEST = 10.0


class Evaluation(NamedTuple):
    """The result of one evaluation of rows, each at its own eps.

    Attributes:
        margin: lower bound of the margin on the ball of radius eps.
        radius: a radius, at most eps, that the evaluation certifies even if the margin is negative (0 if none): planes
            that are proved on the large ball hold on every smaller one.
        rounding: the amount by which rounding lowered the margin's bound; None counts as 0.
    """

    margin: Float[Tensor, " rows"]
    radius: Float[Tensor, " rows"]
    rounding: Float[Tensor, " rows"] | None = None


#: Evaluates the given rows, each at its own eps.
MarginBound = Callable[[Int[Tensor, " rows"], Float[Tensor, " rows"]], Evaluation]


class SearchResult(NamedTuple):
    """Result of a search, one value per row.

    Attributes:
        radius: the largest proved radius, rounded down by one unit in the last place; 0 if nothing was proved.
        margin: the bound at eps.
        finished: the search converged before the limits of time and of evaluations.
        rounding: the amount by which rounding lowered the bound at eps; nan where there was none.
    """

    radius: Float[Tensor, " batch"]
    margin: Float[Tensor, " batch"]
    finished: Bool[Tensor, " batch"]
    rounding: Float[Tensor, " batch"]


class _State:
    """The brackets of all rows, and the last two margins of each."""

    def __init__(self, clean: Tensor, search: "RadiusSearch") -> None:
        self.limit, self.tolerance, self.eps = search.limit, search.tolerance, search.eps
        self.proved, self.failed = torch.zeros_like(clean), torch.full_like(clean, float("inf"))
        self.clean = clean
        self.points = [torch.zeros_like(clean), torch.zeros_like(clean)]  # the last eps, and the one before
        self.margins = [clean.clone(), clean.clone()]
        self.trial = torch.full_like(clean, min(search.eps, search.limit))
        self.active = clean > 0

    def record(self, rows: Tensor, margin: Tensor, free: Tensor) -> None:
        """Record an evaluation of rows at their trials."""
        trial, holds = self.trial[rows], margin > 0
        self.points[1][rows], self.margins[1][rows] = self.points[0][rows], self.margins[0][rows]
        self.points[0][rows], self.margins[0][rows] = trial, margin
        self.failed[rows[~holds]] = trial[~holds]
        free = free.where(free < float("inf"), 0.0).clamp_min(0.0)
        reached = torch.where(holds, trial, torch.minimum(free, trial))
        self.proved[rows] = torch.maximum(self.proved[rows], reached)
        self._leave()

    def raise_to(self, known: Tensor) -> None:
        """Raise proved radii to those proved elsewhere; rows may have left already."""
        known = known.where((self.clean > 0) & (known < float("inf")), 0.0)
        self.proved = torch.maximum(self.proved, known)
        self.failed = torch.where(self.failed > self.proved, self.failed, float("inf"))
        self._leave()

    def _leave(self) -> None:
        wide = self.failed - self.proved > self.tolerance * self.proved.clamp_min(1e-3 * self.eps)
        self.active = self.active & (self.proved < self.limit) & wide

    def choose(self, *, halve: bool) -> None:
        """Choose the next trial of every row."""
        bracketed = torch.isfinite(self.failed)
        width = torch.where(bracketed, self.failed - self.proved, 0.0)
        zero = _crossing(self.points, self.margins, self.clean)
        off = 0.4 * self.tolerance * self.proved
        last_failed = self.trial == self.failed
        steps = self.trial / self.points[1]
        sure = bracketed | ((steps > 0.95) & (steps < 1.05))
        near = sure & (self.trial == self.proved) & (zero <= self.proved * (1 + 0.5 * self.tolerance))
        self.active = self.active & ~near
        zero = torch.where(last_failed, zero - off, zero + off)
        edge = torch.minimum(0.5 * self.tolerance * self.proved, 0.5 * width)
        edge = torch.where(self.proved > 0, edge, 0.1 * width)
        middle = self.proved + 0.5 * width
        inside = torch.where(torch.isfinite(zero) & (not halve), zero, middle)
        inside = inside.clamp(self.proved + edge, self.proved + (width - edge))
        ahead = torch.isfinite(zero) & (zero > self.proved)
        further = torch.where(ahead & (not halve), zero, 2 * self.proved)
        further = further.clamp((1 + self.tolerance) * self.proved, FARTHEST * self.proved)
        self.trial = torch.where(bracketed, inside, further.clamp_max(self.limit))


def _crossing(points: list[Tensor], margins: list[Tensor], clean: Tensor) -> Tensor:
    """Estimate the zero of the margin, if its loss is p eps + q eps^2 with p, q >= 0 through the two points.

    If there is no such curve, the loss is a power of eps: the usual power, if there is a single point. nan if there is
    no such curve either.
    """
    (a, b), (loss_a, loss_b) = points, [clean - margin for margin in margins]
    q = (loss_a / a - loss_b / b) / (a - b)
    p = loss_a / a - q * a
    parabola = 2 * clean / (p + (p * p + 4 * q * clean).sqrt())
    power = (loss_b / loss_a).log() / (b / a).log()
    power = torch.where(torch.isfinite(power) & (power > 0.2), power, USUAL_POWER)
    pole, loss = torch.where(a > 0, a, b), torch.where(a > 0, loss_a, loss_b)
    return torch.where(torch.isfinite(q) & (q >= 0) & (p >= 0), parabola, pole * (clean / loss) ** (1 / power))


@runtime_checkable
class SearchSettings(Protocol):
    """The settings of a radius search."""

    @property
    def tolerance(self) -> float: ...
    @property
    def time_limit(self) -> float: ...


@dataclass(frozen=True)
class RadiusSearch:
    """Search for the largest certified radius of all samples of a batch at once.

    Every row is bounded at eps first. The next trial is the zero of a parabola through the last two margins. It is
    shifted by less than half the tolerance, so that its answer closes the bracket [proved, failed]. After five trials,
    every fourth halves the bracket. A row leaves the batch when its bracket is narrower than ``tolerance`` times the
    radius. It also leaves when that estimate, bracketed or from two trials close together, is within half the tolerance
    of a radius just proved. Only proved radii are returned; a bound that is nan or infinite counts as failed. A single
    row whose larger balls do not fit into memory keeps its proved radius.

    Attributes:
        eps: the first radius, in pixel units.
        limit: the largest radius to search (the whole image box).
        tolerance: relative width of the final bracket.
        seconds: an evaluation that has not ended this long after the start is given up.
        max_steps: the most evaluations per row.
        tick: receives the number of rows that left, and which step comes next.
    """

    eps: float
    limit: float
    tolerance: float
    seconds: float = float("inf")
    max_steps: int = 40
    tick: Callable[[int, str], None] | None = None

    @classmethod
    def of(cls, settings: SearchSettings, question: Question, batch: Batch) -> "RadiusSearch":
        """Build the search from a method's settings."""
        limit = whole_box(question.norm, batch.x[0].numel())
        seconds = settings.time_limit * len(batch)
        return cls(question.eps.value, limit, settings.tolerance, seconds, tick=batch.tick)

    def __call__(
        self,
        bound: MarginBound,
        margin: Float[Tensor, " batch"],
        known: Float[Tensor, " batch"] | None = None,
        spent: float = 0.0,
    ) -> SearchResult:
        """Search for the largest certified radius of every sample.

        Args:
            bound: evaluates chosen samples at chosen radii.
            margin: margins at the images; rows that are not positive get radius 0.
            known: radii already proved by another method.
            spent: seconds already spent.
        """
        state = _State(margin, self)
        started, margins_at_eps, rounding = now(), *torch.full((2, len(margin)), float("nan")).to(margin)
        for step in range(self.max_steps):
            rows = state.active.nonzero().squeeze(1)
            if not len(rows) or (step and now() - started > self.seconds - spent):
                break
            if self.tick is not None:
                self.tick(len(margin) - len(rows), f"step {step + 1} of the radius search")
            try:
                with within(self.seconds - spent - (now() - started)):
                    found = bound(rows, state.trial[rows])
            except TimeUp:
                if step == 0 and known is not None:
                    state.raise_to(known.to(margin))
                break
            except MEMORY_ERRORS as error:
                if out_of_memory(error) and len(margin) == 1 and bool(state.proved > 0):
                    break
                raise
            lowest = found.margin.to(margin.dtype)
            lowest = lowest.where(lowest < float("inf"), float("nan"))
            if step == 0:
                margins_at_eps[rows] = lowest
                rounding[rows] = torch.zeros_like(lowest) if found.rounding is None else found.rounding.to(lowest)
            state.record(rows, lowest, found.radius.to(margin.dtype))
            if step == 0 and known is not None:
                state.raise_to(known.to(margin))
            state.choose(halve=step % 4 == 3 and step > 4)
        radius = torch.nextafter(state.proved, torch.zeros_like(state.proved))
        if known is not None:  # already rounded down
            radius = torch.where(state.proved == known, state.proved, radius)
        return SearchResult(radius, margins_at_eps, ~state.active, rounding)
