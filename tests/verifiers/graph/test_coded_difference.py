"""An int8 copy and its original in one graph: what rounding adds, bounds that hold, and bounds that are tighter."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.graph import torch_int8
from tests.verifiers.graph.torch_int8 import quantization
from verifiers.bound_propagation.joint import JointEngine
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.graph.coded_difference import Grid, coupled_codes
from verifiers.graph.operators import Interval
from verifiers.graph.program import Program
from verifiers.graph.quantized import in_integers
from verifiers.graph.relaxations.staircase import Staircase

SHAPE = (1, 4, 4)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    )


def pair(make: Any, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """An int8 copy and its original."""
    inner = make()
    network = nn.Sequential(quantization.QuantStub(), *inner, quantization.DeQuantStub())
    relus = [i for i, layer in enumerate(network) if isinstance(layer, nn.ReLU)]
    copy = torch_int8.quantized(network, [[str(i - 1), str(i)] for i in relus], seed=seed)
    return in_integers(copy, SHAPE).eval(), inner.eval()  # quantising sets the original's weights


def engine(student: nn.Module, teacher: nn.Module, x: Tensor) -> JointEngine:
    programs = Program(student, paired=True), Program(teacher, paired=True)
    return JointEngine(*programs, x[:2], Arithmetic.INT8)


def rows(count: int) -> Tensor:
    """Both logits and their differences, each way, as rows of [S, T]."""
    eye, none = torch.eye(3).double(), torch.zeros(3, 3).double()
    parts = torch.cat([torch.cat([eye, none], 1), torch.cat([none, eye], 1), torch.cat([eye, -eye], 1)])
    return torch.cat([parts, -parts]).expand(count, -1, -1)


MAKES = pytest.mark.parametrize("make", [dense, convolutions])


@MAKES
@pytest.mark.parametrize("eps", [0.003, 0.05, 0.3])
def test_no_point_is_outside_and_no_row_is_looser(make: Any, eps: float) -> None:
    student, teacher = pair(make)
    x = torch.rand(2, *SHAPE)
    both = engine(student, teacher, x)
    assert both.coupled is not None
    points = torch.rand(2, 1000, *SHAPE) * 2 - 1
    points[:, 500:] = points[:, 500:].sign()
    points = (x[:, None] + eps * points).clamp(0, 1)
    with torch.no_grad():
        logits = torch.cat([student(points.flatten(0, 1)), teacher(points.flatten(0, 1))], 1).double()
    values = logits.reshape(2, 1000, 6) @ rows(2).mT
    balls = Balls.around(x.double(), eps, Norm.LINF)
    for method in ("ibp", "crown"):
        found, alone = both.ask(balls, rows(2), method).bound, both.joint.ask(balls, rows(2), method).bound
        assert bool((found >= alone).all())
        assert bool((values >= found[:, None] - 1e-9).all()), f"{method}: {float((found[:, None] - values).max())}"


@MAKES
def test_differences_are_bounded_more_tightly(make: Any) -> None:
    student, teacher = pair(make, seed=1)
    x = torch.rand(4, *SHAPE)
    both, asked = engine(student, teacher, x), rows(4)[:, [6, 7, 8, 15, 16, 17]]
    balls = Balls.around(x.double(), 0.1, Norm.LINF)
    found, alone = both.ask(balls, asked, "crown").bound, both.joint.ask(balls, asked, "crown").bound
    assert float(found.mean()) > 0.6 * float(alone.mean()), f"{float(found.mean())} of {float(alone.mean())}"


@MAKES
@pytest.mark.parametrize("seed", [2, 3])
def test_every_node_is_in_its_interval(make: Any, seed: int) -> None:
    student, teacher = pair(make, seed)
    x, eps = torch.rand(1, *SHAPE), 0.05
    graph = coupled_codes(*(Program(network, paired=True).graph(x) for network in (student, teacher)))
    assert graph is not None
    boxes = [Interval(x.double() - eps, x.double() + eps)]
    for node in graph.nodes[1:]:
        assert node.operator is not None
        box = node.operator.interval(*(boxes[i] for i in node.inputs))
        error = node.operator.rounding([boxes[i] for i in node.inputs], box)
        boxes.append(box if error is None else Interval(box.low - error, box.high + error))
    points = x.double() + eps * (2 * torch.rand(500, *SHAPE).double() - 1)
    for node, box, value in zip(graph.nodes, boxes, graph.values(points), strict=True):
        assert bool((value >= box.low - 1e-9).all() and (value <= box.high + 1e-9).all()), node.kind


@pytest.mark.parametrize("steps", [Staircase(0.0, 5.0), Staircase(-3.0, 2.0), Staircase(1.0, 1.0)])
def test_the_error_of_a_grid_by_enumeration(steps: Staircase) -> None:
    """Over boxes inside, across the ends and beyond the codes; lines hold as well."""
    grid = Grid(0.3, steps)
    ends = torch.rand(300, 2, dtype=torch.float64).mul(4).sub(2).sort(1).values
    low, high = ends.unbind(1)
    x = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, 2001, dtype=torch.float64)
    error, box = grid(x) - x, grid.error(Interval(low, high))
    assert bool((error >= box.low[:, None]).all() and (error <= box.high[:, None]).all())
    tight = (error.amin(1) - box.low).clamp_min(0).maximum((box.high - error.amax(1)).clamp_min(0))
    assert float(tight.max()) <= 0.3 * 0.5 + 1e-6
    lines = grid.lines(low, high)
    assert bool((grid(x) >= lines.lower_slope[:, None] * x + lines.lower_offset[:, None]).all())
    assert bool((grid(x) <= lines.upper_slope[:, None] * x + lines.upper_offset[:, None]).all())


def test_other_pairs_have_no_such_graph() -> None:
    student, teacher = pair(dense)
    x = torch.rand(1, *SHAPE)
    ours, theirs = (Program(network, paired=True).graph(x) for network in (student, teacher))
    wider = nn.Sequential(nn.Flatten(), nn.Linear(16, 13), nn.ReLU(), nn.Linear(13, 8), nn.ReLU(), nn.Linear(8, 3))
    deeper = nn.Sequential(*dense(), nn.ReLU(), nn.Linear(3, 3))
    for other in (wider, deeper, convolutions(), nn.Sequential(*dense()[:4])):
        assert coupled_codes(ours, Program(other.eval(), paired=True).graph(x)) is None
    assert coupled_codes(theirs, ours) is None and coupled_codes(theirs, theirs) is None
    assert coupled_codes(Program(student).graph(x), theirs) is None  # codes without their scale
