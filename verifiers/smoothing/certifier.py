"""The certifier of ``smoothing``: predict and certify a radius, with no more noisy copies than needed.

The smoothed classifier returns the class that the base network gives most often to noisy copies of an image. The
certificate is for the smoothed classifier, not for the base network, and holds with confidence 1 - alpha per sample.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.core.columns import Columns
from verifiers.core.errors import Unsupported
from verifiers.core.noise import LOOKS, Noise
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.graph.program import Program
from verifiers.runtime.certifier import Answer, Batch
from verifiers.runtime.oom import out_of_memory
from verifiers.runtime.samples import Samples
from verifiers.smoothing.recount import Recount
from verifiers.smoothing.sampling import GENERATOR, Draw, Purpose, Voter
from verifiers.smoothing.statistics import Law, Schedule, attainable, leading, notes_of, upper

#: Samples whose noisy copies give the accuracy under noise and the speed before a run.
PREVIEW = 256
#: Level of the test that gives up on a sample early. It costs no alpha: not certifying is always sound.
HOPELESS = 0.001
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@runtime_checkable
class SmoothingSettings(Protocol):
    """The settings of the method; see ``verifiers.methods.smoothing``."""

    @property
    def sigma(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def n0(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def noise(self) -> Noise: ...
    @property
    def question(self) -> str: ...
    @property
    def step(self) -> float: ...
    @property
    def dtype(self) -> str: ...


@dataclass
class Smoother:
    """Randomized smoothing prepared for one network."""

    voter: Voter
    law: Law
    schedule: Schedule
    settings: SmoothingSettings
    eps: Epsilon
    batch_size: int

    @classmethod
    def prepare(
        cls, program: Program, samples: Float[Tensor, "two *shape"], question: Question, settings: SmoothingSettings
    ) -> "Smoother":
        """Prepare the network; a pass holds as many copies as memory allows.

        Raises:
            Unsupported: the network does not run in the dtype of the settings.
        """
        law = Law(settings.noise, settings.sigma, question.norm, math.prod(samples.shape[1:]))
        teacher = None if question.teacher is None else question.teacher.module
        voter = Voter(program.module, law.noise, law.sigma, question.seed, DTYPES[settings.dtype], teacher)
        try:
            voter.fit(samples[:1])
        except RuntimeError as error:
            if out_of_memory(error) or settings.dtype == "float32":
                raise
            raise Unsupported(f"the network does not run in {settings.dtype}: {str(error)[:200]}") from error
        images = 4 if program.device.type == "cpu" else max(1, voter.size // 16)
        schedule = Schedule.of(settings.question, settings.n, settings.alpha)
        return cls(voter, law, schedule, settings, question.eps, images)

    @property
    def notes(self) -> dict[str, str]:
        return {"generator": GENERATOR, "pass": f"{self.voter.size} copies", **notes_of(self.law, self.schedule)}

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        """Certify every sample; the smoothed classifier predicts, and the network's own predictions play no part."""
        x, everything = batch.x, batch.rows
        selected = self._count(batch, everything, 0, self.settings.n0, Purpose.SELECTION)[0].argmax(1)
        tables = 2 * len(self.voter.models) - 1
        votes = np.zeros((len(self.schedule.counts), tables, len(x), batch.classes), np.int64)
        stage, going, bounds = np.zeros(len(x), np.int64), everything, np.zeros((3, len(x)))
        for look, (done, n) in enumerate(pairwise((0, *self.schedule.counts))):
            votes[look] = votes[look - 1]
            votes[look][:, going] += self._count(batch, going, done, n, Purpose.ESTIMATION)
            stage[going] = look + 1
            own, second = leading(votes[: look + 1, 0][:, going], selected[going])
            bounds[:, going] = self.schedule.bounds(own, second)
            going = going[~self._settled(bounds[0, going], own[-1], n)]
        yield Answer(batch.rows, self._columns(selected, votes, stage, bounds))

    def _count(
        self, batch: Batch, rows: Int[np.ndarray, " rows"], first: int, last: int, purpose: Purpose
    ) -> Int[np.ndarray, "tables rows classes"]:
        """Count votes on copies ``first`` to ``last`` of some rows."""
        draws = [Draw(i, int(batch.indices[row]), first, last) for i, row in enumerate(rows)]
        return self.voter.histogram(batch.x[torch.as_tensor(rows)], draws, purpose, batch.classes).cpu().numpy()

    def _settled(
        self, p: Float[np.ndarray, " rows"], own: Int[np.ndarray, " rows"], n: int
    ) -> Bool[np.ndarray, " rows"]:
        """Return whether more copies could no longer change the answer."""
        question = self.settings.question
        if question == "full":
            return np.zeros(len(p), bool)
        low, high = self.law.one_class(p), self.law.one_class(upper(own, n, HOPELESS))
        if question == "eps":
            return (low >= self.eps.value) | (high < self.eps.value)
        step = self.settings.step
        return np.floor(low / step) >= np.floor(high / step)

    def _columns(
        self,
        selected: Int[np.ndarray, " rows"],
        votes: Int[np.ndarray, "stages tables rows classes"],
        stage: Int[np.ndarray, " rows"],
        bounds: Float[np.ndarray, "3 rows"],
    ) -> Columns:
        radius = self.law.one_class(bounds[0])
        answered = radius > 0
        columns = {
            "status": np.where(answered, Status.CERTIFIED.value, Status.ABSTAINED.value).astype("uint8"),
            "radius": radius,
            "margin": np.full(len(radius), np.nan),
            "predicted": np.where(answered, selected, -1),
            "selected": selected,
            "radius_one_class": radius,
            "radius_two_class": self.law.radius(bounds[1], bounds[2]),
            "p_lower": bounds[0],
            "stage": stage,
            "used": np.array(self.schedule.counts)[stage - 1],
            "votes": np.moveaxis(votes[[*range(len(votes)), *[-1] * (LOOKS - len(votes))], 0], 0, 1),
        }
        if len(votes[-1]) > 1:
            columns |= {"teacher_votes": votes[-1, 1], "same_votes": votes[-1, 2]}
        return columns

    def recount(
        self, batch: Batch, stored: Mapping[str, np.ndarray], seed: int, tests: int
    ) -> Mapping[str, np.ndarray]:
        """Count stored votes again: on the same copies, and on fresh ones; see ``recount``."""
        again = Recount(self.voter, self.schedule.counts, self.settings.n0)
        return again(batch, stored, seed, tests)

    def preview(self, samples: Samples, device: torch.device) -> Iterator[str]:
        """Report before the run: the attainable radius, the accuracy under noise, the copies and the time."""
        rows = np.unique(np.linspace(0, len(samples.labels) - 1, min(PREVIEW, len(samples.labels))).astype(int))
        x = samples.batch(rows, device)
        draws = [Draw(i, int(samples.indices[row]), 0, 1) for i, row in enumerate(rows)]
        votes = self.voter.histogram(x, draws, Purpose.PREVIEW, samples.classes)[0].cpu()
        copies = 4 * self.voter.size
        started = time.perf_counter()
        self.voter.histogram(x[:1], [Draw(0, 0, 0, copies)], Purpose.PREVIEW, samples.classes)[0].cpu()
        seconds = (time.perf_counter() - started) / copies
        right = votes.gather(1, samples.labels[rows][:, None]).sum().item() / len(rows)
        best, eps = attainable(self.law, self.schedule), self.eps
        yield f"largest radius attainable with n={self.schedule.counts[-1]}: {best:.4g} ({self.law.norm})"
        if best < eps.value:
            yield f"eps {eps} is beyond it: nothing can be certified there; take a larger n or sigma"
        if self.law.norm is Norm.LINF:
            yield f"linf radii are the l2 radii over the root of {self.law.pixels} pixels: weak"
        yield f"accuracy of the network itself under noise {self.law.sigma:g}: {right:.1%} of {len(rows)} samples"
        most, least = (self.settings.n0 + n for n in (self.schedule.counts[-1], self.schedule.counts[0]))
        times = [f"{seconds * copies * len(samples.labels):.3g} s" for copies in sorted({least, most})]
        amounts = " to ".join(str(copies) for copies in sorted({least, most}))
        yield f"{amounts} copies a sample: {' to '.join(times)} for {len(samples.labels)} samples"
