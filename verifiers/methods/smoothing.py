"""The method ``smoothing``: randomized smoothing, which certifies the smoothed classifier."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from verifiers.core.columns import Column
from verifiers.core.errors import InputError
from verifiers.core.noise import Noise
from verifiers.core.quantities import Norm
from verifiers.core.question import Question
from verifiers.core.settings import Count, Positive
from verifiers.core.status import About, Guarantee
from verifiers.methods.base import Method, Problems, Summary
from verifiers.results.reader import read_images
from verifiers.results.rows import MethodRows
from verifiers.results.schema import largest_radius
from verifiers.results.summaries import smoothing
from verifiers.smoothing.table import CLAIM, COLUMNS, PAPER

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from verifiers.graph.program import Program
    from verifiers.runtime.certifier import Certifier
    from verifiers.runtime.samples import Samples

_VOTES = ("votes", "teacher_votes", "same_votes")


class Smoothing(Method):
    """Certify the smoothed classifier by votes of the network on noisy copies, no more than the question needs.

    sigma: standard deviation of the noise, in pixel units.
    n: the most noisy copies per sample.
    n0: copies for selecting the class.
    alpha: error probability per sample.
    noise: gaussian or uniform.
    question: eps (certified at eps or not), grid (radii down to a multiple of step) or full (all n copies).
    step: step of the grid.
    dtype: dtype of the voting network.
    time_limit: seconds per sample.
    """

    kind: Literal["smoothing"] = "smoothing"
    sigma: Annotated[Positive, Field(examples=["0.25"])]
    n: Annotated[Count, Field(le=10**9)] = 100_000  # the file's counts hold no more votes
    n0: Count = 100
    alpha: Annotated[Positive, Field(lt=0.5)] = 0.001
    noise: Noise = Noise.GAUSSIAN
    question: Literal["eps", "grid", "full"] = "eps"
    step: Positive = 0.25
    dtype: Literal["float32", "bfloat16"] = "float32"
    time_limit: Positive = 3600.0
    guarantee: ClassVar[Guarantee] = Guarantee.PROBABILISTIC
    norms: ClassVar[tuple[Norm, ...]] = (Norm.L2, Norm.L1, Norm.LINF)
    about: ClassVar[About] = About.SMOOTHED
    runs_again: ClassVar[bool] = False
    claim: ClassVar[str] = CLAIM
    paper: ClassVar[str] = PAPER
    cost: ClassVar[str] = "n forward passes; a hundredth to a tenth of that for one radius"
    summary: ClassVar[Summary | None] = smoothing.summary
    columns: ClassVar[tuple[Column, ...]] = COLUMNS

    @model_validator(mode="after")
    def _enough_copies(self) -> "Smoothing":
        if self.n < self.n0:
            raise ValueError(f"n must be at least n0, got n={self.n} and n0={self.n0}")
        return self

    def problems(self, rows: MethodRows, path: str, pixels: int | None) -> Problems:
        from verifiers.smoothing.recompute import Recomputed, shared_problems
        from verifiers.smoothing.statistics import Law, Schedule

        law = Law(self.noise, self.sigma, Norm(rows.norm), pixels or 1)
        most = largest_radius({"pixels": pixels} if pixels else {}, rows.attributes)
        recomputed = Recomputed(law, Schedule.of(self.question, self.n, self.alpha), most)
        if not Path(path).exists():
            return recomputed.problems(rows, None)
        every = np.arange(len(rows))
        votes, teacher, same = (read_images(path, self.kind, name, every).astype(np.int64) for name in _VOTES)
        if not votes.any():  # of an imported log
            return {**recomputed.problems(rows, None), **recomputed.counted(rows)}
        shared = shared_problems(votes[:, -1], teacher, same, rows["used"])
        return {**recomputed.problems(rows, votes), **shared}

    def check(self, question: Question) -> None:
        if not self.noise.certifies(question.norm):
            raise InputError(f"uniform noise has no {question.norm} radii: take the norm l1, or gaussian noise")

    def prepare(self, program: "Program", samples: "Tensor", question: Question) -> "Certifier":
        from verifiers.smoothing.certifier import Smoother

        return Smoother.prepare(program, samples, question, self)

    def preview(self, certifier: "Certifier", samples: "Samples", device: "torch.device") -> Iterable[str]:
        from verifiers.smoothing.certifier import Smoother

        return certifier.preview(samples, device) if isinstance(certifier, Smoother) else ()
