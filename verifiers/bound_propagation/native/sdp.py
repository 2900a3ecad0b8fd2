"""Let l2 bounds follow the ball through the network: a multiplier for every unstable ReLU (after SDP-CROWN).

Push a row back with slope g_i at unstable neuron i, where its coefficient is c_i. Nothing is lost yet:

    row = p d + constant + sum_i f_i(z_i),    f_i(z) = c_i max(z, 0) - g_i z,

with d the perturbation and z_i the neuron's input, for every choice of slopes. CROWN bounds each f_i alone, on the
neuron's interval, as if all could be lowest at once. On an l2 ball they cannot. SDP-CROWN (arXiv 2506.06665) therefore
adds w/2 (sum_i (z_i - m_i)^2 - r^2) with a multiplier w >= 0 per layer, where r is a radius of the layer's inputs. Here
each neuron has its own multiplier w_i, and the ball is followed back to the image instead of being enlarged layer by
layer: CROWN's planes give z_i = m_i + a_i d + e_i with |e_i| <= E_i, so that, for every t_i > 0,

    (z_i - m_i)^2 <= (1 + t_i) (a_i d)^2 + (1 + 1/t_i) E_i^2.

Adding w_i/2 times the difference, which is never positive, leaves three bounds in closed form: of each neuron,
min f_i(z) + w_i/2 (z - m_i)^2 on its interval; the constant -w_i/2 (1 + 1/t_i) E_i^2; and, over the ball cut at the
image box, p d - 1/2 sum_i w_i (1 + t_i) (a_i d)^2 (``trust_region``). The bound holds for all slopes, multipliers and
t, which gradient ascent chooses for each row. With w = 0 and CROWN's slopes it is CROWN's. The rounding of the deployed
network lowers the row at every node, and widens the intervals and E. Other activations keep CROWN's planes.
"""

import math
import time
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation.engine import Planes, better
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.bound_propagation.native.hinges import (
    MOST,
    Followed,
    Hinges,
    by_crown,
    coefficients_at,
    follow,
    open_pass,
    pushed,
)
from verifiers.bound_propagation.native.trust_region import SLACK, State, minimum
from verifiers.graph.graph import Graph
from verifiers.graph.operators import Elementwise
from verifiers.graph.rows import shape_size
from verifiers.runtime.optimizer import Adam

#: The most samples of one ascent, and the most entries of its matrices if it has several: more do not stay in a cache.
SAMPLES, ENTRIES = 16, 2**20
#: The first multipliers, as a share of a coefficient over the half-width of its neuron; Adam's rate and its decay.
FIRST, RATE, DECAY = 0.3, 0.12, 0.97
#: The first slopes stay this far from the ends of [0, 1], so that they are free to move.
NEAR = 0.03


@dataclass
class Choice:
    """The free parameters of all rows; every value is sound.

    Attributes:
        slope: the angle of each neuron's slope, sin^2 of it.
        weight: the logarithm of each multiplier over its unit.
        split: the logarithm of each t.
        unit: the units of the multipliers.
    """

    slope: Float[Tensor, "rows entries"]
    weight: Float[Tensor, "rows entries"]
    split: Float[Tensor, "rows entries"]
    unit: Float[Tensor, "rows entries"]


@dataclass
class Ascent:
    """Bound a specification over propagated bounds of l2 balls, with parameters that ascent improves.

    Attributes:
        bounds: of one batch; cut at the image box.
        specification: the rows.
        hinges: the ReLUs.
        followed: the neurons with multipliers.
        choice: the parameters.
        state: where the minimisation over the balls stands.
    """

    bounds: Bounds
    specification: Float[Tensor, "batch rows classes"]
    hinges: Hinges
    followed: Followed
    choice: Choice
    state: State

    @classmethod
    def start(cls, bounds: Bounds, specification: Float[Tensor, "batch rows classes"]) -> "Ascent | None":
        """Start at CROWN's slopes; None if no ReLU is unstable."""
        hinges = Hinges.of(bounds)
        if not bool(hinges.open.any()):
            return None
        batch, count = specification.shape[:2]
        first = open_pass(bounds, hinges)
        slopes, _, _ = pushed(first, specification)
        blank = bounds.balls.x.new_zeros((batch * count, 0))
        rows = torch.cat([blank, *(coefficients_at(first, place, batch * count) for place in hinges.readers)], 1)
        low, high = (end.repeat_interleave(count, 0) for end in (hinges.low, hinges.high))
        gap = -low * high / (high - low).clamp_min(1e-300)
        followed = follow(bounds, hinges, (rows.abs() * gap).unflatten(0, (batch, count)).amax(1))
        reach = torch.linalg.vector_norm(followed.directions.rows, dim=2) * bounds.balls.eps[:, None]
        share = (2 * followed.rest / reach.clamp_min(1e-300)).clamp(1e-3, 1e3).log()
        split = torch.zeros_like(hinges.low).scatter(1, followed.index, share)
        angle = by_crown(rows, low, high).clamp(NEAR, 1 - NEAR).sqrt().asin()
        unit = (rows.abs() + 0.01 * rows.abs().mean(1, keepdim=True)) / (0.5 * (high - low)).clamp_min(1e-12)
        choice = Choice(angle, torch.full_like(rows, math.log(FIRST)), split.repeat_interleave(count, 0), unit)
        return cls(bounds, specification, hinges, followed, choice, State.start(slopes, bounds.balls.eps))

    def bound(self) -> tuple[Planes, Tensor]:
        """Bound the rows with the current parameters; return also what ascent increases."""
        batch, count = self.specification.shape[:2]
        followed, choice = self.followed, self.choice
        places = followed.index.repeat_interleave(count, 0)
        valid = followed.valid.repeat_interleave(count, 0)
        weight = choice.weight.gather(1, places).exp() * choice.unit.gather(1, places) * valid
        split = choice.split.gather(1, places).exp()
        rest = followed.rest.repeat_interleave(count, 0).square()
        middle = torch.zeros_like(self.hinges.low).scatter_add(1, followed.index, followed.middle * followed.valid)
        weights = torch.zeros_like(choice.weight).scatter_add(1, places, weight)
        run = open_pass(self.bounds, self.hinges, choice.slope.sin().square(), weights, middle)
        slopes, constant, rounding = pushed(run, self.specification)
        exact = rest == 0
        lost = 0.5 * weight * torch.where(exact, 0.0, (1 + 1 / split) * rest)
        constant = constant - lost.sum(1).reshape(batch, count) * (1 + SLACK)
        bent = (weight * torch.where(exact, 1.0, 1 + split)).reshape(batch, count, -1)
        with torch.no_grad():
            least, centre, point = minimum(slopes, bent, followed.directions, self.state)
            lowered = followed.directions.times(point).square()
            bound, value = constant + least, constant + centre
            planes = Planes(bound, value, (value - bound) / self.bounds.balls.eps[:, None], rounding.detach())
        return planes, constant + (slopes * point).sum(2) - 0.5 * (bent * lowered).sum(2)


def samples_at_once(graph: Graph, rows: int) -> int:
    """Return the number of samples per ascent, each with so many rows."""
    relus = [node for node in graph.nodes if isinstance(node.operator, Elementwise)]
    widest = min(MOST, sum(shape_size(node.shape) for node in relus))
    return max(1, min(SAMPLES, ENTRIES // max(1, rows * widest**2)))


def cut_at_box(bounds: Bounds) -> None:
    """Tighten propagated bounds of l2 balls by cutting each ball at the image box."""
    bounds.known = {i: bounds.intervals[i] for i in bounds.refined}
    bounds.cut, bounds.relaxations = True, {}
    with torch.no_grad():
        bounds.propagate(refine=True)


def followed_ball(
    bounds: Bounds,
    specification: Float[Tensor, "batch rows classes"],
    iterations: int,
    deadline: float = math.inf,
    goal: float = math.inf,
) -> Planes:
    """Bound rows over l2 balls, each by the best of CROWN's planes and all steps of the ascent.

    Args:
        bounds: propagated bounds of l2 balls, ``cut``.
        specification: the rows.
        iterations: steps of the ascent.
        deadline: no step starts later, on ``time.monotonic``.
        goal: the ascent ends once all bounds exceed it.
    """
    with torch.no_grad():
        best = bounds.by_rows(specification)
        ascent = None if time.monotonic() > deadline else Ascent.start(bounds, specification)
    if ascent is None:
        return best
    choice = ascent.choice
    free = [each.requires_grad_(True) for each in (choice.slope, choice.weight, choice.split)]
    optimizer = Adam(free, RATE)
    for step in range(iterations):
        if time.monotonic() > deadline or bool((best.bound > goal).all()):
            break
        last = step == iterations - 1
        with torch.set_grad_enabled(not last):
            planes, towards = ascent.bound()
        best = better(best, planes)
        if not last:
            optimizer.zero_grad()
            (-towards.where(torch.isfinite(towards), 0.0).sum()).backward()
            optimizer.step()
            optimizer.rate *= DECAY
    return best
