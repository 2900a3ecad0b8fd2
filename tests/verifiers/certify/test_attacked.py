"""Every claimed radius is attacked on the program that is deployed, whichever method claims it."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.verifiers.methods.test_float32 import cancelling
from verifiers.certify.attacked import refuted
from verifiers.certify.verify import VerifyConfig, verify
from verifiers.core.quantities import Arithmetic, Epsilon, Norm
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.graph.program import Program
from verifiers.runtime.certifier import Batch
from verifiers.runtime.samples import Data


def line() -> Program:
    """Class 0 where the first pixel is below 1/2."""
    network = nn.Linear(2, 2, bias=True).requires_grad_(False).eval()
    network.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    network.bias.copy_(torch.tensor([0.5, -0.5]))
    program = Program(network)
    program.capture(torch.zeros(1, 2))
    return program


def batch_of(x: Tensor, *known: Tensor) -> Batch:
    """Images of class 0, and points that earlier methods stored for them."""
    zero = torch.zeros(len(x)).long()
    stored = [points.numpy() for points in known]
    return Batch(x, zero, torch.arange(len(x)), 2, lambda: torch.ones(len(x)), lambda: stored)


def asked(program: Program, radius: list[float], norm: Norm, arithmetic: Arithmetic) -> list[bool]:
    x = torch.tensor([[0.4, 0.5], [0.1, 0.2], [0.3, 0.3]])
    question = Question(Epsilon.parse("0.1"), norm, 0, arithmetic=arithmetic)
    found = refuted(program, question, batch_of(x), torch.tensor(radius, dtype=torch.float64))
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
    found = refuted(program, question, batch_of(x), torch.tensor([0.4], dtype=torch.float64))
    assert not found.broken.any() and not found.unsure.any()


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_points_that_float64_itself_gets_wrong_are_no_counterexamples(size: float) -> None:
    """Over the reals the class is 0 for a second pixel above 0.2; in float64 the first pixel hides the second."""
    network, x = cancelling(size)
    program = Program(network.eval())
    program.capture(x[:1])
    question = Question(Epsilon.parse("0.1"), Norm.LINF, 0, arithmetic=Arithmetic.REAL)
    found = refuted(program, question, batch_of(x[:1]), torch.tensor([0.65], dtype=torch.float64))
    assert not found.broken.any() and found.unsure.all()
    beyond = refuted(line(), question, batch_of(x[1:]), torch.tensor([0.9], dtype=torch.float64))
    assert beyond.broken.all() and not beyond.unsure.any()


def test_the_points_do_not_depend_on_the_batch() -> None:
    program = line()
    one = asked(program, [0.101, 0.401, 0.2001], Norm.L2, Arithmetic.FLOAT32)
    assert one == asked(program, [0.101, 0.401, 0.2001], Norm.L2, Arithmetic.FLOAT32)


@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_stored_points_are_tried_within_the_radius(arithmetic: Arithmetic) -> None:
    program, x = line(), torch.full((3, 2), 0.4)
    question = Question(Epsilon.parse("0.3"), Norm.LINF, 0, arithmetic=arithmetic)
    radius = torch.tensor([0.0999, 0.15, 0.0999], dtype=torch.float64)
    stored = torch.tensor([[0.6, 0.4], [0.54, 0.4], [torch.nan, torch.nan]])
    found = refuted(program, question, batch_of(x, stored), radius)
    assert found.broken.tolist() == [False, True, False], "beyond the radius, within it, and none"
    assert not found.unsure.any()


def mended(arithmetic: str, place: Path) -> tuple[nn.Module, Data, Path]:
    """A file of two images: attacks break both in float32, and over the real numbers only the second."""
    network, x = cancelling(1e8)
    x[1] = torch.tensor([0.0, 0.4])
    y = torch.zeros(2).long()
    options = {"steps": 4, "restarts": 4}
    certify(
        network, x, y, eps="0.3", methods=("pgd", "crown"), arithmetic=arithmetic, options=options, out=place / "a.h5"
    )
    return network, Data(x, y), place / "a.h5"


def test_a_point_that_only_float32_gets_wrong_contradicts_no_claim_about_the_reals(tmp_path: Path) -> None:
    network, data, path = mended("real", tmp_path)
    with h5py.File(path, "r+") as file:
        assert (file["pgd"]["status"][:] == Status.FALSIFIED).all(), "float32 has counterexamples for both images"
        radius = file["crown"]["radius"][:]
        assert radius[0] == pytest.approx(0.7, rel=1e-3), "over the reals the boundary is 0.7 away"
        assert radius[1] == pytest.approx(0.2, rel=1e-3), "and 0.2 from the second image"
    audit = verify(network, str(path), data, VerifyConfig(sample=0, seed=0))
    assert audit.holds, audit.contradictions
    with h5py.File(path, "r+") as file:
        file["crown"]["radius"][:] = [0.75, 0.2]
        file["pgd"]["counterexample"][0] = [0.0, 0.199]
        file["pgd"]["distance"][0] = 0.701
    assert not verify(network, str(path), data, VerifyConfig(sample=0, seed=0)).holds


@pytest.mark.slow
def test_proofs_over_the_reals_that_end_in_a_point_of_float32_stay_open(tmp_path: Path) -> None:
    network, data, path = mended("real", tmp_path)
    audit = verify(network, str(path), data, VerifyConfig(sample=2, seed=0, time_limit=5.0))
    assert audit.holds, audit.contradictions
    assert any("of crown could not be proved again" in line for line in audit.limits), audit.limits


def test_a_float32_counterexample_excludes_a_radius_in_float32(tmp_path: Path) -> None:
    network, data, path = mended("float32", tmp_path)
    with h5py.File(path, "r+") as file:
        assert (file["pgd"]["status"][:] == Status.FALSIFIED).all()
        radius = np.where(np.arange(2) == 0, 0.699, file["crown"]["radius"][:])
        file["crown"]["radius"][:], file["crown"]["certified"][0] = radius, 1
        file["crown"]["status"][0] = Status.CERTIFIED
    audit = verify(network, str(path), data, VerifyConfig(sample=0, seed=0))
    assert any("contains a counterexample" in line for line in audit.contradictions), audit.contradictions
