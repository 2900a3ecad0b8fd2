"""The regulariser of Shi et al.: tight bounds and balanced activations while eps grows."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certkd.objectives.base import Term, Terms
from verifiers.bound_propagation import Box, Ends, activation_boxes

#: The ratios that are not regularised further.
TOLERANCE = 0.5
_SMALLEST = 1e-12


def warmup_terms(network: nn.Module, box: Box, weight: float) -> Terms:
    """Compute the regulariser of a network's intervals on boxes; no terms at weight 0 and without activations.

    With c and D the centres and half-widths of the inputs of activation i (D_0: of the images) in the batch, and
    r(q) = max(0, t - q) / t at t = 1/2, each averaged over the activations:

    * tightness: r(mean D_0 / mean D_i).
    * balance: r(min(a, 1/a)) + r(min(b, 1/b)); a is the ratio of the sums of |c| over active and over inactive
      entries (c is their centre, active where low > 0, inactive where high < 0), and b that of (c - mean c)^2. A layer
      without one of the two kinds counts as 0.

    Source: Shi et al., arXiv 2103.17268.
    """
    if weight == 0:
        return {}
    inputs, start = activation_boxes(network, box), _width(box)
    if not inputs:
        return {}
    tightness = [_lacking(start / _width(each).clamp_min(_SMALLEST)) for each in inputs]
    balance = [_imbalance(each) for each in inputs]
    return {
        "tightness": Term(weight, torch.stack(tightness).mean()),
        "balance": Term(weight, torch.stack(balance).mean()),
    }


def _width(box: Ends) -> Float[Tensor, ""]:
    return ((box[1] - box[0]) / 2).mean()


def _lacking(ratio: Float[Tensor, ""]) -> Float[Tensor, ""]:
    return (TOLERANCE - ratio).clamp_min(0) / TOLERANCE


def _imbalance(box: Ends) -> Float[Tensor, ""]:
    low, high = box
    centre, active, inactive = (low + high) / 2, low > 0, high < 0
    if not (bool(active.any()) and bool(inactive.any())):
        return centre.sum() * 0
    spread = (centre - centre.mean()).square()
    ratios = (part[active].sum() / part[inactive].sum().abs().clamp_min(_SMALLEST) for part in (centre, spread))
    return sum(_lacking(q.minimum(1 / q.clamp_min(_SMALLEST))) for q in ratios)  # type: ignore[return-value]
