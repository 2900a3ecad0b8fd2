"""Hunt for counterexamples that gradients from the image miss: random search from many starts, then small steps."""

import math
import time
from dataclasses import dataclass

import torch

from verifiers.geometry.attacks.apgd import Apgd
from verifiers.geometry.attacks.losses import margin
from verifiers.geometry.attacks.search import Reached, Victims, at_rest
from verifiers.geometry.attacks.square import Square

#: The length of the first small step, in eps.
SMALL = 0.1


@dataclass(frozen=True)
class Hunt:
    """Square from several starts at once, then APGD on the margin from each of its ends.

    Attributes:
        starts, queries: of Square.
        steps: of APGD.
        deadline: on ``time.monotonic``; Square ends there, and nothing begins after it.
    """

    starts: int = 4
    queries: int = 2500
    steps: int = 60
    deadline: float = math.inf

    def run(self, victims: Victims) -> Reached:
        """Search, and return the best end of each sample."""
        reached = at_rest(victims)
        rows = torch.arange(len(victims), device=victims.own.device).repeat_interleave(self.starts)
        every = victims.take(rows)
        keys = [self.starts * index + start for index in victims.indices for start in range(self.starts)]
        copies = Victims(every.model, every.balls, every.own, keys, every.seed)
        ends = Square(self.queries, deadline=self.deadline).run(copies)
        if time.monotonic() < self.deadline:
            small = Apgd(margin, self.steps, first_step=SMALL).run(copies, copies.own, ends.point - every.balls.x)
            ends = ends.improved(torch.arange(len(rows), device=rows.device), small, every.balls)
        best = ends.margin.reshape(-1, self.starts).argmin(1)
        chosen = torch.arange(len(best), device=best.device) * self.starts + best
        found = Reached(ends.point[chosen], ends.margin[chosen], reached.flat)
        return reached.improved(torch.arange(len(best), device=best.device), found, victims.balls)
