"""The two engines, the choice between them, and how they check each other."""

from collections.abc import Callable

from torch import Tensor, nn

from verifiers.bound_propagation.auto_lirpa.adapter import AutoLirpa
from verifiers.bound_propagation.checks import withstand
from verifiers.bound_propagation.engine import Engine
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import InputError, Unsupported, did_you_mean
from verifiers.core.quantities import Norm
from verifiers.runtime.oom import MEMORY_ERRORS, out_of_memory

#: In the order in which ``auto`` tries them.
ENGINES: dict[str, Callable[..., Engine]] = {"auto-lirpa": AutoLirpa, "native": Native}


def names_of(engine: str) -> tuple[str, ...]:
    """The engines that a request's engine stands for.

    Raises:
        InputError: an unknown name.
    """
    if engine != "auto" and engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}.{did_you_mean(engine, ['auto', *ENGINES])}")
    return tuple(ENGINES) if engine == "auto" else (engine,)


def build(
    model: nn.Module, samples: Tensor, engine: str, eps: float, *, norm: Norm, method: str
) -> tuple[Engine, list[str]]:
    """The first engine that takes the network and the method, tried on the samples; and why others do not.

    Raises:
        Unsupported: none takes it; with every engine's reason.
        MemoryError: none takes it, one of them for lack of memory.
        Contradiction: a point of a ball breaks a bound, or a graph is not the network.
    """
    reasons: list[str] = []
    failure: type[Exception] = Unsupported
    for name in names_of(engine):
        try:
            built = ENGINES[name](model, samples)
            withstand(built, samples, eps, norm=norm, method=method)
            return built, reasons
        except Unsupported as error:
            reasons.append(str(error))
        except MEMORY_ERRORS as error:
            if not out_of_memory(error):
                raise
            reasons.append(f"{name}: not even one sample fits into memory")
            failure = MemoryError
    raise failure("; ".join(reasons))
