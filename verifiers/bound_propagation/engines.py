"""The two engines, and the choice between them."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.auto_lirpa.adapter import AutoLirpa
from verifiers.bound_propagation.checks import attack_bounds
from verifiers.bound_propagation.engine import ITERATIONS, Engine, Memory, Planes
from verifiers.bound_propagation.native.engine import Native
from verifiers.bound_propagation.rounded import Rounded
from verifiers.core.errors import InputError, Unsupported, did_you_mean
from verifiers.core.quantities import Arithmetic
from verifiers.core.question import Question
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification
from verifiers.graph.program import Program
from verifiers.runtime.oom import MEMORY_ERRORS, out_of_memory

#: The engines, in the order in which ``auto`` tries them.
ENGINES: dict[str, Callable[[Program, Tensor], Engine]] = {"native": Native, "auto-lirpa": AutoLirpa}


def names_of(engine: str) -> tuple[str, ...]:
    """List the engines that a name stands for.

    Raises:
        InputError: the name is unknown.
    """
    if engine != "auto" and engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}.{did_you_mean(engine, ['auto', *ENGINES])}")
    return tuple(ENGINES) if engine == "auto" else (engine,)


def engine_of(
    name: str,
    network: nn.Module | Program,
    samples: Float[Tensor, "batch *shape"],
    arithmetic: Arithmetic = Arithmetic.REAL,
) -> Engine:
    """Build an engine for the network in an arithmetic, once per program.

    In float32 the native engine supplies the rounding that is subtracted from another engine's bounds.

    Raises:
        Unsupported: the engine does not support the network.
        Contradiction: its graph is not the network.
    """
    program = Program.of(network)
    if name == Native.name:
        return native_engine(program, samples, arithmetic)
    exact = program.once(("engine", name), lambda: ENGINES[name](program, samples))
    if arithmetic is Arithmetic.REAL:
        return exact
    try:
        return Rounded(exact, native_engine(program, samples, arithmetic))
    except Unsupported as error:
        raise Unsupported(
            f"{name}: bounds over the real numbers only, since the rounding of float32 has no bound ({error}); with "
            "arithmetic real a proof leaves rounding out"
        ) from error


def native_engine(
    network: nn.Module | Program, samples: Float[Tensor, "batch *shape"], arithmetic: Arithmetic
) -> Native:
    """Build the native engine, once per program and arithmetic; raises the errors of ``engine_of``."""
    program = Program.of(network)
    return program.once(("engine", arithmetic), lambda: Native(program, samples, arithmetic=arithmetic))


def build(
    network: nn.Module | Program,
    samples: Float[Tensor, "batch *shape"],
    engine: str,
    question: Question,
    *,
    method: str,
) -> tuple[Engine, list[str]]:
    """Build the first engine that supports the network and the method, and list why earlier ones do not.

    Its bounds are for the question's arithmetic.

    Raises:
        Unsupported: no engine supports it; the message has every engine's reason.
        MemoryError: no engine supports it, one of them because memory ran out.
        Contradiction: a point of a ball breaks a bound, or a graph is not the network.
    """
    program, reasons = Program.of(network), list[str]()
    program.capture(samples)
    failure: type[Exception] = Unsupported
    for name in names_of(engine):
        try:
            built = engine_of(name, program, samples, question.arithmetic)
            attack_bounds(built, samples, question.eps.value, norm=question.norm, method=method)
            return built, reasons
        except Unsupported as error:
            told = str(error)
            reasons.append(told.replace(f" ({reasons[0]})", "") if reasons else told)
        except MEMORY_ERRORS as error:
            if not out_of_memory(error):
                raise
            reasons.append(f"{name}: not even one sample fits into memory")
            failure = MemoryError
    raise failure("; ".join(reasons))


def margins_of(
    engine: Engine,
    balls: Balls,
    classes: tuple[Int[Tensor, " batch"], int],
    method: str,
    *,
    iterations: int = ITERATIONS,
    memory: Memory | None = None,
) -> Planes:
    """Bound the margins of predicted classes; ``classes`` are these and their number.

    The least of each sample is that of all rows of ``margin_specification``, which are built only if there are few.
    """
    predicted, count = classes
    if isinstance(engine, Native):
        return engine.margins(balls, predicted, method, iterations=iterations, memory=memory)
    rows = margin_specification(predicted, count, torch.float64)
    return engine.ask(balls, rows, method, iterations=iterations, memory=memory)
