"""What a training in Python refuses before it begins."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from certkd.config.settings import Recipe, TrainConfig
from certkd.objectives import Kd, Kdiga, Standard
from certkd.training.checks import check_types
from certkd.training.run import Teachers
from tests.certkd.training.test_training import Listener, fit, plain, samples
from tests.training import train
from verifiers.core.errors import InputError


class Probable(nn.Module):
    """Probabilities for logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = plain(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).softmax(1)


X, Y = samples(40)
CONFIG = TrainConfig(objective=Standard())
REFUSED = {
    "images of 0 to 255": ({"data": (255 * X, Y)}, r"images must be in \[0, 1\], got values from .* to 2\d\d"),
    "normalised ones": ({"data": (X - 0.5, Y)}, r"images must be in \[0, 1\], got values from -0.\d+"),
    "no images": ({"data": (X[:0], Y[:0])}, "at least one: got 0 and 0"),
    "one to train and select": ({"data": (X[:1], Y[:1]), "validation": None}, "at least one image to train with"),
    "not as many labels": ({"data": (X, Y[:-1])}, "as many images as labels and at least one: got 40 and 39"),
    "labels beyond the classes": ({"data": (X, Y + 1)}, "labels run from 1 to 4, the student has 4 classes"),
    "labels below 0": ({"data": (X, Y - 1)}, "labels run from -1 to 2, the student has 4 classes"),
    "validation labels": ({"validation": (X, Y + 9)}, "labels run from 9 to 12"),
    "labels that are shares": (
        {"data": (X, F.one_hot(Y, 5).float() / 2)},
        r"labels must be 40 class numbers, one per image; got shape \(40, 5\) with rows that are not one-hot",
    ),
    "images of another size": (
        {"data": (X[..., :3], Y)},
        r"the student does not take images of shape \(1, 4, 3\): ",
    ),
    "weights in half": (
        {"student": plain().half()},
        "the student's weights must be float32, got float16: train",
    ),
    "a teacher in half": (
        {"teacher": plain(1).half()},
        "the teacher's weights must be float32, got float16: give",
    ),
    "a teacher of other images": (
        {"teacher": nn.Sequential(nn.Flatten(), nn.Linear(9, 4))},
        r"the teacher does not take images of shape \(1, 4, 4\): ",
    ),
    "no logits": ({"student": nn.Conv2d(1, 4, 1)}, r"one row of logits per image, got shape \(1, 4, 4, 4\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    given, message = REFUSED[name]
    arguments = {"data": (X, Y), "teacher": plain(1), "validation": (X, Y), "out": tmp_path / "out", **given}
    student = arguments.pop("student", plain())
    with pytest.raises(InputError, match=message):
        train(student, arguments.pop("data"), Kd(), recipe=Recipe(epochs=1), device="cpu", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("student", "config", "teachers", "line"),
    [
        ("net.pt", CONFIG, Teachers(), "the student must be a torch.nn.Module, got str: certkd.load_checkpoint"),
        (None, CONFIG, Teachers(), "the student must be a torch.nn.Module, got NoneType: "),
        (plain(), Kdiga(), Teachers(), r"config must be a TrainConfig, got Kdiga: write TrainConfig\(objective="),
        (plain(), "kd.yaml", Teachers(), "config must be a TrainConfig, got str: "),
    ],
)
def test_other_types_are_named(student: object, config: object, teachers: Teachers, line: str) -> None:
    check_types(plain(), CONFIG, Teachers(plain(), None))
    with pytest.raises(InputError, match=f"^{line}"):
        check_types(student, config, teachers)


def test_a_path_is_no_teacher() -> None:
    teachers = object.__new__(Teachers)
    vars(teachers).update(robust="teacher.pt", natural=None)
    with pytest.raises(InputError, match=r"^the teacher must be a torch.nn.Module, got str: "):
        check_types(plain(), CONFIG, teachers)


def test_bytes_are_taken_as_pixels() -> None:
    recipe, pixels = Recipe(epochs=1, batch_size=20), (255 * X).round()
    trained = [plain(), plain()]
    for student, images in zip(trained, (pixels.byte(), pixels / 255), strict=True):
        train(student, (images, Y), Standard(), recipe=recipe, device="cpu")
    weights = [parameters_to_vector(student.parameters()) for student in trained]
    assert torch.equal(*weights), "bytes train another network than the same pixels in [0, 1]"
    assert not torch.equal(weights[0], parameters_to_vector(plain().parameters()))


def test_a_teacher_that_gives_probabilities_is_told_of() -> None:
    for teacher, expected in ((Probable(), 1), (plain(1), 0)):
        listener = Listener()
        fit(plain(), Kd(), teacher=teacher, reporter=listener, recipe=Recipe(epochs=1))
        assert len([text for text in listener.warnings if "probabilities rather than logits" in text]) == expected
