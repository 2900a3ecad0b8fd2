"""Cross-check one engine's bounds against the other's."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.auto_lirpa.adapter import AutoLirpa
from verifiers.bound_propagation.checks import check_sandwich
from verifiers.bound_propagation.engine import Engine
from verifiers.bound_propagation.engines import engine_of
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import Contradiction
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification
from verifiers.graph.program import Program

#: Operators that both engines relax in the same way, so that without intersections their bounds must be equal. Products
#: and quotients count only if one factor or the divisor is constant.
SHARED = frozenset(
    "image view reshape flatten unsqueeze squeeze linear conv2d batch_norm add sub mul div "
    "relu avg_pool2d adaptive_avg_pool2d mean".split()
)

#: Bounds may differ by this share of the largest, by the rounding of float64.
ROUNDING = 1e-7


class CrossCheck:
    """Compare the bounds of one engine with the other's.

    The true range of a logit difference is within the bounds of both engines. The two must therefore overlap, and no
    point of the ball may leave either. On networks of shared operators, IBP and CROWN are one algorithm in both
    engines: over the real numbers, bounds must be equal. Of an affine network the native engine's IBP is exact, and so
    tighter than auto-LiRPA's, which goes layer by layer.

    Args:
        network: a module, or its program.
        samples: two sample images.
        engine: the engine in use.

    Raises:
        Unsupported: the other engine does not support the network.
    """

    def __init__(self, network: nn.Module | Program, samples: Float[Tensor, "two *shape"], engine: Engine) -> None:
        program, self.engine = Program.of(network), engine
        self.plain = program.once("plain native", lambda: Native(program, samples, intersect=False))
        self.lirpa = engine_of(AutoLirpa.name, program, samples)
        self.other = self.lirpa if isinstance(engine, Native) else self.plain
        graph = self.plain.graph
        self.exact = all(
            node.kind in SHARED and (node.kind not in ("mul", "div") or graph.affine_operator(position))
            for position, node in enumerate(graph.nodes)
        )

        self._affine = graph.affine[graph.output]

    def try_out(self, balls: Balls, method: str) -> None:
        """Compute one bound by the other engine, to find out whether it has the method.

        Raises:
            Unsupported: it does not.
        """
        rows = margin_specification(balls.eps.long() * 0, self.plain.graph.classes, torch.float64)
        self.other.ask(balls.to(torch.float64), rows, method)

    def __call__(self, balls: Balls, predicted: Int[Tensor, " batch"], method: str) -> None:
        """Compare bounds on some samples, one at a time: engines may share work between the samples of a batch.

        Raises:
            Contradiction: the bounds exclude each other, differ where they must be equal, or are broken by a point.
        """
        for i, ball in enumerate(balls.to(torch.float64).split(1)):
            rows = margin_specification(predicted[i : i + 1], self.plain.graph.classes, torch.float64)
            both = torch.cat([rows, -rows], 1)
            bounds = {
                engine: engine.ask(ball, both, method).bound[0]
                for engine in dict.fromkeys((self.engine, self.other, self.plain, self.lirpa))
            }
            slack = ROUNDING * max(1.0, float(bounds[self.plain].nan_to_num(0.0, 0.0, 0.0).abs().max()))
            self._overlap(bounds[self.engine], bounds[self.other], slack)
            same = method == "crown" or (method == "ibp" and not self._affine)
            if self.exact and same and ball.norm is Norm.LINF:
                self._equal(bounds[self.plain], bounds[self.lirpa], slack)
            check_sandwich(self.engine.model, self.other, ball, method)
            check_sandwich(self.engine.model, self.engine, ball, method)

    def _overlap(self, one: Tensor, other: Tensor, slack: float) -> None:
        half = len(one) // 2
        one, other = (bound.where(~bound.isnan(), -float("inf")) for bound in (one, other))
        for low, high in ((one[:half], -other[half:]), (other[:half], -one[half:])):
            apart = float((low - high).max())
            if not apart <= slack:
                raise Contradiction(f"engines {self._names()} exclude each other: bounds are disjoint by {apart:.3g}")

    def _equal(self, one: Tensor, other: Tensor, slack: float) -> None:
        apart = float((one - other).abs().max())
        if not apart <= slack:
            raise Contradiction(f"engines {self._names()} differ by {apart:.3g} where their bounds should be equal")

    def _names(self) -> str:
        return f"{self.engine.name} and {self.other.name}"
