"""The bound-propagation methods: margin bounds over the ball, and the largest radius they prove."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.cross_check import CrossCheck
from verifiers.bound_propagation.engine import ITERATIONS, Engine, Memory, Planes
from verifiers.bound_propagation.engines import build
from verifiers.bound_propagation.radius import Evaluation, Search
from verifiers.bound_propagation.rounding import ARITHMETIC, careful_allowance
from verifiers.core.columns import Columns
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Norm
from verifiers.core.status import Guarantee
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification, margins
from verifiers.methods.base import MethodInfo, Request
from verifiers.methods.search import columns_of, search_as_asked, seconds_for
from verifiers.runtime.oom import MEMORY_ERRORS, fits, out_of_memory


@dataclass
class _Certifier:
    model: nn.Module
    engine: Engine
    method: str
    request: Request
    remarks: dict[str, str]
    cross_check: CrossCheck | None = None
    checked: set[int] = field(default_factory=set, init=False)

    @property
    def batch_size(self) -> int:
        return self.engine.batch_size

    @property
    def notes(self) -> dict[str, str]:
        return {"engine": self.engine.name, "arithmetic": ARITHMETIC, **self.remarks}

    def __call__(
        self, x: Float[Tensor, "batch *shape"], predicted: Int[Tensor, " batch"], indices: Int[Tensor, " batch"]
    ) -> Columns:
        with torch.no_grad():
            logits = self.model(x)
        allowance = careful_allowance(self.model, self.engine.model, x, logits, self.request.eps.value)
        self._hold_against_the_other_engine(x, predicted, indices, allowance)
        specification = margin_specification(predicted, logits.shape[1], torch.float64)
        clean = margins(logits, predicted).double()
        return columns_of(self._search(x, specification, allowance, clean), self.request.eps.value)

    def _search(self, x: Tensor, specification: Tensor, allowance: Tensor, clean: Tensor) -> Search:
        """The method's own search; alpha-CROWN goes on from the radius that CROWN proves at a fraction of the cost."""
        search, started = partial(search_as_asked, clean=clean, x=x, request=self.request), time.perf_counter()
        if self.method != "alpha-crown":
            return search(self._bound(self.method, x, specification, allowance))
        first = search(self._bound("crown", x, specification, allowance))
        spent, begun = time.perf_counter() - started, first._replace(finished=torch.zeros_like(first.finished))
        if spent > seconds_for(x, self.request):
            return begun
        try:
            return search(self._bound(self.method, x, specification, allowance), known=first.radius, spent=spent)
        except MEMORY_ERRORS as error:
            if out_of_memory(error) and len(x) == 1 and bool(first.radius > 0):
                return begun
            raise

    def _bound(
        self, method: str, x: Tensor, specification: Tensor, allowance: Tensor
    ) -> Callable[[Tensor, Tensor], Evaluation]:
        memory, iterations = Memory(len(x)), int(self.request.options.get("iterations", ITERATIONS))

        def bound(rows: Tensor, eps: Tensor) -> Evaluation:
            balls, given = Balls(x[rows], eps, self.request.norm), memory.of(rows)
            planes = self.engine.ask(balls, specification[rows], method, iterations=iterations, memory=given)
            return _evaluation(planes, allowance[rows], eps)

        return bound

    def _hold_against_the_other_engine(self, x: Tensor, predicted: Tensor, indices: Tensor, allowance: Tensor) -> None:
        """Samples that were not checked yet, until as many are as were asked for; those that do not fit are said."""
        if self.cross_check is None:
            return
        request, check = self.request, self.cross_check
        for i, index in enumerate(indices.tolist()):
            if len(self.checked) >= request.cross_check or index in self.checked:
                continue
            one = slice(i, i + 1)
            ball = Balls.around(x[one], request.eps.value, request.norm)
            if fits(partial(check, ball, predicted[one], allowance[one], self.method)):
                self.checked.add(index)
            else:
                self.remarks["cross_check"] = "samples that do not fit into memory were not checked"


def _evaluation(planes: Planes, allowance: Float[Tensor, " batch"], eps: Float[Tensor, " batch"]) -> Evaluation:
    """The margin's bound less the allowance, and the radius at which the lowest plane reaches the allowance."""
    reach = ((planes.value - allowance[:, None]) / planes.steepness).amin(1)
    return Evaluation(planes.bound.amin(1) - allowance, torch.minimum(reach, eps))


def _prepare(method: str, model: nn.Module, samples: Tensor, request: Request) -> _Certifier:
    """Build the graph and try to break it on the samples, at the requested eps and at a larger one.

    Raises:
        Unsupported: no engine takes the network, with the layer that each refuses.
        Contradiction: a point of the ball breaks a bound.
    """
    engine, reasons = build(model, samples, request.engine, request.eps.value, norm=request.norm, method=method)
    remarks = {"passed_over": "; ".join(reasons)} if reasons else {}
    check = None
    if request.cross_check:
        check, why = _checked_by_the_other(model, samples, engine, request, method)
        if why:  # the run goes on with the one engine that takes the network
            remarks["cross_check"] = f"nothing to check against: {why}"
    return _Certifier(model, engine, method, request, remarks, check)


def _checked_by_the_other(
    model: nn.Module, samples: Tensor, engine: Engine, request: Request, method: str
) -> tuple[CrossCheck | None, str]:
    """The check by the other engine, or why there is none."""
    found: list[CrossCheck] = []

    def make() -> None:
        check = CrossCheck(model, samples, engine)
        check.try_out(Balls.around(samples[:1], request.eps.value, request.norm), method)
        found.append(check)

    try:
        return (found[0], "") if fits(make) else (None, "a sample does not fit into memory with the other engine")
    except Unsupported as error:
        return None, str(error)


#: A search ends when the bracket around the largest certified radius is this share of it, or after so many seconds a
#: sample; the radius is then the largest proved by that time.
_OPTIONS: dict[str, int | float] = {"tolerance": 0.005, "time_limit": 3600.0}


IBP = MethodInfo(
    name="ibp",
    guarantee=Guarantee.DETERMINISTIC,
    norms=(Norm.LINF, Norm.L2, Norm.L1),
    claim="interval bounds of the margins are positive on the ball",
    paper="Gowal et al., arXiv 1810.12715",
    cost="2 forward passes per radius tried",
    prepare=partial(_prepare, "ibp"),
    options=_OPTIONS,
)


CROWN_IBP = replace(
    IBP,
    name="crown-ibp",
    claim="linear relaxation bounds of the margins, over interval bounds of the layers, are positive on the ball",
    paper="Zhang et al., arXiv 1906.06316",
    cost="one backward pass per class per radius tried",
    prepare=partial(_prepare, "crown-ibp"),
)


CROWN = replace(
    IBP,
    name="crown",
    claim="linear relaxation bounds of the margins are positive on the ball",
    paper="Zhang et al., arXiv 1811.00866; Xu et al., arXiv 2002.12920",
    cost="one backward pass per unstable neuron per radius tried",
    prepare=partial(_prepare, "crown"),
)


ALPHA_CROWN = replace(
    IBP,
    name="alpha-crown",
    claim="linear relaxation bounds with optimised slopes are positive on the ball",
    paper="Xu et al., arXiv 2011.13824",
    cost="CROWN, and 2 to 3 times its cost per iteration and radius tried",
    prepare=partial(_prepare, "alpha-crown"),
    options={**_OPTIONS, "iterations": 20},
)
