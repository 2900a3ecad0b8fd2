"""Make any engine's bounds hold for the deployed network."""

from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation.engine import ITERATIONS, Engine, Memory, Planes
from verifiers.bound_propagation.native.engine import Native
from verifiers.geometry.balls import Balls


class Rounded:
    """An engine whose bounds of the exact network are lowered by the rounding of the deployed one.

    Args:
        exact: the engine, over the real numbers.
        native: the engine that bounds the rounding.
    """

    def __init__(self, exact: Engine, native: Native) -> None:
        self.exact, self.native = exact, native
        self.name, self.batch_size, self.model = exact.name, exact.batch_size, exact.model
        self.deployed = native.deployed

    def ask(
        self,
        balls: Balls,
        rows: Float[Tensor, "batch rows classes"],
        method: str,
        *,
        iterations: int = ITERATIONS,
        memory: Memory | None = None,
    ) -> Planes:
        """Bound rows as ``Engine.ask``; the rounding on a ball covers every smaller one."""
        planes = self.exact.ask(balls, rows, method, iterations=iterations, memory=memory)
        lost = self.native.deviation(balls, rows, refine=method in ("crown", "alpha-crown"))
        return Planes(planes.bound - lost, planes.value - lost, planes.steepness, lost)
