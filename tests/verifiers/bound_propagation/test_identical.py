"""Pairs that are one program with equal constants are proved at once, and no other pair is."""

import copy
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.certifying import certify
from tests.verifiers.bound_propagation.pairs import RELATIONS, Tiny, matched, tiny
from tests.zoo import images
from verifiers.bound_propagation.identical import identical
from verifiers.certify.verify import VerifyConfig, verify
from verifiers.core.quantities import Arithmetic
from verifiers.core.relation import Relation
from verifiers.core.status import Status
from verifiers.graph.program import Program
from verifiers.results.reader import read
from verifiers.results.summaries.match import Stage, summary
from verifiers.runtime.samples import Data


def twins() -> Tiny:
    pair = tiny(11)
    return Tiny(copy.deepcopy(pair.teacher), pair.teacher, pair.x, 0.3)


class Written(nn.Module):
    """The same layers in a module of its own, with an activation between them."""

    def __init__(self, layers: nn.Sequential, between: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.linear, self.between = nn.ModuleList(m for m in layers if isinstance(m, nn.Linear)), between

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.linear[:-1]:
            x = self.between(layer(x))
        return self.linear[-1](x)


@pytest.mark.parametrize("arithmetic", list(Arithmetic))
@pytest.mark.parametrize("relation", RELATIONS, ids=lambda each: each.label)
def test_a_network_is_proved_to_match_itself(relation: Relation, arithmetic: Arithmetic) -> None:
    """Ties included: not-worse with tolerance 0 has no bound above 0."""
    columns = matched(twins(), relation, arithmetic, time_limit=1e-9)
    assert columns["status"].tolist() == [Status.CERTIFIED] and columns["stage"].tolist() == [Stage.IDENTITY]
    assert columns["radius"].tolist() == [0.3] and columns["margin"].tolist() == [relation.threshold]
    assert columns["student_class"] == columns["teacher_class"]
    assert all(np.isnan(columns[name]).all() for name in ("violation", "distance", "counterexample", "least"))


def test_the_least_threshold_of_a_network_and_itself_is_0() -> None:
    assert matched(twins(), RELATIONS[0], bisect=True)["least"].tolist() == [0.0]


def test_two_copies_compute_the_same_numbers() -> None:
    pair = twins()
    points = torch.rand(1000, pair.x.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.equal(pair.student(points), pair.teacher(points)), "copies differ, and identity proves nothing"


def the_same(student: nn.Module, teacher: nn.Module, x: Tensor) -> bool:
    return identical(Program(student.eval()), Program(teacher.eval()), x.expand(2, -1))


def test_programs_are_compared_not_objects() -> None:
    pair = twins()
    assert the_same(pair.student, pair.teacher, pair.x)
    assert the_same(pair.student, pair.student, pair.x)
    assert the_same(Written(pair.student), Written(pair.teacher), pair.x), "captured by torch.export"


def test_one_bit_one_operator_or_another_dtype_make_another_program() -> None:
    pair = twins()
    student, teacher, x = pair.student, pair.teacher, pair.x
    with torch.no_grad():
        student[0].bias[0] = student[0].bias[0].nextafter(torch.tensor(9.0))
    assert not the_same(student, teacher, x), "one bit of one weight"
    assert not the_same(Written(teacher, F.leaky_relu), Written(teacher), x), "equal weights, another activation"
    slopes = [lambda z, slope=slope: F.leaky_relu(z, slope) for slope in (0.1, 0.2)]
    assert not the_same(Written(teacher, slopes[0]), Written(teacher, slopes[1]), x), "another number in the code"
    assert not the_same(copy.deepcopy(teacher).double(), teacher, x), "another dtype"
    assert not the_same(Written(teacher), teacher, x), "another way to run"
    shorter = nn.Sequential(*teacher, nn.ReLU())
    assert not the_same(shorter, teacher, x), "an operator more"


def test_constants_that_are_laid_out_in_another_way_make_another_program() -> None:
    """Float32 adds up in the order of the memory: the same numbers may then differ in their last bits."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    other = copy.deepcopy(layers).to(memory_format=torch.channels_last)
    x = torch.rand(1, 3, 4, 4)
    assert identical(Program(copy.deepcopy(layers)), Program(layers), x) and not identical(
        Program(other), Program(layers), x
    )
    turned = copy.deepcopy(layers)
    turned[2].weight = nn.Parameter(layers[2].weight.detach().T.contiguous().T)
    assert not identical(Program(turned), Program(layers), x), "a transposed matrix"


def test_negative_zero_is_another_bit() -> None:
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    for layer, zero in zip(layers, (0.0, -0.0), strict=True):
        nn.init.constant_(layer.weight, zero)
        nn.init.zeros_(layer.bias)
    assert not the_same(nn.Sequential(layers[0]), nn.Sequential(layers[1]), torch.rand(1, 2))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pair, path = twins(), tmp_path_factory.mktemp("same") / "same.h5"
    x = images(tuple(pair.x.shape[1:]), 4, seed=2)
    match = {"kind": "match", "property": "not-worse"}
    certify(pair.student, x, pair.student(x).argmax(1), eps="0.1", methods=(match,), teacher=pair.teacher, out=path)
    return path


def audited(path: Path, teacher: nn.Module) -> list[str]:
    x = images(tuple(twins().x.shape[1:]), 4, seed=2)
    data, config = Data(x, twins().student(x).argmax(1)), VerifyConfig.parse({"sample": 4, "seed": 0})
    findings = verify(twins().student, str(path), data, config, teacher=teacher).findings
    return [line for finding in findings for line in finding.contradictions]


def test_files_say_why(file: Path) -> None:
    rows = read(file)["match"]
    assert (rows["stage"] == Stage.IDENTITY).all() and (rows["margin"] == 0).all()
    assert "identity of the two networks" in str(summary(rows, read(file)))
    assert audited(file, twins().teacher) == []


def test_identity_is_believed_of_equal_programs_alone(file: Path, tmp_path: Path) -> None:
    """Rows of another pair that claim it are refused, as are rows with the hash of another program."""
    forged = tmp_path / "forged.h5"
    forged.write_bytes(file.read_bytes())
    with h5py.File(forged, "r+") as opened:
        opened.attrs["joint_teacher_program_sha256"] = np.bytes_("0" * 64)
    said = audited(forged, twins().teacher)
    assert any("its joint_teacher_program_sha256 is 000" in line for line in said)
    assert any("it is proved by identity, and the two programs differ" in line for line in said)


def test_margins_and_points_that_identity_does_not_have(file: Path, tmp_path: Path) -> None:
    for name, value, words in (
        ("margin", 0.5, "its margin is not the threshold"),
        ("stage", 3, "its margin is not positive"),
    ):
        forged = tmp_path / "forged.h5"
        forged.write_bytes(file.read_bytes())
        with h5py.File(forged, "r+") as opened:
            opened["match"][name][0] = value
        assert any(words in line for line in audited(forged, twins().teacher)), (name, value)
