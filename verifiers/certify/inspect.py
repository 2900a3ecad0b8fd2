"""Inspect a network before certifying it: supported engines and methods, reasons for rejection, cost of a sample."""

import time
from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verifiers.bound_propagation import BOUND_METHODS, ENGINES, ITERATIONS, Engine, Native, block_of, engine_of
from verifiers.core.errors import Contradiction, Unsupported
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification
from verifiers.graph.graph import Graph
from verifiers.graph.program import Program
from verifiers.graph.rows import shape_size
from verifiers.lipschitz.global_bounds import check_constants
from verifiers.lipschitz.layers import written_out
from verifiers.runtime.oom import fits

NO_MEMORY = "one sample does not fit into memory"
NOT_TRIED = "not tried on a network of this size"
#: Methods are tried one by one up to this many values in all layers together; a CIFAR ResNet-2B has 11,000.
LARGEST_TRIED = 20_000
#: Rows of a pilot block, and the number of nodes with one.
PILOT_ROWS, PILOTS = 16, 6
#: Copies of a block's widest coefficients in memory at once.
COPIES = 6
#: Cost of a step of alpha-CROWN, with its gradient, in multiples of a CROWN bound.
STEP = 3.0


@dataclass(frozen=True)
class Cost:
    """The cost of one evaluation of one sample by the native engine; a radius search needs about five.

    Attributes:
        method: ibp, crown-ibp, crown or alpha-crown.
        rows: linear functions pushed back through the network.
        seconds: measured for ibp, estimated from pilot rows for the others, from above for crown and alpha-crown.
        memory: estimated bytes.
    """

    method: str
    rows: int
    seconds: float
    memory: int


@dataclass(frozen=True)
class Preflight:
    """The facts about a network before certification.

    Attributes:
        layers: number of modules without children, by type.
        parameters: number of weights.
        engines: per engine, the reason why it rejects the network, or None.
        refused: per engine that supports the network, the methods that it lacks for it or that were not tried, with
            the reason.
        operators: number of operators of the native engine's graph, by name; empty if it rejects the network.
        costs: costs of the native engine; empty if it rejects the network.
        lipschitz: for global constants and constants on balls, the reason why there are none, or None; empty if the
            native engine rejects the network.
    """

    layers: dict[str, int]
    parameters: int
    engines: dict[str, str | None]
    refused: dict[str, dict[str, str]]
    operators: dict[str, int]
    costs: tuple[Cost, ...]
    lipschitz: dict[str, str | None]


def preflight(model: nn.Module, x: Float[Tensor, "2 *shape"], eps: float, *, norm: Norm = Norm.LINF) -> Preflight:
    """Inspect a network without certifying anything.

    Args:
        model: maps images in [0, 1] to logits, in eval mode.
        x: two sample images.
        eps: the radius of the cost estimates; larger balls leave more neurons open.
    """
    layers = Counter(m._get_name() for m in model.modules() if next(m.children(), None) is None)
    reasons, built = _engines(model, x)
    native = next((engine for engine in built.values() if isinstance(engine, Native)), None)
    small = _values(model, x[:1]) <= LARGEST_TRIED
    measured: list[tuple[Cost, ...]] = []
    if native is not None and not fits(lambda: measured.append(costs(native, x[:1], eps, norm))):
        reasons[native.name] = NO_MEMORY
    return Preflight(
        layers=dict(layers.most_common()),
        parameters=sum(p.numel() for p in model.parameters()),
        engines=reasons,
        refused={name: _refused(engine, x[:1], eps, norm, small) for name, engine in built.items()},
        operators=dict(Counter(n.kind for n in native.graph.nodes[1:]).most_common()) if native else {},
        costs=measured[0] if measured else (),
        lipschitz=_lipschitz(native.graph) if native else {},
    )


def _values(model: nn.Module, x: Float[Tensor, "1 *shape"]) -> int:
    """Count the values that the layers of a network compute for one image."""
    counts: list[int] = []

    def count(module: nn.Module, given: object, output: object) -> None:
        if isinstance(output, Tensor):
            counts.append(output.numel())

    layers = [module for module in model.modules() if next(module.children(), None) is None]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def _lipschitz(graph: Graph) -> dict[str, str | None]:
    reasons: dict[str, str | None] = {}
    for where, look in (("everywhere (l2)", check_constants), ("on balls", written_out)):
        try:
            look(graph)
            reasons[where] = None
        except Unsupported as error:
            reasons[where] = str(error)
    return reasons


def _engines(model: nn.Module, x: Tensor) -> tuple[dict[str, str | None], dict[str, Engine]]:
    """Build the engines; return each one's reason for rejecting the network, or None, and those that support it."""
    reasons: dict[str, str | None] = {}
    built: dict[str, Engine] = {}
    program = Program.of(model)
    for name in ENGINES:

        def make(name: str = name) -> None:
            built[name] = engine_of(name, program, x)

        try:
            reasons[name] = None if fits(make) else NO_MEMORY
        except (Unsupported, Contradiction) as error:
            reasons[name] = str(error)
    return reasons, built


def _refused(engine: Engine, x: Float[Tensor, "1 *shape"], eps: float, norm: Norm, small: bool) -> dict[str, str]:
    """Find the methods that an engine lacks; the native engine has all for any network that it captures."""
    refused: dict[str, str] = {}
    if isinstance(engine, Native):
        return refused
    if not small:
        return dict.fromkeys(BOUND_METHODS, NOT_TRIED)
    ball = Balls.around(x.double(), eps, norm)
    with torch.no_grad():
        classes = engine.model(ball.x).shape[1]
    row = margin_specification(ball.eps.long() * 0, classes, torch.float64)[:, :1]
    for method in BOUND_METHODS:
        try:
            ask = partial(engine.ask, ball, row, method, iterations=1)
            if not fits(ask):
                refused[method] = NO_MEMORY
        except Unsupported as error:
            refused[method] = str(error)
    return refused


def costs(native: Native, x: Float[Tensor, "1 *shape"], eps: float, norm: Norm) -> tuple[Cost, ...]:
    """Estimate the costs of one evaluation of one sample at eps."""
    ball = Balls.around(x, eps, norm).to(native.dtype)
    with torch.no_grad():
        predicted = native.model(ball.x).argmax(1)
        classes = native.graph.classes
        specification = margin_specification(predicted, classes, native.dtype)
        rows, seconds = _crown(native, ball)
        ibp = _timed(native, ball, specification, "ibp")
        pilot = specification[:, :PILOT_ROWS]
        with_pilot = _timed(native, ball, pilot, "crown-ibp")
        crown_ibp = ibp + max(0.0, with_pilot - ibp) * (classes - 1) / pilot.shape[1]
    entries = sum(shape_size(node.shape) for node in native.graph.nodes)
    widest = max(shape_size(node.shape) for node in native.graph.nodes)
    size = torch.finfo(native.dtype).bits // 8
    values = 4 * entries * size
    block = COPIES * block_of(widest) * widest * size
    crown = crown_ibp + seconds
    return (
        Cost("ibp", 0, ibp, values),
        Cost("crown-ibp", classes - 1, crown_ibp, values + block),
        Cost("crown", rows + classes - 1, crown, values + block),
        Cost(
            "alpha-crown",
            rows + classes - 1,
            ITERATIONS * STEP * crown,
            values + max(rows, 1) * 2 * entries * size,
        ),
    )


def _timed(native: Native, ball: Balls, specification: Tensor, method: str) -> float:
    started = time.perf_counter()
    native.ask(ball, specification, method)
    return time.perf_counter() - started


def _crown(native: Native, ball: Balls) -> tuple[int, float]:
    """Count the rows of CROWN's inner nodes, and estimate their seconds from pilot blocks at some nodes."""
    bounds = native.bounds(ball)
    wanted: dict[int, Tensor] = {}
    bounds.propagate(refine=False)
    for position in range(1, len(native.graph.nodes)):
        for i, loose in bounds.inputs_to_tighten(position):
            if i not in wanted and bool(loose.any()):
                wanted[i] = loose.flatten().nonzero().squeeze(1)
    if not wanted:
        return 0, 0.0
    positions = sorted(wanted)
    pilots = sorted({positions[round(k * (len(positions) - 1) / max(1, PILOTS - 1))] for k in range(PILOTS)})
    per_row = {}
    for position in pilots:
        entries = wanted[position][:PILOT_ROWS]
        started = time.perf_counter()
        bounds.lower(position, torch.zeros_like(entries), entries, 1.0)
        per_row[position] = (time.perf_counter() - started) / len(entries)
    nearest = {i: min(pilots, key=lambda p: abs(p - i)) for i in positions}
    rows = {i: 2 * len(wanted[i]) for i in positions}
    return sum(rows.values()), sum(rows[i] * per_row[nearest[i]] for i in positions)
