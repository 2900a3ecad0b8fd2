"""AutoAttack: four attacks in the standard order, each on the samples that the ones before left."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn

from verifiers.core.quantities import Norm
from verifiers.geometry.attack import Found, nearest
from verifiers.geometry.attacks.apgd import Apgd
from verifiers.geometry.attacks.fab import Fab
from verifiers.geometry.attacks.losses import cross_entropy, ranked, targeted_ratio
from verifiers.geometry.attacks.search import Aimed, Run, Victims, at_rest, in_turn
from verifiers.geometry.attacks.square import Square
from verifiers.geometry.balls import Balls, noise_like
from verifiers.runtime.deadline import left


class Stage(StrEnum):
    """The attacks, in the standard order."""

    APGD_CE = "apgd-ce"
    APGD_T = "apgd-t"
    FAB_T = "fab-t"
    SQUARE = "square"


#: The attacks that find almost all.
FAST = (Stage.APGD_CE, Stage.APGD_T)
#: In l1, how many times as many starts APGD has on the cross-entropy, and how many classes targeted APGD aims at.
SPARSE_STARTS, SPARSE_TARGETS = 5, 5
#: Keeps the random starts of different targets apart.
KEY = 100_000


class Battered(NamedTuple):
    """The result of all attacks.

    Attributes:
        found: the counterexamples.
        outcomes: by attack: 1 where it found a counterexample, 0 where it found none, -1 where it did not run.
        flat: 1 where the loss of targeted APGD has no slope at all at a start, 0 where it has, -1 where it did not run.
    """

    found: Found
    outcomes: Mapping[str, Int8[Tensor, " batch"]]
    flat: Int8[Tensor, " batch"]


def _silent(settled: int, text: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class AutoAttack:
    """The attacks of AutoAttack within eps.

    Attributes:
        eps, norm: the ball.
        seed: keys all randomness, together with the samples' indices.
        steps: steps of each run of APGD and FAB.
        restarts: random starts of every attack.
        queries: queries of Square for each sample.
        targets: the most likely classes that targeted attacks aim at.
        stages: the attacks to run.
        each: every attack runs on every sample, also on those that are broken.

    Source: Croce and Hein, arXiv 2003.01690.
    """

    eps: float
    norm: Norm
    seed: int = 0
    steps: int = 100
    restarts: int = 1
    queries: int = 5000
    targets: int = 9
    stages: Sequence[Stage] = tuple(Stage)
    each: bool = False

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *shape"],
        predicted: Int[Tensor, " batch"],
        indices: Sequence[int],
        tick: Callable[[int, str], None] = _silent,
    ) -> Battered:
        """Attack every sample within eps; all images stay in [0, 1]. ``tick`` is told of every attack that begins."""
        return self.within(Victims(model, Balls.around(x, self.eps, self.norm), predicted, indices, self.seed), tick)

    def within(self, victims: Victims, tick: Callable[[int, str], None] = _silent) -> Battered:
        """Attack samples within their own regions instead."""
        reached = at_rest(victims)
        everyone = torch.arange(len(victims), device=victims.own.device)
        unrun = torch.full_like(victims.own, -1, dtype=torch.int8)
        outcomes, flat = {str(stage): unrun.clone() for stage in Stage}, unrun.clone()
        for stage in self.stages:
            rows = everyone if self.each else reached.left
            if not len(rows):
                break
            tick(len(victims) - len(reached.left), str(stage))
            some = victims.take(rows)
            result = in_turn(some, self._runs(stage, some))
            broken, late = (result.margin < 0).to(torch.int8), left() < 0
            outcomes[str(stage)][rows] = torch.where(broken == 1, broken, -1) if late else broken
            if stage is Stage.APGD_T:
                flat[rows] = torch.where(outcomes[str(stage)][rows] >= 0, result.flat.to(torch.int8), -1)
            reached = reached.improved(rows, result, some.balls)
            if late:
                break
        return Battered(nearest(victims, reached), outcomes, flat)

    def _runs(self, stage: Stage, victims: Victims) -> Iterable[Run]:
        sparse = self.norm is Norm.L1
        if stage is Stage.APGD_CE:
            attack, starts = Apgd(cross_entropy, self.steps), self.restarts * (SPARSE_STARTS if sparse else 1)
            return [Aimed(attack, victims.own, start) for start in range(starts)]
        if stage is Stage.SQUARE:
            return [Square(self.queries, start) for start in range(self.restarts)]
        fab = stage is Stage.FAB_T
        most = min(self.targets, SPARSE_TARGETS) if sparse and not fab else self.targets
        targets = ranked(victims.logits(), victims.own, most).unbind(1)
        search = Fab(self.steps) if fab else Apgd(targeted_ratio, self.steps)
        return [
            Aimed(search, target, None if fab and not start else KEY * (place + 1) + start)
            for place, target in enumerate(targets)
            for start in range(self.restarts)
        ]


def probabilities(model: nn.Module, samples: Float[Tensor, "batch *shape"]) -> bool:
    """Return whether a network gives probabilities, on the samples and on as many random images."""
    with torch.no_grad():
        values = model(torch.cat([samples, noise_like(samples)]))
    whole = (values.sum(1) - 1).abs() < 1e-5
    return bool(((values >= 0) & (values <= 1)).all() and whole.all())
