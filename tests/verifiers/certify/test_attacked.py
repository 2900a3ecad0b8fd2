"""Every claimed radius is attacked on the program that is deployed, whichever method claims it."""

import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.methods.test_float32 import cancelling
from verifiers.certify.attacked import refuted
from verifiers.core.quantities import Arithmetic, Epsilon, Norm
from verifiers.core.question import Question
from verifiers.graph.program import Program


def line() -> Program:
    """Class 0 where the first pixel is below 1/2."""
    network = nn.Linear(2, 2, bias=True).requires_grad_(False).eval()
    network.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    network.bias.copy_(torch.tensor([0.5, -0.5]))
    program = Program(network)
    program.capture(torch.zeros(1, 2))
    return program


def asked(program: Program, radius: list[float], norm: Norm, arithmetic: Arithmetic) -> list[bool]:
    x = torch.tensor([[0.4, 0.5], [0.1, 0.2], [0.3, 0.3]])
    question = Question(Epsilon.parse("0.1"), norm, 0, arithmetic=arithmetic)
    rows = torch.arange(3)
    found = refuted(program, question, x, torch.zeros(3).long(), torch.tensor(radius, dtype=torch.float64), rows)
    assert not found.unsure.any()
    return [bool(value) for value in found.broken]


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_radii_beyond_the_boundary_are_refuted_and_others_are_not(norm: Norm, arithmetic: Arithmetic) -> None:
    program = line()
    assert asked(program, [0.099, 0.399, 0.199], norm, arithmetic) == [False, False, False]
    assert asked(program, [0.11, 0.41, 0.22], norm, arithmetic) == [True, True, True], (
        "the boundary is at 0.1, 0.4, 0.2"
    )
    assert asked(program, [0.11, 0.399, 0.22], norm, arithmetic) == [True, False, True]


class Coarse(nn.Module):
    """Margin 1e-3 over the reals; in float32 the large numbers swallow it, and the bright half has the other class."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2))
        with torch.no_grad():
            self.layers[0].weight.fill_(1e8)
            self.layers[0].bias.fill_(1.0)
            self.layers[1].weight.copy_(torch.tensor([[1.0], [1.0]]))
            self.layers[1].bias.copy_(torch.tensor([1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def test_a_claim_about_the_reals_is_attacked_in_float64() -> None:
    network = Coarse().eval().requires_grad_(False)
    program, x = Program(network), torch.tensor([[0.5]])
    program.capture(x)
    question = Question(Epsilon.parse("0.1"), Norm.LINF, 0, arithmetic=Arithmetic.REAL)
    zero = torch.zeros(1).long()
    found = refuted(program, question, x, zero, torch.tensor([0.4], dtype=torch.float64), zero)
    assert not found.broken.any() and not found.unsure.any()


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_points_that_float64_itself_gets_wrong_are_no_counterexamples(size: float) -> None:
    """Over the reals the class is 0 for a second pixel above 0.2; in float64 the first pixel hides the second."""
    network, x = cancelling(size)
    program = Program(network.eval())
    program.capture(x[:1])
    question, zero = Question(Epsilon.parse("0.1"), Norm.LINF, 0, arithmetic=Arithmetic.REAL), torch.zeros(1).long()
    found = refuted(program, question, x[:1], zero, torch.tensor([0.65], dtype=torch.float64), zero)
    assert not found.broken.any() and found.unsure.all()
    beyond = refuted(line(), question, x[1:], zero, torch.tensor([0.9], dtype=torch.float64), zero)
    assert beyond.broken.all() and not beyond.unsure.any()


def test_the_points_do_not_depend_on_the_batch() -> None:
    program = line()
    one = asked(program, [0.101, 0.401, 0.2001], Norm.L2, Arithmetic.FLOAT32)
    assert one == asked(program, [0.101, 0.401, 0.2001], Norm.L2, Arithmetic.FLOAT32)
