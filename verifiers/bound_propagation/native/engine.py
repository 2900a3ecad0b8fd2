"""The engine ``native``: bounds from certkd's own graphs."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verifiers.bound_propagation.checks import check_forward
from verifiers.bound_propagation.engine import METHODS, Planes, Repeated, better, joined
from verifiers.bound_propagation.native.alpha import optimized
from verifiers.bound_propagation.native.bounds import Balls, Bounds, dual_reaches
from verifiers.bound_propagation.native.memory import Memory
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Norm
from verifiers.graph.graph import Graph
from verifiers.graph.program import capture
from verifiers.graph.rows import shape_size

#: Values that the intervals of one batch may hold.
BATCH = 2**23


class Native:
    """A network bounded by certkd's own engine.

    Args:
        model: in eval mode, from images in [0, 1] to logits.
        x: two or more sample images.
        dtype: in which everything is computed.
        intersect: whether tightened intervals are intersected with the plain ones. Without it bounds are CROWN's as
            published, and comparable to those of another engine.
        iterations: steps of alpha-CROWN's optimiser.
        graph: the network's graph where it is known already.

    Raises:
        Unsupported: the network cannot be captured, or an operator has no bounds here.
        Contradiction: the graph is not the network.
    """

    name = "native"

    def __init__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *shape"],
        *,
        dtype: torch.dtype = torch.float64,
        intersect: bool = True,
        iterations: int = 20,
        graph: Graph | None = None,
    ) -> None:
        self.model = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
        self.intersect, self.iterations, self.dtype = intersect, iterations, dtype
        self.graph = graph or capture(self.model, x[:1], dtype)
        self._reaches: dict[Norm, dict[int, Tensor]] = {}
        check_forward(self.model, self.graph, x[:2].to(dtype), "the native engine")
        entries = sum(shape_size(node.shape) for node in self.graph.nodes)
        self.batch_size = max(1, min(128, BATCH // max(1, entries)))

    def lower_bounds(
        self,
        x: Float[Tensor, "batch *shape"],
        eps: Float[Tensor, " batch"],
        specification: Float[Tensor, "batch rows classes"],
        *,
        norm: Norm,
        method: str,
    ) -> Float[Tensor, "batch rows"]:
        """Lower bounds of ``specification @ logits`` over each sample's ball within the image box."""
        return self.planes(x, eps, specification, norm=norm, method=method).bound

    def planes(
        self,
        x: Float[Tensor, "batch *shape"],
        eps: Float[Tensor, " batch"],
        specification: Float[Tensor, "batch rows classes"],
        *,
        norm: Norm,
        method: str,
    ) -> Planes:
        """As ``lower_bounds``, with the value at the centre and the steepness, each ``(batch, rows)``."""
        everything = torch.arange(len(x), device=x.device)
        return self._question(x, specification, norm, method, None)(everything, eps)

    def repeated(
        self,
        x: Float[Tensor, "batch *shape"],
        specification: Float[Tensor, "batch rows classes"],
        *,
        norm: Norm,
        method: str,
    ) -> Repeated:
        """As ``planes``, for chosen samples and at one radius after another; smaller balls are bounded faster."""
        return self._question(x, specification, norm, method, Memory(len(x)) if self.intersect else None)

    def bounds(self, x: Float[Tensor, "batch *shape"], eps: Float[Tensor, " batch"], norm: Norm) -> Bounds:
        """The graph over balls, not propagated yet."""
        return Bounds(self.graph, Balls(x, eps, norm), self.dual_reaches(norm), self.intersect)

    def _question(self, x: Tensor, specification: Tensor, norm: Norm, method: str, memory: Memory | None) -> Repeated:
        if method not in METHODS:
            raise Unsupported(f"native: no method {method!r}")
        x, specification = x.to(self.dtype), specification.to(self.dtype)

        def ask(rows: Tensor, eps: Tensor) -> Planes:
            if eps.shape != rows.shape:
                raise ValueError(f"one eps per sample, got {tuple(eps.shape)} for {len(rows)} samples")
            pairs = zip(rows.split(self.batch_size), eps.to(self.dtype).split(self.batch_size), strict=True)
            return joined([answer(*pair) for pair in pairs])

        def answer(rows: Tensor, eps: Tensor) -> Planes:
            bounds = self.bounds(x[rows], eps, norm)
            if memory:
                bounds.known = memory.known(rows, eps)
            planes = self._planes(bounds, specification[rows], method)
            if memory:
                memory.keep(rows, bounds)
            return planes

        return ask

    def _planes(self, bounds: Bounds, specification: Tensor, method: str) -> Planes:
        if method == "alpha-crown":
            return self._at_least_intervals(bounds, optimized(bounds, specification, self.iterations), specification)
        with torch.no_grad():
            bounds.propagate(refine=method == "crown")
            if method == "ibp" and not self.graph.affine[self.graph.output]:
                return bounds.by_intervals(specification)
            return self._at_least_intervals(bounds, bounds.by_rows(specification), specification)

    def _at_least_intervals(self, bounds: Bounds, planes: Planes, specification: Tensor) -> Planes:
        """The intervals at hand bound the rows as well, at no cost; in far-off balls they can be better."""
        return better(planes, bounds.by_intervals(specification)) if self.intersect else planes

    def dual_reaches(self, norm: Norm) -> dict[int, Tensor]:
        if norm not in self._reaches:
            with torch.no_grad():
                self._reaches[norm] = dual_reaches(self.graph, norm)
        return self._reaches[norm]
