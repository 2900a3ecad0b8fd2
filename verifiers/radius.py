"""From "certified at eps" to the largest certified eps, for all samples of a batch at once."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Lower margin bounds (less the rounding allowance) of the given rows, each at its own eps.
MarginBound = Callable[[Int[Tensor, " rows"], Float[Tensor, " rows"]], Float[Tensor, " rows"]]


def largest_certified(
    bound: MarginBound,
    clean: Float[Tensor, " batch"],
    *,
    eps: float,
    limit: float,
    tolerance: float,
    max_steps: int = 40,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Largest radius proved per sample, and the margin bound at eps.

    Every row is bounded at eps first; a row that holds there doubles its radius until it fails, then the bracket
    [proved, failed] shrinks by interpolation between its two margins, every third step by halving. Rows leave the
    batch when the bracket is narrower than ``tolerance`` times the radius. Only a radius whose own evaluation gave a
    positive bound is ever returned; a bound that is nan or infinite counts as failed.

    Args:
        bound: evaluates rows, each at its own eps.
        clean: margin on the clean image, used to start the interpolation; rows with clean <= 0 get radius 0.
        eps: first radius tried, pixel units.
        limit: radius beyond which nothing is searched (the whole image box).
        tolerance: relative width of the final bracket.
        max_steps: evaluations per row at most; what is proved by then is returned.

    Returns:
        radius: float64, rounded down by one unit in the last place; 0 where nothing was proved.
        margin: the bound at eps.
    """
    rows = torch.arange(len(clean), device=clean.device)
    proved, failed = torch.zeros_like(clean), torch.full_like(clean, float("inf"))
    margin_proved, margin_failed = clean.clone(), torch.full_like(clean, float("-inf"))
    trial = torch.full_like(clean, min(eps, limit))
    at_eps = torch.full_like(clean, float("nan"))
    active = clean > 0
    for step in range(max_steps):
        if not bool(active.any()):
            break
        chosen = rows[active]
        margin = bound(chosen, trial[chosen]).to(clean.dtype)
        margin = margin.where(margin < float("inf"), float("nan"))
        if step == 0:
            at_eps[chosen] = margin
        holds = margin > 0
        good, bad = chosen[holds], chosen[~holds]
        proved[good], margin_proved[good] = trial[good], margin[holds]
        failed[bad], margin_failed[bad] = trial[bad], margin[~holds]
        active = active & (proved < limit) & (failed - proved > tolerance * proved.clamp_min(1e-3 * eps))
        halve = step % 3 == 2
        trial = _next_trial(proved, failed, margin_proved, margin_failed, limit, tolerance, halve)
    return torch.nextafter(proved, torch.zeros_like(proved)), at_eps


def _next_trial(
    proved: Tensor,
    failed: Tensor,
    margin_proved: Tensor,
    margin_failed: Tensor,
    limit: float,
    tolerance: float,
    halve: bool,
) -> Float[Tensor, " batch"]:
    """Doubling while nothing failed; else where the margins' straight line crosses zero, half a tolerance off the ends.

    An estimate within half a tolerance of one end is moved inside: the next answer then closes the bracket.
    """
    bracketed = torch.isfinite(failed)
    width = torch.where(bracketed, failed - proved, 0.0)
    share = margin_proved / (margin_proved - margin_failed)
    usable = torch.isfinite(share) & torch.isfinite(margin_failed) & (not halve)
    share = torch.where(usable, share.clamp(0.1, 0.9), 0.5)
    step = 0.5 * torch.minimum(tolerance * proved, width)
    inside = (proved + share * width).clamp(proved + step, proved + width - step)
    return torch.where(bracketed, inside, (2 * proved).clamp_max(limit))
