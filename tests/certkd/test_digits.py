"""The claim, end to end on handwritten digits: plain distillation loses the teacher's robustness, kdiga keeps much.

A small perceptron is trained by PGD and teaches students that differ in their objective alone. Everything is measured
on the test split: PGD accuracy and CROWN certificates at linf 0.1.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from certkd.config import DataConfig, Recipe, SelectionConfig
from certkd.data import DataSet, load
from certkd.models import ModelSpec, build
from certkd.objectives import Adversarial, Kd, Kdiga, Objective, Standard
from certkd.training import evaluate, train
from verifiers.certify import certify

EPS = "0.1"


@dataclass(frozen=True)
class Measured:
    """One network on the test split."""

    clean: float
    attacked: float
    certificates: int


def network(hidden: list[int]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(ModelSpec(name="certkd:mlp", options={"hidden": hidden}, classes=10, shape=(1, 8, 8)))


def trained(data: DataSet, objective: Objective, recipe: Recipe, hidden: list[int], teacher: nn.Module | None, by: str):
    model = network(hidden)
    selection = SelectionConfig(metric=by, eps=EPS, steps=5)  # type: ignore[arg-type]
    splits = data.splits
    train(
        model,
        splits["train"],
        objective,
        teacher=teacher,
        validation=splits["validation"],
        recipe=recipe,
        selection=selection,
        device="cpu",
    )
    return model


def measure(model: nn.Module, data: DataSet) -> Measured:
    test = data.splits["test"]
    metrics = evaluate(model, test, SelectionConfig(eps=EPS, steps=30), torch.device("cpu"))
    rows = certify(model, test.images, test.labels, eps=EPS, methods=("crown",))["crown"]
    return Measured(metrics["clean"], metrics["pgd"], int(rows["certified"].sum()))


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    data = load(DataConfig())
    teacher = trained(data, Adversarial(eps=0.1, steps=5), Recipe(epochs=25), [128, 128], None, by="pgd")
    found = {"teacher": measure(teacher, data)}
    for objective in (Standard(), Kd(), Kdiga(lambda_iga=1)):
        student = trained(data, objective, Recipe(epochs=60), [64, 64, 64], teacher, by="clean")
        found[objective.kind] = measure(student, data)
    return found


def test_every_network_is_accurate(measured: dict[str, Measured]) -> None:
    for name, one in measured.items():
        assert one.clean >= 0.95, f"clean accuracy of {name} is {one.clean:.3f}"


def test_teacher_is_robust_and_the_standard_student_is_not(measured: dict[str, Measured]) -> None:
    teacher, standard = measured["teacher"], measured["standard"]
    assert teacher.attacked >= standard.attacked + 0.3, f"nothing to transfer: {teacher} and {standard}"


def test_plain_distillation_transfers_little(measured: dict[str, Measured]) -> None:
    gap = abs(measured["kd"].attacked - measured["standard"].attacked)
    assert gap <= 0.15, f"PGD accuracy of kd and standard differ by {gap:.3f}: {measured}"


def test_alignment_transfers_robustness(measured: dict[str, Measured]) -> None:
    gain = measured["kdiga"].attacked - measured["kd"].attacked
    assert gain >= 0.12, f"kdiga gains {gain:.3f} PGD accuracy over kd, at least 0.12 is expected: {measured}"


def test_alignment_transfers_certificates(measured: dict[str, Measured]) -> None:
    kd, kdiga = measured["kd"].certificates, measured["kdiga"].certificates
    assert kdiga >= kd, f"kdiga has {kdiga} CROWN certificates, kd {kd}"
    assert kdiga >= 36, f"kdiga has {kdiga} CROWN certificates of 360 at {EPS}, a tenth is expected"
    for name, one in measured.items():
        assert one.certificates / 360 <= one.attacked, f"{name} is certified on images that PGD breaks: {one}"
