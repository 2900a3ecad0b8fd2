"""The engine ``native``: bound networks by certkd's own graphs."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.checks import check_forward
from verifiers.bound_propagation.engine import (
    BOUND_METHODS,
    ITERATIONS,
    SDP_CROWN,
    Memory,
    Planes,
    better,
    check_rows,
    joined,
)
from verifiers.bound_propagation.native.alpha import optimized
from verifiers.bound_propagation.native.bounds import Bounds, dual_norms
from verifiers.bound_propagation.native.classes import FIRST, MANY, closest_first, least_margins, others
from verifiers.bound_propagation.native.memory import KnownIntervals
from verifiers.bound_propagation.native.sdp import cut_at_box, followed_ball, samples_at_once
from verifiers.bound_propagation.rounding import deviation
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification, some_margins
from verifiers.graph.graph import Graph
from verifiers.graph.program import Program
from verifiers.graph.rows import shape_size
from verifiers.graph.softmax_parts import with_softmax_in_parts

#: The most values in the intervals of one batch.
BATCH = 2**23


class Native:
    """Bound a network by certkd's own engine.

    Args:
        network: maps images in [0, 1] to logits, in eval mode; a module or a program.
        x: two or more sample images.
        dtype: the dtype of all computations.
        intersect: intersect tightened intervals with the plain ones. Without it bounds are CROWN's as published, and
            comparable to those of another engine.
        graph: the network's graph, if already known.
        arithmetic: the arithmetic of the network.

    Attributes:
        deployed: the network that bounds in float32 are about; None in real arithmetic.

    Raises:
        Unsupported: the network cannot be captured, or an operator has no bounds here.
        Contradiction: the graph's logits are not the network's.
    """

    name = "native"

    def __init__(
        self,
        network: nn.Module | Program,
        x: Float[Tensor, "batch *shape"],
        *,
        dtype: torch.dtype = torch.float64,
        intersect: bool = True,
        graph: Graph | None = None,
        arithmetic: Arithmetic = Arithmetic.REAL,
    ) -> None:
        program = Program.of(network)
        self.intersect, self.dtype, self.arithmetic = intersect, dtype, arithmetic
        found = program.capture(x)
        if dtype == torch.float64:
            self.model, self.graph = found.exact, graph or program.graph(x)
        else:
            self.model, self.graph = found.twin(dtype), graph or found.lowered(dtype)
        self.graph = with_softmax_in_parts(self.graph)
        self.deployed = found.module if arithmetic.deployed else None
        self._dual_norms: dict[Norm, dict[int, Tensor]] = {}
        check_forward(self.model, self.graph, x[:2].to(dtype), "the native engine")
        entries = sum(shape_size(node.shape) for node in self.graph.nodes)
        self.batch_size = max(1, min(128, BATCH // max(1, entries)))

    def ask(
        self,
        balls: Balls,
        rows: Float[Tensor, "batch rows classes"],
        method: str,
        *,
        iterations: int = ITERATIONS,
        memory: Memory | None = None,
    ) -> Planes:
        """Bound rows as ``Engine.ask``; with a memory, smaller balls are bounded faster."""
        check_rows(balls, rows)
        return self._asked(balls, rows.to(self.dtype), method, iterations, memory)

    def margins(
        self,
        balls: Balls,
        predicted: Int[Tensor, " batch"],
        method: str,
        *,
        iterations: int = ITERATIONS,
        memory: Memory | None = None,
    ) -> Planes:
        """Bound the margins of the predicted classes, as ``ask`` bounds the rows of ``margin_specification``.

        Of many classes, the least bound of each sample is as good; others may be looser.
        """
        if self.graph.classes > MANY:
            return self._asked(balls, predicted, method, iterations, memory)
        rows = margin_specification(predicted, self.graph.classes, self.dtype)
        return self.ask(balls, rows, method, iterations=iterations, memory=memory)

    def _asked(self, balls: Balls, rows: Tensor, method: str, iterations: int, memory: Memory | None) -> Planes:
        """Bound rows, or the margins of classes, part by part."""
        if method not in (*BOUND_METHODS, SDP_CROWN):
            raise Unsupported(f"native: no method {method!r}")
        if method == SDP_CROWN and balls.norm is not Norm.L2:
            raise Unsupported(f"{method} follows l2 balls, and these are {balls.norm} balls; use crown or alpha-crown")
        known, samples = None, torch.arange(len(balls), device=balls.x.device)
        if memory and self.intersect:
            known = memory.kept.setdefault(self, KnownIntervals(memory.samples))
            samples = samples if memory.chosen is None else memory.chosen
        size = self.batch_size
        if method == SDP_CROWN:
            size = min(size, samples_at_once(self.graph, FIRST if rows.ndim == 1 else rows.shape[1]))
        balls, found = balls.to(self.dtype), []
        for part, asked, chosen in zip(balls.split(size), rows.split(size), samples.split(size), strict=True):
            bounds = self.bounds(part)
            if known:
                bounds.known = known.known(chosen, part.eps)
            bounded = self._margins if rows.ndim == 1 else self._planes
            found.append(bounded(bounds, asked, method, iterations))
            if known:
                known.keep(chosen, bounds)
        return joined(found)

    def bounds(self, balls: Balls) -> Bounds:
        """Prepare bounds over balls; nothing is propagated yet."""
        return Bounds(
            self.graph,
            balls,
            dual_norms=self.dual_norms(balls.norm),
            intersect=self.intersect,
            arithmetic=self.arithmetic,
        )

    def deviation(
        self, balls: Balls, rows: Float[Tensor, "batch rows classes"], *, refine: bool = True
    ) -> Float[Tensor, "batch rows"]:
        """Bound |rows @ (deployed logits - exact logits)| over the balls, with ``refine`` from CROWN's intervals.

        It is 0 in real arithmetic.

        Raises:
            Unsupported: an operator's rounding cannot be followed; the message names it.
        """
        if self.arithmetic is Arithmetic.REAL:
            return rows.new_zeros(rows.shape[:2])
        found, balls, rows = [], balls.to(self.dtype), rows.to(self.dtype)
        for part, asked in zip(balls.split(self.batch_size), rows.split(self.batch_size), strict=True):
            bounds = self.bounds(part)
            with torch.no_grad():
                bounds.propagate(refine=refine)
            found.append(deviation(bounds, asked))
        return torch.cat(found)

    def _planes(self, bounds: Bounds, specification: Tensor, method: str, iterations: int) -> Planes:
        if method == "alpha-crown":
            return self._at_least_intervals(bounds, optimized(bounds, specification, iterations), specification)
        with torch.no_grad():
            bounds.propagate(refine=method in ("crown", SDP_CROWN))
            if method == "ibp" and not self.graph.affine[self.graph.output]:
                return bounds.by_intervals(specification)
            planes = self._at_least_intervals(bounds, bounds.by_rows(specification), specification)
        if method != SDP_CROWN:
            return planes
        cut_at_box(bounds)
        return better(planes, followed_ball(bounds, specification, iterations))

    def _margins(self, bounds: Bounds, predicted: Tensor, method: str, iterations: int) -> Planes:
        """Bound the margins of many classes, the closest rivals first."""
        with torch.no_grad():
            bounds.propagate(refine=method != "ibp")
            planes = least_margins(bounds, predicted, push=method != "ibp" or self.graph.affine[self.graph.output])

        def improved(samples: Tensor, rivals: Tensor) -> Planes:
            chosen = samples.unique_consecutive()
            rows = some_margins(predicted[samples], rivals, self.graph.classes, self.dtype)
            part = self.bounds(bounds.balls.take(chosen))
            found = self._planes(part, rows.unflatten(0, (len(chosen), -1)), method, iterations)
            return found.reshape((len(samples),))

        tighter = method in ("alpha-crown", SDP_CROWN)
        return others(closest_first(planes, predicted, improved) if tighter else planes, predicted)

    def _at_least_intervals(self, bounds: Bounds, planes: Planes, specification: Tensor) -> Planes:
        """Improve planes by interval bounds, which are better on some large balls."""
        return better(planes, bounds.by_intervals(specification)) if self.intersect else planes

    def dual_norms(self, norm: Norm) -> dict[int, Tensor]:
        """Compute the dual norms of the rows of affine nodes, once per norm."""
        if norm not in self._dual_norms:
            with torch.no_grad():
                self._dual_norms[norm] = dual_norms(self.graph, norm)
        return self._dual_norms[norm]
