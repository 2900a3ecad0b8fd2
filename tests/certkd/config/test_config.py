"""The configuration: what is read, and what is refused with which words."""

import re
from pathlib import Path
from typing import Any

import pytest

import certkd
from certkd.config.experiment import CertifySection, ExperimentConfig
from certkd.config.reading import _load_file, read
from certkd.config.settings import DataConfig, ModelConfig, TrainJob
from certkd.objectives import OBJECTIVES
from tests.paths import ROOT
from verifiers.certify.config import CertifyConfig
from verifiers.core.errors import InputError

TRAINING: dict[str, Any] = {"out": "somewhere", "objective": {"kind": "kdiga"}}
EXPERIMENT: dict[str, Any] = {
    "out": "somewhere",
    "teacher": {"objective": {"kind": "adversarial", "eps": "0.1"}},
    "students": {"objectives": {"plain": {"kind": "standard"}}},
    "certify": {"eps": "8/255"},
}


def training(**changes: Any) -> TrainJob:
    """A training configuration with some keys changed."""
    return TrainJob.parse({**TRAINING, **changes})


def refusal(tree: dict[str, Any], kind: Any = TrainJob) -> str:
    """The message that refuses a tree; it is one line."""
    with pytest.raises(InputError) as caught:
        kind.parse(tree, source="configuration")
    assert "\n" not in str(caught.value), "a refusal must be one line"
    return str(caught.value)


def written(folder: Path, text: str) -> Path:
    """A YAML file with that text."""
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def reading_refused(path: Path, overrides: tuple[str, ...] = ()) -> str:
    """The one line that refuses a file."""
    with pytest.raises(InputError) as caught:
        read(path, TrainJob, overrides)
    assert "\n" not in str(caught.value), "a refusal must be one line"
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("1e-3", 1e-3), ("0.1", 0.1), (0.1, 0.1), ("1E3", 1000.0), (3, 3.0), ("8 / 255", 8 / 255)],
)
def test_numbers_as_people_write_them(text: Any, value: float) -> None:
    config = training(optimizer={"rate": text})
    assert config.optimizer.rate == value, f"{text!r} must be read as exactly {value}"


@pytest.mark.parametrize("bad", [True, "true", "nan", float("nan"), "inf", float("inf"), "0x10", "2/0", -1, "-1", ""])
def test_what_is_not_a_number_is_refused_and_repeated(bad: Any) -> None:
    message = refusal({**TRAINING, "optimizer": {"rate": bad}})
    assert "optimizer.rate" in message, f"the message must name the key: {message}"
    assert repr(bad) in message, f"the message must repeat {bad!r}: {message}"


@pytest.mark.parametrize("bad", [True, "nan", "inf", "0x10", "2/0", -1, 0, "0/255", "-8/255", [1]])
def test_a_wrong_eps_is_refused_and_repeated(bad: Any) -> None:
    message = refusal({"eps": bad}, CertifyConfig)
    assert "eps" in message and repr(bad) in message, f"eps and {bad!r} must be in: {message}"


def test_eps_keeps_its_text() -> None:
    assert CertifyConfig.parse({"eps": "8/255"}).eps == "8/255", "eps must stay as it was written"


@pytest.mark.parametrize("bad", [0, 1.5, "3/2", True, -2, "many"])
def test_a_count_is_a_whole_number_of_one_or_more(bad: Any) -> None:
    assert "epochs" in refusal({**TRAINING, "epochs": bad}), f"{bad!r} is no number of epochs"


def test_a_whole_number_may_be_written_with_an_exponent() -> None:
    assert training(epochs="1e2").epochs == 100, "1e2 epochs are 100"


@pytest.mark.parametrize("bad", [-1, True, 2**63, 1.5, "x"])
def test_a_seed_that_no_generator_takes_is_refused(bad: Any) -> None:
    assert "seed" in refusal({**TRAINING, "seed": bad})
    assert "data.seed" in refusal({**TRAINING, "data": {"seed": bad}})


def test_a_number_too_large_for_a_float_is_refused() -> None:
    assert "optimizer.rate" in refusal({**TRAINING, "optimizer": {"rate": "1e999"}})


@pytest.mark.parametrize(
    ("change", "key", "near"),
    [
        ({"epoch": 3}, "epoch", "epochs"),
        ({"optimizer": {"ratee": 1}}, "optimizer.ratee", "rate"),
        ({"data": {"nme": "digits"}}, "data.nme", "name"),
        ({"selection": {"metrik": "pgd"}}, "selection.metrik", "metric"),
        ({"objective": {"kind": "kdiga", "lamda_iga": 1}}, "objective.lamda_iga", "lambda_iga"),
        ({"objective": {"kind": "adversarial", "eps": 1, "stps": 1}}, "objective.stps", "steps"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(change: dict[str, Any], key: str, near: str) -> None:
    message = refusal({**TRAINING, **change})
    assert f"unknown setting '{key}'." in message, f"the key must stand as in the file: {message}"
    assert f"Did you mean {near!r}?" in message, f"the nearest known key is {near!r}: {message}"


@pytest.mark.parametrize("name", ["mine", "kd", "standard", "kdiga", "eps"])
def test_an_unknown_key_of_a_student_whatever_its_name(name: str) -> None:
    objectives = {name: {"kind": "kdiga", "lamda_iga": 1}}
    message = refusal({**EXPERIMENT, "students": {"objectives": objectives}}, ExperimentConfig)
    assert f"unknown setting 'students.objectives.{name}.lamda_iga'. Did you mean 'lambda_iga'?" in message, message


def test_an_unknown_key_far_from_all_lists_the_known_ones() -> None:
    message = refusal({**TRAINING, "data": {"zzz": 1}})
    assert "Known: channels, download, image_size, limit, name, root, seed." in message, message


def test_further_problems_are_counted() -> None:
    assert "(and 1 more)" in refusal({**TRAINING, "zzz": 1, "epochs": "x"})


def test_a_missing_key_is_named() -> None:
    assert "the setting out is missing: give one, like out=runs/first" in refusal({"objective": {"kind": "standard"}})
    message = refusal({**EXPERIMENT, "certify": {}}, ExperimentConfig)
    assert message == "configuration: the setting certify.eps is missing: give one, like eps=8/255"


def test_an_unknown_objective_lists_the_known_ones() -> None:
    message = refusal({**TRAINING, "objective": {"kind": "kdig"}})
    assert "objective" in message and "'kdig'" in message and "'kdiga'" in message, message


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"data": 3}, "data"),
        ({"out": [1]}, "out"),
        ({"model": {"options": "wide"}}, "model.options"),
        ({"augment": "mixup"}, "augment"),
        ({"selection": {"norm": "linff"}}, "selection.norm"),
        ({"selection": {"metric": "pgd"}}, "selection"),
        ({"optimizer": {"milestones": 0.5}}, "optimizer.milestones"),
        ({"optimizer": {"milestones": [0.5, "x"]}}, "optimizer.milestones.1"),
        ({"model": {"normalize": "perhaps"}}, "model.normalize"),
    ],
)
def test_a_wrong_type_names_its_key(change: dict[str, Any], key: str) -> None:
    message = refusal({**TRAINING, **change})
    assert f": {key}" in message, f"{key} must be named: {message}"


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ({"milestones": [60, 85]}, "got 60: after 60 of 100 epochs is 0.6"),
        ({"milestones": [0]}, "got 0"),
        ({"drop": 10}, "optimizer.drop"),
        ({"warmup": 60}, "a warm-up of 60 epochs does not end in 60"),
        ({"schedule": "cosine", "milestones": [0.5]}, "milestones (0.5,) has no effect with the other settings"),
        ({"schedule": "constant", "drop": 0.3}, "drop 0.3 has no effect with the other settings"),
    ],
    ids=str,
)
def test_a_schedule_that_never_does_what_it_says_is_refused(optimizer: dict[str, Any], told: str) -> None:
    message = refusal({**TRAINING, "epochs": 60, "optimizer": optimizer})
    assert told in message, message


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ({"average_decay": 0.9}, "average_decay 0.9 has no effect"),
        ({"average": "swa", "average_decay": 0.9}, "average_decay 0.9 has no effect"),
        ({"average_from": 0.5}, "average_from 0.5 has no effect"),
    ],
    ids=str,
)
def test_an_average_that_is_not_taken_is_refused(recipe: dict[str, Any], told: str) -> None:
    assert refusal({**TRAINING, **recipe}).startswith(f"configuration: {told}")
    assert training(average="swa", average_from=0.5).average_from == 0.5


@pytest.mark.parametrize("name", ["teacher", "../x", "a/b", "", ".hidden"])
def test_a_student_is_not_named_like_the_teacher_or_a_path(name: str) -> None:
    students = {"objectives": {name: {"kind": "standard"}}}
    message = refusal({**EXPERIMENT, "students": students}, ExperimentConfig)
    assert "students.objectives" in message and repr(name) in message, message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    message = reading_refused(tmp_path / "none.yaml")
    assert "no such configuration" in message and "none.yaml" in message, message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("out: [", "is not YAML"),
        ("- a\n- b\n", "it holds list"),
        ("", "it is empty"),
        ("just words", "it holds str"),
        ("out: a\nout: b\nobjective: {kind: standard}\n", 'line 2: found duplicate key "out"'),
        ("out: a\nobjective: {kind: standard, kind: kd}\n", 'found duplicate key "kind"'),
        ("? [a, b]\n: c\n", "must be a word"),
        ("out: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        ("out: &a {x: *a}\n", "refers to the section that it is in"),
        ("a: 1\n---\nb: 2\n", "found another document"),
        ("out: " + "[" * 100 + "]" * 100, "nested too deeply"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    message = reading_refused(written(tmp_path, text))
    assert words in message and "config.yaml" in message, message


def test_a_key_given_twice_is_found_by_its_line(tmp_path: Path) -> None:
    assert "line 4" in reading_refused(written(tmp_path, "out: a\nobjective:\n  kind: kd\n  kind: kdiga\n"))


def test_a_folder_and_bytes_are_no_configuration(tmp_path: Path) -> None:
    assert "cannot read" in reading_refused(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    reading_refused(tmp_path / "b.yaml")


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    text = "out: a\noptimizer: &o {rate: 1e-2, drop: 0.5}\nobjective: {kind: standard}\n"
    assert read(written(tmp_path, text + "data: {}\n"), TrainJob).optimizer.drop == 0.5
    merged = "defaults: &d {out: a, epochs: 3}\n<<: *d\nobjective: {kind: standard}\n"
    assert "unknown setting 'defaults'" in reading_refused(written(tmp_path, merged)), "a merge is no unknown tag"


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("seed: 2026-11-20", "seed"),
        ("epochs: 1:30", "epochs"),
        ("optimizer: {rate: .nan}", "optimizer.rate"),
        ("out: 1.0", "out"),
    ],
)
def test_words_where_numbers_belong_are_refused(tmp_path: Path, line: str, key: str) -> None:
    text = "objective: {kind: standard}\n" + ("" if line.startswith("out") else "out: a\n") + line + "\n"
    assert f": {key}" in reading_refused(written(tmp_path, text)), f"{line} must be refused by its key"


def test_numbers_with_an_exponent_and_fractions(tmp_path: Path) -> None:
    path = written(tmp_path, "out: a\nobjective: {kind: standard}\noptimizer: {rate: 1e-3, weight_decay: 1/2000}\n")
    optimizer = read(path, TrainJob).optimizer
    assert (optimizer.rate, optimizer.weight_decay) == (1e-3, 1 / 2000)


def test_a_leading_zero_does_not_make_a_number_octal(tmp_path: Path) -> None:
    text = "out: a\nobjective: {kind: standard}\nepochs: 010\nbatch_size: 0x10\n"
    config = read(written(tmp_path, text), TrainJob)
    assert config.epochs == 10, "YAML 1.1 reads 010 as 8"
    assert config.batch_size == 16, "YAML 1.2 knows 0x10"


def test_overrides_reach_any_depth(tmp_path: Path) -> None:
    path = written(tmp_path, "out: a\nobjective: {kind: kdiga}\n")
    overrides = ["objective.lambda_iga=1/3", "data.seed=7", "model.options.hidden=[8, 9]", "out=b=c", "epochs = 5"]
    config = read(path, TrainJob, overrides)
    assert config.objective.lambda_iga == 1 / 3, "a key below an existing section"
    assert config.data.seed == 7, "a key below a section that the file does not have"
    assert config.model.options == {"hidden": [8, 9]}, "a list two sections deep"
    assert (config.out, config.epochs) == ("b=c", 5), "only the first = separates; blanks do not matter"


def test_the_last_override_wins(tmp_path: Path) -> None:
    path = written(tmp_path, "out: a\nobjective: {kind: standard}\nepochs: 1\n")
    assert read(path, TrainJob, ["epochs=2", "epochs=3"]).epochs == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epochs", "must look like key=value"),
        ("=3", "must look like key=value"),
        ("out.deeper=3", "'out' is a value, not a section"),
        ("epochs=[", "not YAML"),
        ("epoch=3", "Did you mean 'epochs'?"),
        ("epochs=", "epochs"),
        ("data={name: a, name: b}", "duplicate key"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, words: str) -> None:
    path = written(tmp_path, "out: a\nobjective: {kind: standard}\n")
    assert words in reading_refused(path, (override,)), f"--set {override}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_committed_configuration_is_valid(path: Path) -> None:
    tree = _load_file(path)
    kind = ExperimentConfig if "students" in tree or isinstance(tree.get("teacher"), dict) else TrainJob
    assert read(path, kind).out.startswith("artifacts/"), "outputs belong below artifacts/, which is not committed"


def test_there_are_configurations() -> None:
    assert (ROOT / "configs" / "digits.yaml").is_file(), "the default experiment is gone"


def test_a_configuration_cannot_change() -> None:
    config = training()
    for owner, key in ((config, "epochs"), (config.data, "seed"), (config.objective, "lambda_iga")):
        with pytest.raises(InputError, match=f"{key} cannot change: build a new"):
            setattr(owner, key, 1)


def test_defaults_are_not_shared_between_configurations() -> None:
    ModelConfig().options["depth"] = 8
    assert ModelConfig().options == {}, "one configuration's options must not reach another"


def test_a_configuration_survives_its_own_json() -> None:
    config = ExperimentConfig.parse(EXPERIMENT)
    assert ExperimentConfig.parse(config.model_dump(mode="json")) == config


def test_every_objective_is_a_name_of_the_package() -> None:
    for objective in OBJECTIVES:
        assert getattr(certkd, objective.__name__) is objective and objective.__name__ in dir(certkd)


def test_python_keywords_are_read_like_yaml() -> None:
    assert DataConfig(seed=3).seed == 3
    with pytest.raises(InputError, match=r"^unknown setting 'sede'. Did you mean 'seed'\?$"):
        DataConfig(sede=3)


# a file that extends another


def files(folder: Path, **texts: str) -> Path:
    """YAML files of those names; the path of ``a.yaml``."""
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "a.yaml"


def test_a_file_goes_on_from_another_one_and_the_later_wins(tmp_path: Path) -> None:
    path = files(
        tmp_path,
        a="extends: deeper/b.yaml\nepochs: 3\noptimizer: {rate: 0.1}\nobjective: {kind: kdiga, lambda_iga: 3}\n",
        deeper__b="extends: ../c.yaml\nout: b\noptimizer: {schedule: cosine, rate: 0.5}\n",
        c="out: c\nepochs: 9\nseed: 4\nobjective: {kind: kdiga, temperature: 2, lambda_iga: 5}\n",
    )
    config = read(path, TrainJob, ["seed=7"])
    assert (config.out, config.epochs, config.seed) == ("b", 3, 7), "--set comes last"
    assert (config.optimizer.rate, config.optimizer.schedule) == (0.1, "cosine"), "sections are merged"
    assert (config.objective.lambda_iga, config.objective.temperature) == (3, 2), "of the same kind: merged"


def test_a_section_of_another_kind_or_network_starts_anew(tmp_path: Path) -> None:
    path = files(
        tmp_path,
        a="extends: b.yaml\nobjective: {kind: adversarial, eps: 0.1}\nmodel: {name: certkd:cnn}\n",
        b="out: b\nobjective: {kind: kd, temperature: 2}\n"
        "model: {name: certkd:mlp, options: {hidden: [3]}, normalize: false}\n",
    )
    config = read(path, TrainJob)
    assert config.objective.kind == "adversarial" and config.objective.eps == 0.1
    assert config.model.options == {} and config.model.normalize, "keys about another network stay"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"a": "extends: b.yaml\n"}, ("no such configuration", "b.yaml", "a.yaml extends it")),
        ({"a": "extends: b.yaml\n", "b": "extends: a.yaml\n"}, ("b.yaml extends", "a.yaml, which extends it")),
        ({"a": "extends: a.yaml\n"}, ("a.yaml extends", "which extends it")),
        ({"a": "extends: [b.yaml]\n"}, ("extends must name one file, got ['b.yaml']",)),
        ({"a": "extends:\n"}, ("extends must name one file, got None",)),
        ({"a": "extends: b.yaml\n", "b": "epoch: 1\nout: b\nobjective: {kind: kd}\n"}, ("unknown setting 'epoch'",)),
        ({"a": "objective: {kind: kdgia}\n"}, ("objective: unknown kind 'kdgia'. Did you mean 'kdiga'?",)),
        ({"a": "optimizer: adamm\n"}, ("optimizer must be settings by name, like {kind: adam}, got 'adamm'",)),
        ({"a": "extends: b.yaml\n", "b": "- 1\n"}, ("b.yaml must hold key: value lines", "a.yaml extends it")),
    ],
    ids=["missing", "cycle", "itself", "list", "empty", "unknown setting", "kind", "no settings", "no section"],
)
def test_a_wrong_extension_is_refused_in_one_line(
    tmp_path: Path, texts: dict[str, str], words: tuple[str, ...]
) -> None:
    message = reading_refused(files(tmp_path, **texts))
    assert all(word in message for word in words), message


def test_defaults_stand_where_there_is_no_file() -> None:
    config = read(None, TrainJob, ["out=x", "epochs=2"], defaults={"objective": {"kind": "kd"}})
    assert (config.out, config.epochs, config.objective.kind) == ("x", 2, "kd")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"precision": "float16"}, "precision"),
        ({"average": "mean"}, "average"),
        ({"average_decay": 1}, "average_decay"),
        ({"average_from": "1"}, "average_from"),
        ({"accumulate": 0}, "accumulate"),
        ({"optimizer": {"warmup": -1}}, "optimizer.warmup"),
        ({"data": {"limit": 0}}, "data.limit"),
        ({"model": {"resize": 0}}, "model.resize"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change: dict[str, Any], key: str) -> None:
    assert key in refusal({**TRAINING, **change})


# Several properties of student and teacher


def section(*properties: str, **match: Any) -> CertifySection:
    methods = ["crown", {"kind": "match", "steps": 7, **match}]
    return CertifySection.parse({"eps": "0.1", "methods": methods, "properties": properties})


def test_each_property_is_a_question_of_its_own() -> None:
    first, *others = section("same-class", "close = 1/4", "transfer", bisect=True, time_limit=3).asked()
    assert first.kinds == ("crown", "match") and [one.kinds for one in others] == [("match",), ("match",)]
    found = [one.methods[-1].options for one in (first, *others)]
    assert [one["property"] for one in found] == ["same-class", "close", "transfer"]
    assert [one["tolerance"] for one in found] == [0.0, 0.25, 0.0]
    assert [one["bisect"] for one in found] == [True, True, False], "transfer has no threshold"
    assert {(one["steps"], one["time_limit"]) for one in found} == {(7, 3.0)}


def test_properties_stand_in_place_of_the_method_s_own() -> None:
    (one,) = section("not-worse=2", property="close", tolerance=1).asked()
    assert one.kinds == ("crown", "match")
    assert (one.methods[-1].options["property"], one.methods[-1].options["tolerance"]) == ("not-worse", 2.0)
    (alone,) = section(property="close", tolerance=1).asked()
    assert alone.methods[-1].options["property"] == "close", "without properties, the method's own"


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        (("close=1", "close=1.0"), "the property close1 is given twice: drop one of them"),
        (("transfer=1",), "transfer has no threshold: drop =1"),
        (("close",), "close needs a tolerance above 0, in logits, like 0.05"),
        (("clos=1",), "unknown property 'clos'. Did you mean 'close'?"),
        (("close=x",), "'x' is not a number"),
    ],
)
def test_properties_that_do_not_exist(properties: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        section(*properties)


def test_properties_need_the_method_that_decides_them() -> None:
    with pytest.raises(InputError, match="properties are decided by the method match: add it to the methods"):
        CertifySection.parse({"eps": "0.1", "methods": ["crown"], "properties": ["close=1"]})
