"""The training loop: what it leaves alone, what a resumed training ends with, what it selects, logs and refuses."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

from certkd import experiment, files
from certkd.cli.train import train as train_command
from certkd.config.experiment import ExperimentConfig
from certkd.config.settings import DataConfig, ModelConfig, OptimizerConfig, Recipe, SelectionConfig, TrainJob
from certkd.data.augmentation import crop_and_flip
from certkd.data.sources import load
from certkd.data.splits import Split, TensorImages
from certkd.networks import checkpoint
from certkd.networks import resolve as networks
from certkd.networks.builders import Classifier, ModelSpec, build
from certkd.objectives import Adversarial, Kd, Kdiga, Objective, Standard
from certkd.objectives.base import Batch, Term, Terms
from certkd.reporter import TrainingReporter
from certkd.training import loop as training
from certkd.training.evaluation import evaluate
from certkd.training.job import run_training
from certkd.training.log import RunLog
from certkd.training.loop import TrainingResult
from certkd.training.resume import RESUME
from tests.marks import thin
from tests.training import train
from verifiers.core.errors import InputError
from verifiers.runtime.device import choose_device
from verifiers.runtime.modes import eval_mode

CPU = torch.device("cpu")
CLASSES = 4


class Interrupted(Exception):
    """Stands for a kill, Ctrl-C, a full disk."""


class Listener(TrainingReporter):
    """Remembers every call; raises at the given step, or after the given epoch."""

    def __init__(self, at_step: int | None = None, after_epoch: int | None = None) -> None:
        self.at_step, self.after_epoch = at_step, after_epoch
        self.calls: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.started: tuple[int, int, int] = (0, 0, 0)

    def start(self, epochs: int, done: int, steps: int) -> None:
        self.calls.append("start")
        self.started = (epochs, done, steps)

    def step(self) -> None:
        self.calls.append("step")
        if self.calls.count("step") == self.at_step:
            raise Interrupted

    def epoch(self, record: dict[str, Any]) -> None:
        self.calls.append("epoch")
        self.records.append(record)
        if record["epoch"] == self.after_epoch:
            raise Interrupted

    def warn(self, text: str) -> None:
        self.calls.append("warn")
        self.warnings.append(text)


def samples(count: int = 120, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy 4x4 images with one brighter quadrant, which is their class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    x = 0.5 * torch.rand((count, 1, 4, 4), generator=generator)
    for image, label in zip(x, y.tolist(), strict=True):
        row, column = 2 * (label // 2), 2 * (label % 2)
        image[0, row : row + 2, column : column + 2] += 0.4
    return x, y


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def plain(seed: int = 0, classes: int = CLASSES) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, classes)), seed)


def busy(seed: int = 0) -> nn.Module:
    """A network with batch statistics and dropout: everything that a resumed training could get wrong."""

    def make() -> nn.Module:
        body = (nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten())
        return nn.Sequential(*body, nn.Linear(64, CLASSES))

    return seeded(make, seed)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(found: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    assert found.keys() == wanted.keys(), what
    for name, value in wanted.items():
        assert torch.equal(found[name], value), f"{what}: {name} differs"


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


FAST = OptimizerConfig(rate=0.05)
SHORT = Recipe(epochs=3, batch_size=32, optimizer=FAST)


def fit(student: nn.Module, objective: Objective | None = None, **arguments: Any) -> TrainingResult:
    """A short training on the synthetic images."""
    defaults: dict[str, Any] = {
        "recipe": Recipe(epochs=3, batch_size=32),
        "device": "cpu",
        "validation": samples(80, 1),
    }
    return train(student, samples(), objective or Standard(), **{**defaults, **arguments})


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------- what it leaves alone


@pytest.mark.parametrize("interrupt", [None, 5], ids=["to the end", "interrupted"])
@pytest.mark.parametrize("objective", [Standard(), Kd(), Kdiga()], ids=lambda o: o.kind)
def test_teacher_is_left_bit_for_bit(objective: Objective, interrupt: int | None) -> None:
    teacher = busy(7).train()
    teacher[3].eval()  # type: ignore[operator,index]
    teacher[0].weight.requires_grad_(False)  # type: ignore[union-attr,index]
    state, modes = state_of(teacher), [module.training for module in teacher.modules()]
    trainable = [parameter.requires_grad for parameter in teacher.parameters()]
    try:
        fit(plain(), objective, teacher=teacher, reporter=Listener(at_step=interrupt))
        assert interrupt is None
    except Interrupted:
        assert interrupt is not None
    assert_same_state(teacher.state_dict(), state, "the teacher was changed")
    assert [module.training for module in teacher.modules()] == modes, "the teacher's training mode was changed"
    assert [p.requires_grad for p in teacher.parameters()] == trainable, "the teacher's requires_grad was changed"
    assert all(p.grad is None for p in teacher.parameters()), "gradients were left on the teacher"


def test_teacher_is_frozen_while_it_answers() -> None:
    """A teacher in train mode would answer with batch statistics and dropout, differently at each call."""
    modes: list[tuple[bool, bool]] = []

    def look(module: nn.Module, given: object, answer: object) -> None:
        trainable = any(parameter.requires_grad for parameter in module.parameters())
        modes.append((module.training, trainable and torch.is_grad_enabled()))

    teacher = busy(7).train()
    teacher.register_forward_hook(look)
    fit(plain(), Kdiga(), teacher=teacher)
    assert set(modes) == {(False, False)}, "the teacher answers in train mode, or with a graph of its weights"


def test_student_given_in_eval_mode_is_trained_in_train_mode() -> None:
    one, other = busy().train(), busy().eval()
    fit(one)
    fit(other)
    assert_same_state(other.state_dict(), one.state_dict(), "a student given in eval mode")


def test_global_random_state_is_left_alone_and_ignored() -> None:
    trained = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        student = busy()
        fit(student, Adversarial(eps=0.1, steps=2))
        assert torch.equal(torch.get_rng_state(), before), "a training changes torch's global generator"
        trained.append(state_of(student))
    assert_same_state(trained[0], trained[1], "a training depends on torch's global generator")


def test_seed_decides() -> None:
    trained = []
    for seed in (0, 0, 1):
        student = busy()
        fit(student, seed=seed)
        trained.append(state_of(student))
    assert_same_state(trained[0], trained[1], "same seed")
    assert not torch.equal(trained[0]["0.weight"], trained[2]["0.weight"]), "the seed has no effect"


class Spy(Standard):
    """Cross-entropy; remembers the seed of each step's generator."""

    seeds: ClassVar[list[int]] = []

    def terms(self, batch: Batch) -> Terms:
        self.seeds.append(batch.generator.initial_seed())
        return super().terms(batch)


def test_every_step_of_every_epoch_has_its_own_random_numbers() -> None:
    runs = []
    for seed in (0, 0, 1):
        Spy.seeds.clear()
        fit(plain(), Spy(), seed=seed)
        runs.append(list(Spy.seeds))
    assert runs[0] == runs[1], "the random numbers of a step are not decided by the seed"
    assert len(runs[0]) == 14 and len({*runs[0], *runs[2]}) == 26, "two steps, or two seeds, share random numbers"


def test_frozen_weights_of_the_student_stay() -> None:
    student = plain()
    student[1].weight.requires_grad_(False)  # type: ignore[union-attr,index]
    before = state_of(student)
    fit(student, recipe=Recipe(epochs=2, optimizer=OptimizerConfig(weight_decay=0.1)))
    assert torch.equal(student[1].weight, before["1.weight"]), "a frozen weight was trained"  # type: ignore[index]
    assert not torch.equal(student[3].weight, before["3.weight"]), "nothing was trained"  # type: ignore[index]


def test_training_images_and_labels_stay() -> None:
    x, y = samples()
    image, label = x.clone(), y.clone()
    train(plain(), (x, y), Kdiga(), teacher=plain(1), recipe=Recipe(epochs=1, augment="crop-flip"), device="cpu")
    assert torch.equal(x, image) and torch.equal(y, label) and not x.requires_grad


@pytest.mark.parametrize("objective", [Standard(), Adversarial(eps=0.1, steps=3), Kd(), Kdiga()], ids=lambda o: o.kind)
def test_batch_statistics_advance_once_a_step(objective: Objective) -> None:
    student, listener = busy(), Listener()
    fit(student, objective, teacher=plain(1), selection=SelectionConfig(metric="pgd", eps="0.1"), reporter=listener)
    epochs = [record["validation"]["pgd"] for record in listener.records]
    best = fit_epoch_of_best(listener.records, "pgd")
    assert len(epochs) == 3 and int(student[1].num_batches_tracked) == 4 * (best + 1)  # type: ignore[index]


def fit_epoch_of_best(records: list[dict[str, Any]], metric: str) -> int:
    """The first epoch of the highest metric; of equal ones the one of higher PGD accuracy."""
    scores = [(record["validation"][metric], record["validation"].get("pgd", 0.0)) for record in records]
    return scores.index(max(scores))


# --------------------------------------------------------------------------------------------------------------- resume


EPOCHS, STEPS = 5, 4
ADVERSARIAL = Adversarial(eps=0.1, steps=2)
LONG = Recipe(epochs=EPOCHS, batch_size=32, augment="crop-flip")


def interruptions() -> list[dict[str, int]]:
    chance = random.Random(0)
    in_an_epoch = [{"at_step": chance.randrange(1, EPOCHS * STEPS)} for _ in range(3)]
    return [*in_an_epoch, {"after_epoch": chance.randrange(EPOCHS - 1)}, {"after_epoch": EPOCHS - 1}, {"at_step": 2}]


@pytest.mark.parametrize("interruption", thin(interruptions()), ids=str)
def test_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, interruption: dict[str, int]) -> None:
    """Dropout, batch statistics, random starts, augmentation and Adam's moments all go on where they were."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    student = busy()
    result = fit(student, ADVERSARIAL, recipe=LONG, out=whole)
    with pytest.raises(Interrupted):
        fit(busy(), ADVERSARIAL, recipe=LONG, out=parts, reporter=Listener(**interruption))
    if interruption == {"at_step": 2}:  # nothing was finished: there is nothing to resume
        with pytest.raises(InputError, match=f"nothing to resume: .*{RESUME}"):
            fit(busy(3), ADVERSARIAL, recipe=LONG, out=parts, resume=True)
        return
    again, listener = busy(3), Listener()  # other initial weights: a resumed training has no use for them
    resumed = fit(again, ADVERSARIAL, recipe=LONG, out=parts, resume=True, reporter=listener)
    done = interruption.get("after_epoch", interruption.get("at_step", 1) // STEPS - 1) + 1
    if "at_step" in interruption:
        done = (interruption["at_step"] - 1) // STEPS
    assert listener.started == (EPOCHS, done, STEPS)
    assert_same_state(again.state_dict(), student.state_dict(), "the resumed student")
    assert without_seconds(resumed.history) == without_seconds(result.history)
    assert (resumed.best_epoch, resumed.collapsed) == (result.best_epoch, result.collapsed)
    for name in ("best.pt", "last.pt"):
        one, other = (torch.load(folder / name, weights_only=True) for folder in (whole, parts))
        assert_same_state(other, one, f"{name} of the resumed training")
    assert without_seconds(log_of(parts)) == without_seconds(log_of(whole)), "log.jsonl of the resumed training"


@pytest.mark.slow
def test_a_kill_between_two_files_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before each file of each epoch in turn, and resumed: best.pt is the best epoch's, the log is whole."""
    student = busy()
    result = fit(student, ADVERSARIAL, recipe=LONG, out=tmp_path / "whole")
    write, written = files.write_whole, 0
    for kill_at in range(4, 10):
        written, folder = 0, tmp_path / str(kill_at)

        def write_or_die(path: Path, content: Any, kill_at: int = kill_at) -> None:
            nonlocal written
            written += 1
            if written == kill_at:
                raise Interrupted
            write(path, content)

        monkeypatch.setattr(files, "write_whole", write_or_die)
        with pytest.raises(Interrupted):
            fit(busy(), ADVERSARIAL, recipe=LONG, out=folder)
        monkeypatch.undo()
        fit(busy(3), ADVERSARIAL, recipe=LONG, out=folder, resume=True)
        best = torch.load(folder / "best.pt", weights_only=True)
        assert_same_state(best, student.state_dict(), f"best.pt after a kill before file {kill_at}")
        assert without_seconds(log_of(folder)) == without_seconds(result.history), f"log after a kill before {kill_at}"


def test_log_is_whole_again_after_a_kill_before_its_line(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fit(busy(), recipe=LONG, out=tmp_path, reporter=Listener(after_epoch=2))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    (tmp_path / "log.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:25])
    result = fit(busy(), recipe=LONG, out=tmp_path, resume=True)
    assert log_of(tmp_path) == result.history, "log.jsonl lost an epoch that the resume state has"


def test_finished_training_is_resumed_without_a_step(tmp_path: Path) -> None:
    student, again, listener = plain(), plain(5), Listener()
    learnt = Recipe(epochs=8, batch_size=16, optimizer=FAST)
    result = fit(student, recipe=learnt, out=tmp_path)
    resumed = fit(again, recipe=learnt, out=tmp_path, resume=True, reporter=listener)
    assert listener.calls == ["start"] and resumed == result
    assert_same_state(again.state_dict(), student.state_dict(), "the student of a finished training")


def test_occupied_folder_is_refused_by_train(tmp_path: Path) -> None:
    fit(plain(), out=tmp_path)
    before = (tmp_path / "log.jsonl").read_text()
    with pytest.raises(InputError, match=r"already holds a training"):
        fit(plain(), out=tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == before, "the refused training has touched the folder"


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(b"garbage" * 50),
    "without its parts": lambda path: torch.save({"progress": {}}, path),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_resume_state_is_named(tmp_path: Path, damage: str) -> None:
    fit(plain(), out=tmp_path)
    DAMAGES[damage](tmp_path / RESUME)
    with pytest.raises(InputError, match=rf"{RESUME} is damaged .*delete it") as caught:
        fit(plain(), out=tmp_path, resume=True)
    assert str(tmp_path) in str(caught.value)


def test_resume_state_of_another_network_is_refused(tmp_path: Path) -> None:
    fit(plain(), out=tmp_path)
    with pytest.raises(InputError, match="belongs to another network"):
        fit(busy(), out=tmp_path, resume=True)


# --------------------------------------------------------------------------------------------- trainings with all files


def archive(folder: Path) -> str:
    """The synthetic images as an .npz data set of 8x8 pixels."""
    parts = {}
    for name, count, seed in (("train", 150, 0), ("test", 20, 1)):
        x, y = samples(count, seed)
        parts[f"x_{name}"], parts[f"y_{name}"] = x.repeat(1, 1, 2, 2).numpy(), y.numpy()
    np.savez(folder / "quadrants.npz", **parts)
    return str(folder / "quadrants.npz")


def configured(folder: Path, name: str = "out", **changes: Any) -> TrainJob:
    """A residual network (batch normalisation) trained against an attack, into ``folder / name``."""
    settings: dict[str, Any] = {
        "out": str(folder / name),
        "data": DataConfig(name=archive(folder)),
        "model": ModelConfig(name="certkd:resnet", options={"width": 2}),
        "objective": Adversarial(eps=0.05, steps=1),
        "epochs": 3,
        "batch_size": 64,
        "device": "cpu",
    }
    return TrainJob(**{**settings, **changes})


@pytest.mark.slow
def test_files_of_a_resumed_training_equal_those_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = run_training(configured(tmp_path, "whole"))
    with pytest.raises(Interrupted):
        run_training(configured(tmp_path, "parts"), reporter=Listener(at_step=5))
    resumed = run_training(configured(tmp_path, "parts"), resume=True)
    assert without_seconds(resumed.history) == without_seconds(whole.history)
    for name in ("best.pt", "last.pt"):
        one, other = (checkpoint.load(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert_same_state(other.model.state_dict(), one.model.state_dict(), name)
        assert (other.metrics, other.training, other.data) == (one.metrics, one.training, one.data)
    logs = [log_of(tmp_path / folder) for folder in ("whole", "parts")]
    assert without_seconds(logs[0]) == without_seconds(logs[1])
    assert [record["epoch"] for record in logs[1]] == [0, 1, 2]


def test_resume_of_an_empty_folder_starts(tmp_path: Path) -> None:
    result = run_training(configured(tmp_path, epochs=1), resume=True)
    assert len(result.history) == 1


def test_occupied_folder_needs_resume_or_overwrite(tmp_path: Path) -> None:
    run_training(configured(tmp_path, epochs=2))
    with pytest.raises(InputError, match=r"2 of 2 epochs\): add --resume .* or --overwrite"):
        run_training(configured(tmp_path, epochs=2))
    (tmp_path / "out" / "notes.txt").write_text("")
    result = run_training(configured(tmp_path, epochs=1, seed=4), overwrite=True)
    assert len(result.history) == len(log_of(tmp_path / "out")) == 1
    assert (tmp_path / "out" / "notes.txt").exists(), "--overwrite deleted what certkd did not write"


def test_teacher_and_student_with_the_same_weights_are_refused() -> None:
    network = plain()
    with pytest.raises(InputError, match="share weights"):
        fit(network, Kd(), teacher=network)


CHANGES: dict[str, dict[str, Any]] = {
    "objective": {"objective": Adversarial(eps=0.06, steps=1)},
    "epochs": {"epochs": 5},
    "batch_size": {"batch_size": 32},
    "seed": {"seed": 1},
    "model": {"model": ModelConfig(name="certkd:resnet", options={"width": 4})},
    "optimizer": {"optimizer": OptimizerConfig(rate=1e-3)},
    "augment": {"augment": "crop-flip"},
    "selection": {"selection": SelectionConfig(eps="0.1")},
    "data": {"data": DataConfig(seed=1)},
    "precision": {"precision": "bfloat16"},
    "average": {"average": "swa"},
    "accumulate": {"accumulate": 2},
}


@pytest.mark.slow
def test_other_settings_are_refused_on_resume_by_name(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_training(configured(tmp_path), reporter=Listener(after_epoch=0))
    for key, change in CHANGES.items():
        with pytest.raises(InputError, match=rf"other settings \({key}\)"):
            run_training(configured(tmp_path, **change), resume=True)
    assert len(run_training(configured(tmp_path), resume=True).history) == 3, "the training itself cannot be resumed"


def test_another_teacher_under_the_same_name_is_refused_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    spec = ModelSpec(name="certkd:mlp", classes=CLASSES, shape=(1, 8, 8))
    config = configured(tmp_path, teacher=str(path), objective=Kd())
    for seed in (0, 1):
        checkpoint.save(checkpoint.Checkpoint(seeded(lambda: build(spec), seed)), path)  # type: ignore[arg-type]
        if seed == 0:
            with pytest.raises(Interrupted):
                run_training(config, reporter=Listener(after_epoch=0))
            assert checkpoint.load(tmp_path / "out" / "last.pt").teacher_sha256 == checkpoint.load(path).sha256
    with pytest.raises(InputError, match="another teacher"):
        run_training(config, resume=True)


def saved_teacher(path: Path, shape: tuple[int, ...] = (1, 8, 8), seed: int = 0) -> Path:
    """A checkpoint of a small convolutional network with random weights."""
    spec = ModelSpec(name="certkd:cnn", options={"width": 4}, classes=CLASSES, shape=shape)
    checkpoint.save(checkpoint.Checkpoint(seeded(lambda: build(spec), seed)), path)  # type: ignore[arg-type]
    return path


def test_another_natural_teacher_under_the_same_name_is_refused_on_resume(tmp_path: Path) -> None:
    path = saved_teacher(tmp_path / "natural.pt")
    config = configured(tmp_path, natural_teacher=str(path), objective=Standard())
    with pytest.raises(Interrupted):
        run_training(config, reporter=Listener(after_epoch=0))
    stored = checkpoint.load(tmp_path / "out" / "last.pt").training
    assert stored["natural_teacher"] == checkpoint.load(path).sha256
    saved_teacher(path, seed=1)
    with pytest.raises(InputError, match=r"other settings \(natural_teacher\)"):
        run_training(config, resume=True)


def test_fewer_training_images_are_the_first_and_known_on_resume(tmp_path: Path) -> None:
    few, whole = (load(DataConfig(name=archive(tmp_path), limit=limit)).splits for limit in (50, None))
    assert torch.equal(few["train"].indices, whole["train"].indices[:50]) and len(whole["train"]) == 135
    assert all(torch.equal(few[part].indices, whole[part].indices) for part in ("validation", "test"))
    assert len(load(DataConfig(name=archive(tmp_path), limit=1000)).splits["train"]) == 135
    with pytest.raises(Interrupted):
        run_training(
            configured(tmp_path, data=DataConfig(name=archive(tmp_path), limit=50)), reporter=Listener(after_epoch=0)
        )
    assert checkpoint.load(tmp_path / "out" / "last.pt").data["limit"] == 50
    with pytest.raises(InputError, match=r"other settings \(data\)"):
        run_training(configured(tmp_path), resume=True)


def test_a_teacher_of_other_image_size_sees_resized_images(tmp_path: Path) -> None:
    path = saved_teacher(tmp_path / "teacher.pt", (1, 16, 12))
    listener = Listener()
    result = run_training(configured(tmp_path, teacher=str(path), objective=Kdiga()), reporter=listener)
    warning = listener.warnings[0]
    for part in (str(path), "resized from 8x8 to 16x12", "the student's pixels", "no longer KDIGA as published"):
        assert part in warning, warning
    assert len(result.history) == 3 and result.history[0]["terms"]["iga"] > 0
    best = checkpoint.load(tmp_path / "out" / "best.pt")
    assert best.teacher_sha256 == checkpoint.load(path).sha256, "resizing must not change who the teacher is"


def test_a_teacher_of_other_channels_is_refused(tmp_path: Path) -> None:
    path = saved_teacher(tmp_path / "teacher.pt", (3, 8, 8))
    with pytest.raises(InputError, match=r"teacher.pt takes images \(3, 8, 8\), the student \(1, 8, 8\)"):
        run_training(configured(tmp_path, teacher=str(path), objective=Kdiga()))


def test_a_natural_teacher_of_an_experiment_is_for_its_students(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {
        "out": "x",
        "natural_teacher": "natural.pt",
        "teacher": {"objective": {"kind": "standard"}},
        "students": {"objectives": {"a": {"kind": "kd"}, "b": {"kind": "igd", "eps": 0.1}}},
        "certify": {"eps": "0.1"},
    }
    asked = list[TrainJob]()

    def remember(config: TrainJob, **_: object) -> None:
        asked.append(config)
        if len(asked) == 3:
            raise Interrupted

    monkeypatch.setattr(experiment, "run_training", remember)
    with pytest.raises(InputError, match=r"no such checkpoint: natural\.pt"):
        experiment.run(ExperimentConfig.parse(tree))
    with pytest.raises(InputError, match="b needs a natural teacher"):
        experiment.run(ExperimentConfig.parse({**tree, "natural_teacher": None}))
    assert not asked, "a training began before the natural teacher was known to be there"
    monkeypatch.setattr(networks, "load", lambda path, **_: None)
    monkeypatch.setattr(experiment.Deployed, "of", lambda network, file: experiment.Deployed(network, file, None))
    with pytest.raises(Interrupted):
        experiment.run(ExperimentConfig.parse(tree))
    assert [config.natural_teacher for config in asked] == [None, None, "natural.pt"]


def test_checkpoint_says_how_it_was_trained(tmp_path: Path) -> None:
    config = configured(tmp_path, epochs=1)
    result = run_training(config)
    best = checkpoint.load(tmp_path / "out" / "best.pt")
    assert TrainJob(**{**best.training, "out": config.out, "device": "cpu", "data": config.data}) == config
    assert best.metrics == result.best


# ----------------------------------------------------------------------------------------------------- terms and epochs


def test_log_has_a_line_per_epoch_with_every_term(tmp_path: Path) -> None:
    objective = Kdiga(lambda_ce=0.3, lambda_kl=0.8, lambda_iga=0.5, temperature=2)
    result = fit(plain(), objective, teacher=plain(1), out=tmp_path)
    lines = log_of(tmp_path)
    assert lines == result.history and [line["epoch"] for line in lines] == [0, 1, 2]
    for line in lines:
        terms = line["terms"]
        assert set(terms) == {"ce", "kl", "iga", "loss"}
        expected = 0.3 * terms["ce"] + 0.8 * terms["kl"] + 0.5 * terms["iga"]
        assert terms["loss"] == pytest.approx(expected, rel=1e-5), "terms times weights are not what was minimised"
    assert lines[-1]["terms"]["loss"] < lines[0]["terms"]["loss"], "training does not lower the loss"


def test_logged_term_is_the_mean_over_samples_of_all_batches() -> None:
    """With a rate of almost 0 it is the loss over the training images, the short last batch in proportion."""
    student = plain()
    x, y = samples()
    before = float(F.cross_entropy(student(x), y).detach())
    listener = Listener()
    still = Recipe(epochs=1, batch_size=50, optimizer=OptimizerConfig(rate=1e-12))
    fit(student, recipe=still, reporter=listener)
    assert listener.records[0]["terms"]["ce"] == pytest.approx(before, rel=1e-6)


def test_every_image_is_used_once_an_epoch_in_a_new_order() -> None:
    student, seen = plain(), list[Tensor]()
    student.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()) if module.training else None)
    fit(student, recipe=Recipe(epochs=2, batch_size=50))
    first, second = (
        torch.cat(seen[2:5]),
        torch.cat(seen[5:]),
    )  # after the two steps of the trial on a copy of the student
    for epoch in (first, second):
        keys = sorted(image.sum().item() for image in epoch)
        assert keys == sorted(image.sum().item() for image in samples()[0]), "an epoch is not all images once"
    assert not torch.equal(first, second), "the order is the same in each epoch"


def test_hooks_are_called_in_order() -> None:
    listener = Listener()
    result = fit(plain(), recipe=Recipe(epochs=2, batch_size=16, optimizer=FAST), reporter=listener)
    assert listener.calls == ["start", *["step"] * 8, "epoch", *["step"] * 8, "epoch"]
    assert listener.started == (2, 0, 8)
    assert listener.records == result.history


class Watch(Standard):
    """Cross-entropy; counts steps in the memory, and remembers memory and progress of each step."""

    seen: ClassVar[list[tuple[float, float]]] = []

    def terms(self, batch: Batch) -> Terms:
        batch.memory["steps"] = batch.memory.get("steps", 0.0) + 1
        self.seen.append((batch.progress, batch.memory["steps"]))
        return super().terms(batch)


def test_progress_runs_to_one_and_memory_lasts() -> None:
    Watch.seen.clear()
    fit(plain(), Watch(), recipe=Recipe(epochs=3, batch_size=50))
    assert [progress for progress, _ in Watch.seen[2:]] == pytest.approx([step / 9 for step in range(1, 10)])
    assert [steps for _, steps in Watch.seen] == [1, 1, *range(1, 10)], "the trial must leave the memory alone"


def test_memory_and_progress_go_on_where_a_training_was_interrupted(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fit(plain(), Watch(), out=tmp_path, reporter=Listener(at_step=7))
    Watch.seen.clear()
    fit(plain(), Watch(), out=tmp_path, resume=True)
    assert Watch.seen == [(step / 12, step) for step in range(5, 13)]


class Two(Standard):
    """Cross-entropy and the distance to a natural teacher's outputs."""

    needs_natural_teacher: ClassVar[bool] = True

    def terms(self, batch: Batch) -> Terms:
        assert batch.natural_teacher is not None and not batch.natural_teacher.training
        answer = batch.natural_teacher(batch.x)
        assert not answer.requires_grad, "the natural teacher is not frozen"
        return {**super().terms(batch), "natural": Term(1.0, (batch.student(batch.x) - answer).square().mean())}


def test_natural_teacher_answers_and_is_left_bit_for_bit() -> None:
    natural, student = busy(7).train(), plain()
    before = state_of(natural)
    x = samples()[0]
    with torch.no_grad(), eval_mode(natural):
        expected = float((student(x) - natural(x)).square().mean())
    still = Recipe(epochs=1, batch_size=50, optimizer=OptimizerConfig(rate=1e-12))
    result = fit(student, Two(), natural_teacher=natural, recipe=still)
    assert result.history[0]["terms"]["natural"] == pytest.approx(expected, rel=1e-5)
    assert_same_state(natural.state_dict(), before, "the natural teacher was changed")
    assert natural.training and all(p.requires_grad and p.grad is None for p in natural.parameters())


def test_one_network_may_be_both_teachers() -> None:
    both = busy(7).train()
    fit(plain(), Two(), teacher=both, natural_teacher=both)
    assert both.training and all(p.requires_grad for p in both.parameters())


# ------------------------------------------------------------------------------------------------------------ selection


SCRIPT = {"clean": [0.5, 0.9, 0.7, 0.9, 0.9, 0.8], "pgd": [0.2, 0.3, 0.6, 0.4, 0.4, 0.6]}
#: Of epochs 1, 3 and 4, equally clean, 3 and 4 are the more robust ones; the earlier one stays.
BEST = {"clean": 3, "pgd": 2}


class Keeper(Listener):
    """Remembers the student's weights of every epoch."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student, self.states = student, list[dict[str, Tensor]]()

    def epoch(self, record: dict[str, Any]) -> None:
        super().epoch(record)
        self.states.append(state_of(self.student))


@pytest.mark.parametrize("metric", ["clean", "pgd"])
def test_best_epoch_has_the_highest_metric(tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = iter(zip(*SCRIPT.values(), strict=True))

    def scripted(*arguments: Any) -> dict[str, float]:
        clean, attacked = next(script)
        return {"clean": clean, "pgd": attacked, "gradient_norm": 1.0, "constant_share": 0.3, "chance_limit": 0.3}

    monkeypatch.setattr(training, "evaluate", scripted)
    student, best = busy(), BEST[metric]
    keeper = Keeper(student)
    selection = SelectionConfig(metric=metric, eps="0.1")  # type: ignore[arg-type]
    result = fit(student, recipe=Recipe(epochs=6), selection=selection, out=tmp_path, reporter=keeper)
    assert result.best_epoch == best and result.best == result.history[best]["validation"]
    assert_same_state(student.state_dict(), keeper.states[best], "the student after training is not its best epoch")
    for name, epoch in (("best.pt", best), ("last.pt", -1)):
        found = torch.load(tmp_path / name, weights_only=True)
        assert_same_state(found, keeper.states[epoch], f"{name} is not the network of its epoch")


def test_student_ends_as_what_was_measured_in_eval_mode() -> None:
    student, selection = busy(), SelectionConfig(metric="pgd", eps="0.15")
    result = fit(student, selection=selection)
    assert not student.training, "the student is left in train mode"
    x, y = samples(80, 1)
    again = evaluate(student, Split(TensorImages(x), y, torch.arange(80)), selection, CPU)
    assert again.items() <= result.best.items()


# ------------------------------------------------------------------------------------------------------------- collapse


def digits() -> tuple[Split, Split]:
    splits = load(DataConfig()).splits
    return splits["train"], splits["validation"]


class Sharpened(nn.Module):
    """An overconfident teacher: its loss gradients vanish on almost every image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.model(x)


def digits_mlp(seed: int, hidden: list[int]) -> Classifier:
    spec = ModelSpec(name="certkd:mlp", options={"hidden": hidden}, classes=10, shape=(1, 8, 8))
    return seeded(lambda: build(spec), seed)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def confident_teacher() -> nn.Module:
    teacher = digits_mlp(5, [64])
    train(teacher, digits()[0], Standard(), validation=digits()[1], recipe=Recipe(epochs=15), device="cpu")
    return Sharpened(teacher)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [Kdiga(target="ce", lambda_iga=100), Kd()], ids=lambda o: o.kind)
def test_collapse_is_flagged_and_a_normal_training_is_not(objective: Objective, confident_teacher: nn.Module) -> None:
    listener, student = Listener(), digits_mlp(0, [64, 64, 64])
    recipe = Recipe(epochs=6, optimizer=OptimizerConfig(rate=5e-3))
    fit_to, validation = digits()
    result = train(
        student,
        fit_to,
        objective,
        teacher=confident_teacher,
        validation=validation,
        recipe=recipe,
        device="cpu",
        reporter=listener,
    )
    last = result.history[-1]["validation"]
    if objective.kind == "kd":
        assert not result.collapsed and not listener.warnings and last["clean"] > 0.8, (last, listener.warnings)
        return
    assert last["clean"] < 0.25, f"lambda_iga 100 does not collapse this student, the test needs another one: {last}"
    assert result.collapsed, f"a constant student is not flagged: {last}"
    assert len(listener.warnings) == 1 and listener.calls[-1] == "warn"
    for part in ("collapsed", "lambda_iga 100", "lower it", f"{last['clean']:.1%}"):
        assert part in listener.warnings[0], f"{part!r} is not in {listener.warnings[0]!r}"


def test_a_weak_network_of_two_classes_has_not_collapsed() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((400, 4), generator=generator)
    y = (x[:, 0] > 0.5).long()
    wrong = torch.rand(400, generator=generator) < 0.3  # so that 70 % is the best there is
    y = torch.where(wrong, 1 - y, y)
    listener = Listener()
    recipe = Recipe(epochs=10, batch_size=20, optimizer=FAST)
    halves = ((x[:200], y[:200]), (x[200:], y[200:]))
    result = train(
        nn.Linear(4, 2), halves[0], Standard(), validation=halves[1], recipe=recipe, device="cpu", reporter=listener
    )
    assert 0.6 < result.history[-1]["validation"]["clean"] < 0.8
    assert not result.collapsed and not listener.warnings, listener.warnings


# ------------------------------------------------------------------------------------------------------------- refusals


def test_wrong_natural_teachers_are_refused() -> None:
    with pytest.raises(InputError, match="needs a natural teacher: give one"):
        fit(plain(), Two(), teacher=plain(1))
    with pytest.raises(InputError, match="the natural teacher has 7 classes, the student 4"):
        fit(plain(), Two(), natural_teacher=plain(1, classes=7))
    network = plain()
    with pytest.raises(InputError, match="natural teacher and student share weights"):
        fit(network, Two(), natural_teacher=network)


@pytest.mark.parametrize("objective", [Kd(), Kdiga()], ids=lambda o: o.kind)
def test_missing_teacher_is_refused(objective: Objective) -> None:
    with pytest.raises(InputError, match=f"{objective.kind}.* needs a teacher"):
        fit(plain(), objective)


@pytest.mark.parametrize("objective", [Standard(), Kd()], ids=lambda o: o.kind)
def test_teacher_of_other_classes_is_refused(objective: Objective) -> None:
    with pytest.raises(InputError, match="the teacher has 7 classes, the student 4"):
        fit(plain(), objective, teacher=plain(1, classes=7))


def test_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match=r"not finite in epoch \d.*lower the learning rate"):
        fit(plain(), recipe=Recipe(epochs=8, optimizer=OptimizerConfig(kind="sgd", rate=1e30)))


def test_numbers_of_images_and_labels_must_agree() -> None:
    x, y = samples()
    with pytest.raises(InputError, match="got 120 and 119"):
        train(plain(), (x, y[1:]), Standard(), device="cpu")


def test_absent_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"'cuda'.*no CUDA device.*--device cpu"):
        fit(plain(), device="cuda")
    assert choose_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto").type == "cuda" and choose_device("cuda:1").index == 1
    with pytest.raises(InputError, match=r"'cuda:2'.*2 CUDA devices"):
        choose_device("cuda:2")
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        choose_device("gpu")


# ---------------------------------------------------------------------------------------------------------- TensorBoard


@pytest.mark.parametrize("interrupt", [None, 1], ids=["to the end", "interrupted"])
def test_tensorboard_has_every_term(tmp_path: Path, interrupt: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    close, closed = RunLog.close, list[bool]()
    monkeypatch.setattr(RunLog, "close", lambda self: (closed.append(True), close(self)))
    try:
        fit(plain(), Kd(), teacher=plain(1), out=tmp_path, reporter=Listener(after_epoch=interrupt))
    except Interrupted:
        assert interrupt is not None
    assert closed, "the TensorBoard file was not closed: its last minutes can be lost"
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    wanted = {"terms/ce", "terms/kl", "terms/loss", "validation/clean"}
    assert wanted <= set(events.Tags()["scalars"]), "epochs are missing in the TensorBoard file"
    logged = [event.value for event in events.Scalars("terms/kl")]
    assert logged == pytest.approx([line["terms"]["kl"] for line in log_of(tmp_path)], rel=1e-6)


def test_training_works_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    fit(plain(), out=tmp_path)
    assert len(log_of(tmp_path)) == 3 and not (tmp_path / "tensorboard").exists()


# --------------------------------------------------------------------------------------- schedule, augmentation, splits


@pytest.mark.parametrize("shape", [(3, 5, 5), (1, 4, 6)])
def test_crop_and_flip_against_a_literal_loop(shape: tuple[int, int, int]) -> None:
    x = 0.1 + 0.9 * torch.rand((40, *shape), generator=torch.Generator().manual_seed(1))
    found = crop_and_flip(x, torch.Generator().manual_seed(2), padding=2)
    again = torch.Generator().manual_seed(2)
    tops, lefts = torch.randint(0, 5, (2, 40), generator=again).tolist()
    mirrored = (torch.rand(40, generator=again) < 0.5).tolist()
    expected = torch.zeros_like(x)
    channels, height, width = shape
    for i in range(40):
        for c in range(channels):
            for row in range(height):
                for column in range(width):
                    r, k = row + tops[i] - 2, column + lefts[i] - 2
                    target = width - 1 - column if mirrored[i] else column
                    if 0 <= r < height and 0 <= k < width:
                        expected[i, c, row, target] = x[i, c, r, k]
    assert torch.equal(found, expected)
    assert 0 < sum(mirrored) < 40 and set(tops) == set(lefts) == set(range(5)), "some crops never come up"


def test_augmentation_is_for_training_images_only() -> None:
    fed: dict[bool, list[Tensor]] = {True: [], False: []}
    student = plain()
    student.register_forward_pre_hook(lambda module, given: fed[module.training].append(given[0].detach()))
    fit(student, recipe=Recipe(epochs=1, batch_size=120, augment="crop-flip"))
    images = {tuple(image.ravel().tolist()) for image in samples()[0]}
    kept = sum(tuple(image.ravel().tolist()) in images for image in fed[True][-1])
    assert kept < 12, f"{kept} of 120 training images were not augmented"
    evaluated = torch.cat([batch for batch in fed[False] if len(batch) > 1])  # a single image only sizes the network
    assert torch.equal(evaluated, samples(80, 1)[0]), "validation images were augmented"


def ids(images: list[Tensor]) -> set[float]:
    return {float(image.sum()) for batch in images for image in batch}


def test_validation_split_by_default_is_a_tenth_cut_by_the_seed() -> None:
    held_out = []
    for seed in (0, 0, 1):
        fed: dict[bool, list[Tensor]] = {True: [], False: []}
        student = plain()
        student.register_forward_pre_hook(lambda module, given, fed=fed: fed[module.training].append(given[0].detach()))
        train(student, samples(), Standard(), recipe=Recipe(epochs=1), seed=seed, device="cpu")
        evaluated = ids([batch for batch in fed[False] if len(batch) > 1])  # a single image only sizes the network
        assert len(evaluated) == 12 and len(ids(fed[True])) == 108
        assert not ids(fed[True]) & evaluated, "an image is in both splits"
        held_out.append(evaluated)
    assert held_out[0] == held_out[1] != held_out[2], "the split is not cut by the seed"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_tensors_and_a_plain_module_are_enough(dtype: torch.dtype) -> None:
    x, y = samples()
    images = (255 * x).round().to(dtype) if dtype == torch.uint8 else x.to(dtype)
    student = plain()
    recipe = Recipe(epochs=30, batch_size=16, optimizer=FAST)
    result = train(student, (images, y.int()), Standard(), recipe=recipe, device="cpu")
    assert len(result.history) == 30 and result.history[-1]["terms"]["ce"] < 0.3
    accuracy = float((student(samples(200, 5)[0]).argmax(1) == samples(200, 5)[1]).float().mean())
    assert accuracy > 0.9, f"the student learnt nothing: {accuracy:.2f}"


def test_flat_images_are_images() -> None:
    x, y = samples()
    student = seeded(lambda: nn.Linear(16, CLASSES), 0)
    result = train(student, (x.flatten(1), y), Kdiga(), teacher=plain(1), recipe=Recipe(epochs=2), device="cpu")
    assert len(result.history) == 2


# ---------------------------------------------------------------------------------------------------------- the command


def command(*words: str | Path) -> int:
    """Exit code of ``certkd train``."""
    arguments = [*map(str, words), "--device", "cpu"]
    result = CliRunner().invoke(train_command, arguments, standalone_mode=False, catch_exceptions=False)
    assert isinstance(result.return_value, int), result.output
    return result.return_value


def test_a_teacher_is_enough_to_train_the_default_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the teacher's data lie
    whole = run_training(configured(tmp_path, "teacher", epochs=1, model=ModelConfig(), objective=Standard()))
    teacher, out = tmp_path / "teacher" / "best.pt", tmp_path / "student"
    assert len(whole.history) == 1
    assert command("--teacher", teacher, "--out", out, "--set", "epochs=2") in (0, 1)
    best = checkpoint.load(out / "best.pt")
    expected = TrainJob(out="", objective=Kdiga(), epochs=2).model_dump(mode="json")
    assert {key: best.training[key] for key in ("objective", "model", "optimizer", "epochs", "batch_size")} == {
        key: expected[key] for key in ("objective", "model", "optimizer", "epochs", "batch_size")
    }
    assert best.data == checkpoint.load(teacher).data and best.teacher_sha256 == checkpoint.load(teacher).sha256


def test_options_of_the_command_override_the_file(tmp_path: Path) -> None:
    teacher, other = (saved_teacher(tmp_path / f"{seed}.pt", seed=seed) for seed in (0, 1))
    text = f"out: {tmp_path}/a\nteacher: {other}\nobjective: {{kind: kd}}\nepochs: 1\nmodel: {{name: certkd:cnn}}\n"
    (tmp_path / "config.yaml").write_text(text)
    options = ("--teacher", teacher, "--out", tmp_path / "b", "--data", archive(tmp_path))
    assert command("--config", tmp_path / "config.yaml", *options) in (0, 1)
    best = checkpoint.load(tmp_path / "b" / "best.pt")
    assert best.teacher_sha256 == checkpoint.load(teacher).sha256 and best.data["name"] == archive(tmp_path)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("words", [(), ("--teacher", "t.pt"), ("--out", "x")], ids=str)
def test_too_little_to_train_says_what_to_give(words: tuple[str, ...]) -> None:
    with pytest.raises(
        InputError, match=r"give a configuration \(--config FILE, or bare\), or --teacher CHECKPOINT and --out DIR"
    ):
        command(*words)
