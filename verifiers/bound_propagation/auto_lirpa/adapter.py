"""Use auto-LiRPA as an engine: float64, one graph per network, one eps per sample."""

import logging
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verifiers.bound_propagation.auto_lirpa import compat, guard
from verifiers.bound_propagation.checks import check_forward
from verifiers.bound_propagation.engine import ITERATIONS, Memory, Planes, check_rows
from verifiers.core.errors import Unsupported, one_line
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls, per_sample
from verifiers.graph.integers import refuse_codes
from verifiers.graph.program import Program
from verifiers.runtime.oom import pass_on_memory

LIRPA_NAMES = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN", "alpha-crown": "CROWN-Optimized"}
#: Operators whose relaxation alpha-CROWN optimises here. Max pooling keeps CROWN's: in 0.3 its weights are float32 and
#: sum only nearly to 1, and networks with another layer after it fail.
OPTIMIZED = ("BoundRelu", "BoundTanh", "BoundSigmoid")
#: Samples at once, for convolutional networks in CROWN and for others in alpha-CROWN, whose steps keep all relaxations.
#: alpha-CROWN takes images one by one: slopes of the union of their unstable neurons cost more than they save.
CONVOLUTIONAL_BATCH, ALPHA_BATCH = 4, 32
#: About so many classes show whether a batch mixes its samples; all of 1,000 would cost minutes.
CLASSES_COMPARED = 10
DUAL = {Norm.L2: 2.0, Norm.L1: float("inf")}
#: The table of relaxations of tanh and sigmoid ends here; beyond it they are wrong.
SIGMOID_LIMIT = 500.0
#: The errors of auto-LiRPA on networks that it cannot handle.
FAILURES = (
    NotImplementedError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)


class AutoLirpa:
    """Bound a network by auto-LiRPA.

    The graph is traced from the program in float64, never from the network's own code, whose branches tracing would
    fix.

    Args:
        network: maps images in [0, 1] to logits, in eval mode; a module or a program.
        x: two or more sample images.

    Raises:
        Unsupported: auto-LiRPA is missing, or a layer or operator is not on the allow-list.
        Contradiction: the logits of auto-LiRPA's graph are not the network's.
    """

    name = "auto-lirpa"

    def __init__(self, network: nn.Module | Program, x: Float[Tensor, "batch *shape"]) -> None:
        try:
            self._lirpa = compat.load()
        except compat.AutoLirpaMissing as missing:
            raise Unsupported(str(missing)) from None
        program = Program.of(network)
        found = program.capture(x)
        guard.check_modules(program.given)
        refuse_codes(found.single, "auto-LiRPA")
        self.model, self._network = found.exact, found.exact_single
        x = x[:2].double()
        self._graph = self._build(x)
        self._classes: int = self._graph.final_shape[1]
        self._samples, self._sample = torch.cat([x, 1 - x])[:2], x[:1]
        self._alpha_graph: Any = None  # built when it is first needed
        self._alpha_batch = 0
        self._rows: dict[tuple[str, Norm], Tensor] = {}
        self._first_affine = [node.name for node in self._graph._modules.values() if _is_first_affine(node)]
        guard.check_operators(iter(self._graph._modules.items()))
        guard.check_size(self._graph._modules.values())
        check_forward(self.model, self._graph, x, "auto-LiRPA")
        convolutional = any(isinstance(module, nn.Conv2d) for module in program.given.modules())
        # Intermediate bounds of conv nets are computed for the union of unstable neurons over the batch: keep it small.
        self.batch_size = CONVOLUTIONAL_BATCH if convolutional else 128
        self._limit_batch()

    def _build(self, x: Tensor, **options: Any) -> Any:
        try:
            with quiet(torch.float64):
                graph = self._lirpa.BoundedModule(self._network, x[:1], bound_opts={"conv_mode": "matrix", **options})
                graph(self._ball(x[:1], torch.zeros(1, dtype=torch.float64, device=x.device), Norm.LINF))
                return graph.requires_grad_(False)
        except FAILURES as error:
            pass_on_memory(error)
            raise Unsupported(f"auto-LiRPA cannot build the graph: {_told(error)}") from error

    def _limit_batch(self) -> None:
        """Set the batch size to 1 if a batch fails or mixes its samples.

        Constants with a batch dimension make it fail; a reshape to the traced batch size mixes samples.
        """
        x = self._samples
        try:
            same = _agree(self._graph(x), self.model(x)) and all(
                self._batch_is_samples(m) for m in list(LIRPA_NAMES)[:-1]
            )
        except FAILURES as error:
            pass_on_memory(error)
            same = False
        if not same:
            self.batch_size = 1
            self._graph(x[:1])  # the batch that failed left its shapes in the nodes

    def _batch_is_samples(self, method: str) -> bool:
        """Return whether two samples get the same bounds together and one by one."""
        x, run = self._samples, self._optimized if method == "alpha-crown" else partial(self._run, method=method)
        eye = torch.eye(self._classes, dtype=x.dtype, device=x.device)
        eye = eye[:: max(1, self._classes // CLASSES_COMPARED)].expand(2, -1, -1)
        eps = torch.tensor([1e-3, 3e-2], dtype=x.dtype, device=x.device)
        alone = [run(x[i : i + 1], eps[i : i + 1], eye[i : i + 1], Norm.LINF) for i in range(2)]
        try:
            return _agree(run(x, eps, eye, Norm.LINF), torch.cat(alone))
        except FAILURES as error:
            pass_on_memory(error)
            return False

    def ask(
        self,
        balls: Balls,
        rows: Float[Tensor, "batch rows classes"],
        method: str,
        *,
        iterations: int = ITERATIONS,
        memory: Memory | None = None,
    ) -> Planes:
        """Bound rows as ``Engine.ask``; auto-LiRPA gives neither value nor steepness, and ignores the memory.

        The first step of alpha-CROWN evaluates CROWN's own slopes.

        Raises:
            ValueError: iterations is below 1.
            Unsupported: auto-LiRPA has no such method, or fails on an operator in it.
        """
        if method not in LIRPA_NAMES:
            raise Unsupported(f"auto-LiRPA: no method {method!r}")
        if iterations < 1:
            raise ValueError(f"alpha-CROWN takes at least one step, not {iterations}")
        check_rows(balls, rows)
        bound = self._bounds(balls.to(torch.float64), rows.double(), method, iterations)
        untold = torch.full_like(bound, float("nan"))
        return Planes(bound, untold, untold, torch.zeros_like(bound))

    def _bounds(self, balls: Balls, rows: Tensor, method: str, iterations: int) -> Float[Tensor, "batch rows"]:
        try:
            if method == "alpha-crown":
                size, run = self._prepare_alpha(iterations), self._optimized
            else:
                size, run = self.batch_size, partial(self._run, method=method)
            bounds = [
                run(part.x, part.eps, asked, balls.norm)
                for part, asked in zip(balls.split(size), rows.split(size), strict=True)
            ]
        except FAILURES as error:
            pass_on_memory(error)
            if method == "alpha-crown" and self._alpha_batch > 1:  # some failures depend on the samples of a batch
                self._alpha_batch = 1
                return self._bounds(balls, rows, method, iterations)
            where = guard.name_unoptimizable(iter(self._graph._modules.items())) if method == "alpha-crown" else ""
            raise Unsupported(f"auto-LiRPA fails in {LIRPA_NAMES[method]}{where}: {_told(error)}") from error
        return torch.cat(bounds)

    def _run(self, x: Tensor, eps: Tensor, specification: Tensor, norm: Norm, method: str) -> Tensor:
        with torch.no_grad():
            lower = self._compute(self._graph, x, eps, specification, norm, method)
        return lower if method == "ibp" else self._trusted(lower)

    def _compute(
        self, graph: Any, x: Tensor, eps: Tensor, specification: Tensor, norm: Norm, method: str
    ) -> Float[Tensor, "batch rows"]:
        known = self._affine_bounds(x, eps, norm)
        with quiet(torch.float64):
            lower, _ = graph.compute_bounds(
                x=(self._ball(x, eps, norm),),
                C=specification.contiguous(),
                method=LIRPA_NAMES[method],
                bound_upper=False,
                **{compat.bounds_argument(graph): known},
            )
        return lower.detach()

    def _prepare_alpha(self, iterations: int) -> int:
        """Build alpha-CROWN's own graph, whose state the other methods never see; return its batch size.

        Slopes are stored for unstable neurons only, but for every row: in 0.3, slopes for unstable rows only fail when
        the set of these rows changes between two steps, and slopes for all neurons when 90% of them are unstable.
        """
        if self._alpha_graph is None:
            self._alpha_graph = self._build(self._sample, sparse_spec_alpha=False, minimum_sparsity=1.0)
            nodes = self._alpha_graph.optimizable_activations
            self._alpha_graph.optimizable_activations = [n for n in nodes if type(n).__name__ in OPTIMIZED]
        compat.set_iterations(self._alpha_graph, iterations)
        if not self._alpha_batch:
            together = self.batch_size > CONVOLUTIONAL_BATCH and self._batch_is_samples("alpha-crown")
            self._alpha_batch = min(self.batch_size, ALPHA_BATCH) if together else 1
            self._alpha_graph(self._sample)  # a batch that failed left its shapes in the nodes
        return self._alpha_batch

    def _optimized(self, x: Tensor, eps: Tensor, specification: Tensor, norm: Norm) -> Float[Tensor, "batch rows"]:
        """Return the better of CROWN's bound and the best bound of all steps.

        CROWN's bounds prove that the inputs of tanh and sigmoid stay where their relaxations are right. Looser
        intervals on the way to an optimum are cut off there, which removes no point of the ball.
        """
        crown = self._run(x, eps, specification, norm, "crown")
        if not any(node.perturbed for node in self._graph._modules.values() if type(node).__name__ in OPTIMIZED):
            return crown
        try:
            with torch.enable_grad():
                lower = self._compute(self._alpha_graph, x, eps, specification, norm, "alpha-crown")
        finally:
            for node in self._alpha_graph.optimizable_activations:
                node.opt_end()
                node.alpha = OrderedDict()
        return torch.where(crown.isfinite() & lower.isfinite() & (lower > crown), lower, crown)

    def _trusted(self, lower: Float[Tensor, "batch rows"]) -> Float[Tensor, "batch rows"]:
        """Remove the bound (-inf) of samples whose input of a tanh or sigmoid may leave the table of relaxations."""
        for node in self._graph._modules.values():
            if type(node).__name__ not in ("BoundTanh", "BoundSigmoid") or not node.perturbed:
                continue
            entry = node.inputs[0]
            inside = (entry.lower >= -SIGMOID_LIMIT) & (entry.upper <= SIGMOID_LIMIT)
            lower = lower.where(inside.flatten(1).all(1)[:, None], -float("inf"))
        return lower

    def _affine_bounds(self, x: Tensor, eps: Tensor, norm: Norm) -> dict[str, list[Tensor]] | None:
        """Bound the layers that are affine in the input exactly, by the dual norm; for l2 and l1 the box is looser."""
        if norm is Norm.LINF:
            return None
        known: dict[str, list[Tensor]] = {}
        for name in self._first_affine:
            value = self._graph(x, final_node_name=name).detach()
            half_width = per_sample(eps, value) * self._row_norms(name, norm)
            known[name] = [value - half_width, value + half_width]
        return known

    def _row_norms(self, name: str, norm: Norm, rows: int = 256) -> Float[Tensor, "1 *shape"]:
        """Compute once the dual norm of each row of the linear part of a node that is affine in the input."""
        if (name, norm) not in self._rows:
            origin = torch.zeros_like(self._sample)
            shape = self._graph(origin, final_node_name=name).shape
            found = []
            for chunk in torch.arange(shape.numel(), device=origin.device).split(rows if self.batch_size > 1 else 1):
                with torch.enable_grad():
                    points = origin.expand(len(chunk), *origin.shape[1:]).clone().requires_grad_(True)
                    output = self._graph(points, final_node_name=name).flatten(1).gather(1, chunk[:, None])
                    (gradient,) = torch.autograd.grad(output.sum(), points)
                found.append(torch.linalg.vector_norm(gradient.flatten(1), DUAL[norm], dim=1))
            self._rows[name, norm] = torch.cat(found).reshape(shape)
        return self._rows[name, norm]

    def _ball(self, x: Tensor, eps: Tensor, norm: Norm) -> Tensor:
        return self._lirpa.BoundedTensor(x, _perturbation(self._lirpa, x, eps, norm))


def _perturbation(lirpa: Any, x: Tensor, eps: Tensor, norm: Norm) -> Any:
    """Build the ball around each sample, intersected with the image box.

    auto-LiRPA handles an eps per sample only as the two corners of a box. For l2 and l1 its interval propagation reads
    [x, x] as a box without width if the first layer is not linear, which is unsound. Every ball is therefore given as
    its bounding box, whose propagation is sound for all norms. The linear bounds are concretised here with the dual
    norm of the true ball.
    """
    radius = per_sample(eps, x)
    low, high = (x - radius).clamp_min(0.0), (x + radius).clamp_max(1.0)
    box = lirpa.PerturbationLpNorm(norm=float("inf"), x_L=torch.minimum(low, x), x_U=torch.maximum(high, x))
    if norm is Norm.LINF:
        return box
    by_box = box.concretize_matrix

    def concretize_matrix(center: Tensor, coefficients: Any, sign: int, *rest: Any) -> Tensor:
        bound = by_box(center, coefficients, sign, *rest)
        if not isinstance(coefficients, Tensor):
            return bound
        flat = coefficients.reshape(coefficients.shape[0], coefficients.shape[1], -1)
        middle = flat.matmul(x.reshape(len(x), -1, 1)).squeeze(-1)
        half_width = torch.linalg.vector_norm(flat, DUAL[norm], dim=-1) * eps[:, None]
        by_ball = (middle + sign * half_width).reshape(bound.shape)
        return torch.maximum(bound, by_ball) if sign < 0 else torch.minimum(bound, by_ball)

    box.concretize_matrix = concretize_matrix
    return box


def _is_first_affine(node: nn.Module) -> bool:
    """Return whether a node is a linear or convolution operator with only affine input-dependent ancestors."""
    return type(node).__name__ in ("BoundConv", "BoundLinear") and _affine_in_input(node)


def _affine_in_input(node: nn.Module) -> bool:
    if not node.perturbed or type(node).__name__ == "BoundInput":
        return True
    affine = {"BoundConv", "BoundLinear", "BoundBatchNormalization", "BoundAdd", "BoundSub", "BoundFlatten"}
    affine |= {"BoundReshape", "BoundTranspose", "BoundUnsqueeze", "BoundSqueeze", "BoundIdentity"}
    if sum(bool(parent.perturbed) for parent in node.inputs) == 1:  # type: ignore[union-attr]
        affine |= {"BoundMul", "BoundDiv"}  # scaling by constants; the guard lets nothing divide by the input
    return type(node).__name__ in affine and all(_affine_in_input(parent) for parent in node.inputs)  # type: ignore[union-attr]


def without_dropout(model: nn.Module) -> nn.Module:
    """Remove dropout in place: it is the identity in eval mode, but auto-LiRPA would switch to train mode for it."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.modules.dropout._DropoutNd) and path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Identity())
    return model


def _agree(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def _told(error: BaseException) -> str:
    message = one_line(error)
    if not message and (frames := traceback.extract_tb(error.__traceback__)):
        message = f"{frames[-1].line} ({Path(frames[-1].filename).name})"
    return f"{type(error).__name__}: {message}"


@contextmanager
def quiet(dtype: torch.dtype) -> Iterator[None]:
    """Set the default dtype, which auto-LiRPA uses for some tensors, and silence its warnings and logs."""
    before, logger = torch.get_default_dtype(), logging.getLogger("auto_LiRPA.utils")
    torch.set_default_dtype(dtype)
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)
        logger.disabled = False
