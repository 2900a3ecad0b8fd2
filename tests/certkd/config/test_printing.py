"""A printed configuration has every setting with its meaning, and is read as the same settings."""

from pathlib import Path
from typing import Literal

import pytest

from certkd.config.experiment import CertifySection, ExperimentConfig, RoleConfig, StudentsConfig
from certkd.config.printing import choices, commented, meanings
from certkd.config.reading import read
from certkd.config.settings import DataConfig, ModelConfig, OptimizerConfig, SelectionConfig, Threat, TrainJob
from tests.cli import succeeds
from tests.paths import ROOT
from verifiers.core.quantities import Norm
from verifiers.core.settings import Strict

SECTIONS = (DataConfig, ModelConfig, OptimizerConfig, SelectionConfig, Threat, TrainJob, ExperimentConfig)
ROLES = (RoleConfig, StudentsConfig, CertifySection)


class Small(Strict):
    """A section.

    Attributes:
        first, second: two words that are long enough
            for a second line.
        word: one of a few.

    Text after the list.
    """

    first: str = "a # b"
    second: str | None = None
    word: Literal["yes", "no"] = "no"
    share: float = 0.5
    numbers: tuple[int, ...] = (1, 2)


class Whole(Strict):
    """A section with sections.

    Attributes:
        inner: what is inside.
        named: by name.
    """

    inner: Small = Small()
    named: dict[str, Small] = {"a: b": Small(word="yes")}
    listed: tuple[Small, ...] = (Small(second="8/255"),)
    none: dict[str, int] = {}


def test_a_small_section_line_by_line() -> None:
    assert commented(Small()).splitlines() == [
        'first: "a # b"  # two words that are long enough for a second line',
        "second: null  # two words that are long enough for a second line",
        'word: "no"  # one of a few. yes, no',
        "share: 0.5",
        "numbers: [1, 2]",
    ]


def test_sections_inside_sections_line_by_line() -> None:
    lines = [line.partition("  #")[0] for line in commented(Whole()).splitlines()]
    small = ['first: "a # b"', "second: null", 'word: "no"', "share: 0.5", "numbers: [1, 2]"]
    assert lines == [
        "# what is inside",
        "inner:",
        *(f"  {line}" for line in small),
        "# by name",
        "named:",
        '  "a: b":',
        *(f"    {line}".replace('"no"', '"yes"') for line in small),
        "listed:",
        f"  - {small[0]}",
        '    second: "8/255"',
        *(f"    {line}" for line in small[2:]),
        "none: {}",
    ]


@pytest.mark.parametrize("settings", [Small(), Whole(), Whole(named={}, listed=())])
def test_what_is_printed_is_read_again(settings: Strict, tmp_path: Path) -> None:
    path = tmp_path / "printed.yaml"
    path.write_text(commented(settings))
    assert read(path, type(settings)) == settings


def test_meanings_are_those_of_the_class_and_of_its_bases() -> None:
    assert set(meanings(Small)) == {"first", "second", "word"}
    assert meanings(Small)["second"] == "two words that are long enough for a second line"
    assert meanings(TrainJob)["out"] == "the folder of its outputs"
    assert meanings(TrainJob)["seed"] == "keys initial order, attacks, noise and augmentation"
    assert choices(Norm) == ["linf", "l2", "l1"] and choices(int) == [] == choices(Literal["one"])


@pytest.mark.parametrize("section", (*SECTIONS, *ROLES), ids=lambda section: section.__name__)
def test_every_setting_of_a_file_has_a_meaning(section: type[Strict]) -> None:
    without = set(section.model_fields) - set(meanings(section))
    assert not without, f"{section.__name__}: the docstring says nothing about {', '.join(sorted(without))}"


@pytest.mark.parametrize("name", ["digits.yaml", "digits-objectives.yaml", "digits-smoothing.yaml"])
def test_experiments_that_ship_are_printed_whole(name: str, tmp_path: Path) -> None:
    settings, path = read(ROOT / "configs" / name, ExperimentConfig), tmp_path / "printed.yaml"
    path.write_text(commented(settings))
    assert read(path, ExperimentConfig) == settings
    assert max(map(len, path.read_text().splitlines())) <= 130


def test_trainings_that_ship_are_printed_whole(tmp_path: Path) -> None:
    for file in sorted((ROOT / "configs" / "digits").glob("*.yaml")):
        path = tmp_path / file.name
        settings = read(file, TrainJob, ["out=x", "objective={kind: kd}"] if file.name == "student.yaml" else ())
        path.write_text(commented(settings))
        assert read(path, TrainJob) == settings, file.name


def test_commands_print_a_configuration_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("printed.yaml")
    path.write_text(succeeds("train", "--print-config"))
    assert read(path, TrainJob).objective.kind == "standard" and read(path, TrainJob).out == "runs/first"
    path.write_text(succeeds("train", "--print-config", "--teacher", "t.pt", "--data", "mnist", "--set", "epochs=3"))
    job = read(path, TrainJob)
    assert (job.objective.kind, job.teacher, job.data.name, job.epochs) == ("kdiga", "t.pt", "mnist", 3)
    path.write_text(succeeds("train", path, "--print-config", "--set", "epochs=4"))
    assert read(path, TrainJob) == job.model_copy(update={"epochs": 4})
    path.write_text(succeeds("run", ROOT / "configs" / "digits.yaml", "--print-config", "--device", "cpu"))
    assert read(path, ExperimentConfig) == read(ROOT / "configs" / "digits.yaml", ExperimentConfig, ["device=cpu"])
    assert list(tmp_path.iterdir()) == [tmp_path / "printed.yaml"], "printing must not run anything"
