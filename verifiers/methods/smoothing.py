"""Randomized smoothing: the smoothed classifier's prediction, its certified radius, and no more copies than needed.

The smoothed classifier answers with the class that the base network gives most often to noisy copies of an image. Its
certificate holds for the smoothed classifier, not for the base network, with confidence 1 - alpha per sample.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from verifiers.core.columns import Columns
from verifiers.core.errors import InputError, Unsupported, did_you_mean
from verifiers.core.quantities import Norm
from verifiers.core.status import Guarantee, Status
from verifiers.methods.base import MethodInfo, Request
from verifiers.runtime.samples import Samples, device_of
from verifiers.smoothing.sampling import GENERATOR, Draw, Purpose, Voter
from verifiers.smoothing.statistics import Law, Noise, Schedule, attainable, upper
from verifiers.smoothing.table import CLAIM, COLUMNS, LOOKS, PAPER, notes_of

#: Samples whose noisy copies tell the accuracy under noise and the speed before a run.
PREVIEW = 256
#: Level of the test that gives up on a sample early. It costs no alpha: not certifying is always right.
HOPELESS = 0.001
#: More votes than the file's counts hold.
LARGEST_N = 10**9
#: Questions that a run answers: certified at eps; on which steps of a grid of radii; the radius from all n copies.
QUESTIONS = ("eps", "grid", "full")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class _Smoother:
    voter: Voter
    law: Law
    schedule: Schedule
    n0: int
    request: Request
    batch_size: int
    classes: int

    @property
    def notes(self) -> dict[str, str]:
        return {"generator": GENERATOR, "pass": f"{self.voter.size} copies", **notes_of(self.law, self.schedule)}

    def __call__(
        self, x: Float[Tensor, "batch *shape"], predicted: Int[Tensor, " batch"], indices: Int[Tensor, " batch"]
    ) -> Columns:
        """``predicted`` of the base network plays no part: the smoothed classifier predicts by itself."""
        samples, everything = [int(index) for index in indices], np.arange(len(x))
        selected = self._count(x, samples, everything, 0, self.n0, Purpose.SELECTION)[0].argmax(1)
        tables = 2 * len(self.voter.models) - 1
        votes = np.zeros((len(self.schedule.counts), tables, len(x), self.classes), np.int64)
        stage, going, bounds = np.zeros(len(x), np.int64), everything, np.zeros((3, len(x)))
        for look, (done, n) in enumerate(pairwise((0, *self.schedule.counts))):
            votes[look] = votes[look - 1]
            votes[look][:, going] += self._count(x, samples, going, done, n, Purpose.ESTIMATION)
            stage[going] = look + 1
            own, second = _two(votes[: look + 1, 0][:, going], selected[going])
            bounds[:, going] = self.schedule.bounds(own, second)
            going = going[~self._settled(bounds[0, going], own[-1], n)]
        return self._columns(selected, votes, stage, bounds)

    def _count(
        self, x: Tensor, samples: Sequence[int], rows: Int[np.ndarray, " rows"], first: int, last: int, purpose: Purpose
    ) -> Int[np.ndarray, "tables rows classes"]:
        """Votes on copies ``first`` to ``last`` of some rows."""
        draws = [Draw(i, samples[row], first, last) for i, row in enumerate(rows)]
        return self.voter.histogram(x[torch.as_tensor(rows)], draws, purpose, self.classes).cpu().numpy()

    def _settled(
        self, p: Float[np.ndarray, " rows"], own: Int[np.ndarray, " rows"], n: int
    ) -> Bool[np.ndarray, " rows"]:
        """Whether more copies could change the answer to the question."""
        question = self.request.options["question"]
        if question == "full":
            return np.zeros(len(p), bool)
        low, high = self.law.one_class(p), self.law.one_class(upper(own, n, HOPELESS))
        if question == "eps":
            return (low >= self.request.eps.value) | (high < self.request.eps.value)
        step = float(self.request.options["step"])
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
            "votes": np.moveaxis(votes[:, 0], 0, 1).repeat(LOOKS // len(votes), 1),
        }
        if len(votes[-1]) > 1:
            columns |= {"teacher_votes": votes[-1, 1], "same_votes": votes[-1, 2]}
        return columns

    def preview(self, samples: Samples, device: torch.device) -> Iterator[str]:
        """What a person should know before the run: attainable radius, accuracy under noise, copies and time."""
        rows = np.unique(np.linspace(0, len(samples.labels) - 1, min(PREVIEW, len(samples.labels))).astype(int))
        x = samples.batch(rows, device)
        draws = [Draw(i, int(samples.indices[row]), 0, 1) for i, row in enumerate(rows)]
        votes = self.voter.histogram(x, draws, Purpose.PREVIEW, self.classes)[0].cpu()
        copies = 4 * self.voter.size
        started = time.perf_counter()
        self.voter.histogram(x[:1], [Draw(0, 0, 0, copies)], Purpose.PREVIEW, self.classes)[0].cpu()
        seconds = (time.perf_counter() - started) / copies
        right = votes.gather(1, samples.labels[rows][:, None]).sum().item() / len(rows)
        best, eps = attainable(self.law, self.schedule), self.request.eps
        yield f"largest radius attainable with n={self.schedule.counts[-1]}: {best:.4g} ({self.law.norm})"
        if best < eps.value:
            yield f"eps {eps} is beyond it: nothing can be certified there; take a larger n or sigma"
        if self.law.norm is Norm.LINF:
            yield f"linf radii are the l2 radii over the root of {self.law.pixels} pixels: weak"
        yield f"accuracy of the network itself under noise {self.law.sigma:g}: {right:.1%} of {len(rows)} samples"
        most, least = (self.n0 + n for n in (self.schedule.counts[-1], self.schedule.counts[0]))
        times = [f"{seconds * copies * len(samples.labels):.3g} s" for copies in sorted({least, most})]
        amounts = " to ".join(str(copies) for copies in sorted({least, most}))
        yield f"{amounts} copies a sample: {' to '.join(times)} for {len(samples.labels)} samples"


def _two(
    votes: Int[np.ndarray, "looks rows classes"], selected: Int[np.ndarray, " rows"]
) -> tuple[Int[np.ndarray, "looks rows"], Int[np.ndarray, "looks rows"]]:
    """Votes for the selected class, and the most votes that any other class has."""
    chosen = np.arange(votes.shape[2]) == selected[:, None]
    return np.where(chosen, votes, 0).sum(2), np.where(chosen, 0, votes).max(2)


def _check(request: Request) -> None:
    """The settings, before anything is computed.

    Raises:
        InputError: one that is missing or out of its range.
    """
    options = request.options
    if options["sigma"] is None:
        raise InputError("smoothing needs the size of its noise in pixel units: --sigma 0.25")
    if not options["alpha"] < 0.5:
        raise InputError(f"alpha must be in (0, 0.5), got {options['alpha']:g}: 0.001 is usual")
    if options["n"] > LARGEST_N:
        raise InputError(f"n must be at most {LARGEST_N:g}, got {options['n']:g}")
    if options["n"] < options["n0"]:
        raise InputError(f"n must be at least n0, got n={options['n']:g} and n0={options['n0']:g}")
    for name, known in (("noise", list(Noise)), ("question", QUESTIONS), ("dtype", list(DTYPES))):
        if options[name] not in known:
            raise InputError(f"unknown {name} {options[name]!r}.{did_you_mean(str(options[name]), list(known))}")
    if not Noise(options["noise"]).certifies(request.norm):
        raise InputError(f"uniform noise has no {request.norm} radii: take --norm l1, or gaussian noise")


def _prepare(model: nn.Module, samples: Tensor, request: Request) -> _Smoother:
    """Make the network ready; a pass takes as many copies as memory allows.

    Raises:
        Unsupported: the network does not run in the dtype asked for.
    """
    options = request.options
    law = Law(Noise(options["noise"]), float(options["sigma"]), request.norm, math.prod(samples.shape[1:]))
    plan = Schedule.single if options["question"] == "full" else Schedule.staged
    schedule = plan(int(options["n"]), float(options["alpha"]))
    with torch.no_grad():
        classes = model(samples).shape[1]
    voter = Voter(model, law.noise, law.sigma, request.seed, DTYPES[str(options["dtype"])], request.teacher)
    try:
        voter.fit(samples[:1])
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or options["dtype"] == "float32":
            raise
        raise Unsupported(f"the network does not run in {options['dtype']}: {str(error)[:200]}") from error
    images = 4 if device_of(model).type == "cpu" else max(1, voter.size // 16)
    return _Smoother(voter, law, schedule, int(options["n0"]), request, images, classes)


SMOOTHING = MethodInfo(
    name="smoothing",
    guarantee=Guarantee.PROBABILISTIC,
    norms=(Norm.L2, Norm.L1, Norm.LINF),
    claim=CLAIM,
    paper=PAPER,
    cost="n forward passes; a hundredth to a tenth of that for one radius",
    prepare=_prepare,
    predicts=True,
    check=_check,
    columns=COLUMNS,
    preview=_Smoother.preview,
    options={
        "sigma": None,
        "n": 100_000,
        "n0": 100,
        "alpha": 0.001,
        "noise": "gaussian",
        "question": "eps",
        "step": 0.25,
        "dtype": "float32",
    },
)
