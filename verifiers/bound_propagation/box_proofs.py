"""Refute cases on one box by alpha-CROWN with branch and bound over neurons."""

import time
from dataclasses import replace

import torch

from verifiers.bound_propagation.boxes.splitting import Tries
from verifiers.bound_propagation.half_spaces import Ended, HalfSpaces, largest_values
from verifiers.bound_propagation.native.alpha import optimized
from verifiers.bound_propagation.native.branch_and_bound import BranchAndBound
from verifiers.bound_propagation.native.engine import Native
from verifiers.geometry.balls import Balls

#: alpha-CROWN starts no step after this share of the time, so that some is left to branch and bound.
ALPHA_SHARE = 0.25


def by_neurons(
    native: Native, spaces: HalfSpaces, region: Balls, *, iterations: int, deadline: float, tries: Tries
) -> Ended:
    """Refute cases on one region by alpha-CROWN, then by branch and bound over the signs of neurons.

    Args:
        native: the engine.
        spaces: the cases.
        region: one ball or box.
        iterations: steps of alpha-CROWN.
        deadline: on ``time.monotonic``.
        tries: tries points.
    """
    started = time.monotonic()
    graph = largest_values(native.graph, spaces)
    bounds = replace(native.bounds(region), graph=graph)
    rows = torch.eye(spaces.cases, dtype=region.x.dtype, device=region.x.device)[None]
    alone = started + ALPHA_SHARE * (deadline - started)
    proved = optimized(bounds, rows, iterations, alone, goal=0.0).bound[0]
    if bounds.overflows:
        return Ended(False, reason="values of the network may overflow there")
    if bool(((proved > 0) & (proved < torch.inf)).all()):
        return Ended(True, bound=float(proved.amin()))
    end = BranchAndBound(bounds, rows, proved, 0.0, deadline=deadline, broken=tries).run()
    if end.finished or end.point is not None:
        return Ended(end.finished and end.point is None, end.domains, bound=end.bound)
    reason = "" if end.late else "every neuron was split" if not end.full else "memory could run out from the parts"
    return Ended(False, end.domains, end.late, reason, end.bound, end.full)
