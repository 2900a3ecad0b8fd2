"""The method ``complete``: one answer at eps for every sample, by a cascade that each sample leaves when it is decided.

Attack, IBP and CROWN take whole batches; what they leave open goes on one sample at a time, to alpha-CROWN and to
branch and bound over the intervals that alpha-CROWN found. On networks of affine layers and ReLUs in linf balls, branch
and bound ends by itself; elsewhere it may run out of things to split.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.checks import withstand
from verifiers.bound_propagation.engine import Engine
from verifiers.bound_propagation.engines import build
from verifiers.bound_propagation.native import alpha
from verifiers.bound_propagation.native.branch_and_bound import Search
from verifiers.bound_propagation.native.engine import Native
from verifiers.bound_propagation.rounding import ARITHMETIC, careful_allowance
from verifiers.core.columns import Column, Columns
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.status import Guarantee, Status
from verifiers.geometry.balls import Balls, norms
from verifiers.geometry.margins import margin_specification, margins
from verifiers.methods.base import MethodInfo, Request
from verifiers.methods.pgd import PGD, Pgd
from verifiers.results.summaries.complete import Stage

SCREENS = (Stage.IBP, Stage.CROWN)
#: alpha-CROWN takes no new step after this share of the time, so that large networks leave some to branch and bound.
ALPHA_SHARE = 0.25


@dataclass
class _Answers:
    """Columns of one batch while they are found; rows are PENDING until they are decided."""

    columns: Columns
    seconds: Float[np.ndarray, "batch stages"]

    @classmethod
    def blank(cls, x: Float[Tensor, "batch *shape"]) -> "_Answers":
        rows = len(x)
        return cls(
            {
                "status": np.full(rows, Status.PENDING.value, "uint8"),
                "radius": np.zeros(rows),
                "margin": np.full(rows, np.nan),
                "stage": np.zeros(rows, "uint8"),
                "domains": np.zeros(rows, "int64"),
                "distance": np.full(rows, np.nan),
                "counterexample": np.full(x.shape, np.nan, "float32"),
            },
            np.zeros((rows, len(Stage))),
        )

    def with_seconds(self) -> Columns:
        """All columns."""
        each = {stage.column: self.seconds[:, stage - 1] for stage in Stage}
        return {**self.columns, **each, "seconds": self.seconds.sum(1)}

    def spend(self, rows: Int[Tensor, " some"], stage: Stage, started: float) -> None:
        """The time since then, shared by rows."""
        self.seconds[rows.cpu().numpy(), stage - 1] = (time.perf_counter() - started) / len(rows)

    def decide(self, row: int, stage: Stage, status: Status, eps: float, margin: float) -> None:
        """Give a row its answer."""
        self.columns["status"][row], self.columns["stage"][row] = status, stage
        self.columns["margin"][row] = margin
        self.columns["radius"][row] = eps if status is Status.CERTIFIED else 0.0


@dataclass
class Complete:
    """The method made ready for one network."""

    model: nn.Module
    screen: Engine
    native: Native
    attack: Pgd
    request: Request
    notes: Mapping[str, str]
    open: dict[int, np.ndarray] = field(default_factory=dict)  # seconds of each stage so far, by sample index
    batch_size: int = 32

    def __call__(
        self, x: Float[Tensor, "batch *shape"], predicted: Int[Tensor, " batch"], indices: Int[Tensor, " batch"]
    ) -> Columns:
        """The cheap stages for a batch; or, while some of its rows are known to need more, all the rest for the first.

        Rows that are left PENDING want to be asked again.
        """
        answers = _Answers.blank(x)
        waiting = [row for row, index in enumerate(indices.tolist()) if index in self.open]
        if waiting:
            self._finish(answers, waiting[0], x, predicted, int(indices[waiting[0]]))
        else:
            self._screened(answers, x, predicted, indices)
        return answers.with_seconds()

    def ask(self, eps: Epsilon) -> None:
        """Change the radius of all further questions."""
        self.request = replace(self.request, eps=eps)
        self.attack = Pgd(self.model, replace(self.attack.request, eps=eps))

    def _screened(self, answers: _Answers, x: Tensor, predicted: Tensor, indices: Tensor) -> None:
        columns, left = answers.columns, torch.arange(len(x), device=x.device)
        started = time.perf_counter()
        found = self.attack(x, predicted, indices)
        answers.spend(left, Stage.ATTACK, started)
        falsified = found["status"] == Status.FALSIFIED
        for row in np.flatnonzero(falsified).tolist():
            answers.decide(row, Stage.ATTACK, Status.FALSIFIED, 0.0, found["margin"][row])
        for name in ("distance", "counterexample"):
            columns[name][falsified] = found[name][falsified]
        left = left[torch.as_tensor(~falsified, device=x.device)]
        for stage in SCREENS:
            if not len(left):
                break
            started = time.perf_counter()
            least = self._margins(x[left], predicted[left], stage)
            answers.spend(left, stage, started)
            for row in (least > 0).nonzero().flatten().tolist():
                answers.decide(int(left[row]), stage, Status.CERTIFIED, self.request.eps.value, float(least[row]))
            columns["margin"][left.cpu().numpy()] = least.cpu().numpy()
            left = left[~(least > 0)]
        self.open.update({int(indices[row]): answers.seconds[row] for row in left.tolist()})

    def _margins(self, x: Tensor, predicted: Tensor, stage: Stage) -> Float[Tensor, " batch"]:
        """Least margin over the ball that a method proves, less the allowance."""
        specification, allowance = self._question(x, predicted)
        balls = Balls.around(x, self.request.eps.value, self.request.norm)
        return self.screen.ask(balls, specification, stage.title).bound.amin(1) - allowance

    def _question(self, x: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = self.model(x)
        allowance = careful_allowance(self.model, self.native.model, x, logits, self.request.eps.value)
        return margin_specification(predicted, logits.shape[1], torch.float64), allowance

    def _finish(self, answers: _Answers, row: int, x: Tensor, predicted: Tensor, index: int) -> None:
        columns, seconds = answers.columns, self.open.pop(index)
        answers.seconds[row] = seconds
        image, label, started = x[row : row + 1], predicted[row : row + 1], time.monotonic()
        left = float(self.request.options["time_limit"]) - float(seconds.sum())
        deadline = started + left
        specification, allowance = self._question(image, label)
        goal = float(allowance)
        bounds = self.native.bounds(Balls.around(image.double(), self.request.eps.value, self.request.norm))
        iterations, pause = int(self.request.options["iterations"]), started + ALPHA_SHARE * left
        proved = alpha.optimized(bounds, specification, iterations, pause).bound[0]
        answers.seconds[row, Stage.ALPHA_CROWN - 1] = time.monotonic() - started
        least = float(proved.amin()) - goal
        if least > 0:
            answers.decide(row, Stage.ALPHA_CROWN, Status.CERTIFIED, self.request.eps.value, least)
            return
        started = time.monotonic()
        end = Search(
            bounds, specification, proved, goal, deadline=deadline, broken=lambda z: self._broken(z, image, label)
        ).run()
        answers.seconds[row, Stage.BRANCH_AND_BOUND - 1] = time.monotonic() - started
        columns["domains"][row] = end.domains
        if end.point is not None:
            point = end.point.float()
            with torch.no_grad():
                margin = float(margins(self.model(point), label))
            answers.decide(row, Stage.BRANCH_AND_BOUND, Status.FALSIFIED, 0.0, margin)
            columns["distance"][row] = float(norms(point.double() - image.double(), self.request.norm))
            columns["counterexample"][row] = point[0].cpu().numpy()
            return
        ends = {Status.CERTIFIED: end.finished, Status.OUT_OF_MEMORY: end.full, Status.TIMEOUT: end.late}
        status = next((status for status, true in ends.items() if true), Status.NOT_CERTIFIED)
        answers.decide(row, Stage.BRANCH_AND_BOUND, status, self.request.eps.value, end.bound - goal)

    def _broken(self, points: Tensor, image: Tensor, label: Tensor) -> Tensor:
        """Images inside the ball, as float32 stores them, that the network gives another class."""
        rounded = points.float()
        inside = norms(rounded.double() - image.double(), self.request.norm) <= self.request.eps.value
        with torch.no_grad():
            return (margins(self.model(rounded), label.expand(len(points))) < 0) & inside


def _prepare(model: nn.Module, samples: Tensor, request: Request) -> Complete:
    """Build the graphs and try to break them on the samples.

    Raises:
        Unsupported: the native engine does not take the network.
        Contradiction: a point of the ball breaks a bound.
    """
    eps, norm = request.eps.value, request.norm
    name = "native" if request.engine == "auto" else request.engine
    screen, _ = build(model, samples, name, eps, norm=norm, method="crown")
    native = screen if isinstance(screen, Native) else Native(model, samples)
    withstand(native, samples, eps, norm=norm, method="crown")
    options = {key: request.options[key] for key in PGD.options}
    attack = Pgd(model, replace(request, options=options))
    notes = {"engine": screen.name, "arithmetic": ARITHMETIC}
    return Complete(model, screen, native, attack, request, notes)


COMPLETE = MethodInfo(
    name="complete",
    guarantee=Guarantee.DETERMINISTIC,
    norms=(Norm.LINF, Norm.L2, Norm.L1),
    claim="at eps: margins are positive on the ball, or a counterexample is stored",
    paper="Wang et al., arXiv 2103.06624 (beta-CROWN)",
    cost="as little as decides a sample: attack, IBP, CROWN, alpha-CROWN, branch and bound until the time limit",
    prepare=_prepare,
    columns=(
        Column("stage", "uint8", "", "which stage decided: " + "; ".join(f"{s.value} {s.title}" for s in Stage)),
        *(Column(stage.column, "float64", "seconds", f"time in the stage {stage.title}") for stage in Stage),
        Column(
            "domains", "int64", "", "parts of the ball that branch and bound bounded; halves it only tried do not count"
        ),
        *PGD.columns,
    ),
    options={"time_limit": 30.0, "iterations": 20, "steps": 30, "restarts": 2},
)
