"""The command line, YAML and Python build one configuration, and refuse a mistake with one line."""

from pathlib import Path
from typing import Any

import pytest

from certkd.cli.certify import certify
from certkd.cli.question import certify_config, default_out, marks_of
from certkd.config.experiment import ExperimentConfig
from certkd.config.reading import read
from tests.cli import refused
from verifiers.certify.config import CertifyConfig
from verifiers.core.errors import InputError
from verifiers.methods.complete import Complete
from verifiers.methods.crown import Crown
from verifiers.methods.pgd import Pgd
from verifiers.methods.smoothing import Smoothing


def typed(arguments: str) -> CertifyConfig:
    """The configuration of ``certkd certify`` with these arguments."""
    options = certify.make_context("certify", ["--model", "net.pt", *arguments.split()]).params
    return certify_config(options.pop("eps"), options)


def from_yaml(folder: Path, section: str) -> dict[str, Any]:
    """The fields of the section ``certify`` of an experiment, and their values."""
    path = folder / "run.yaml"
    path.write_text(
        "out: x\nteacher: {objective: {kind: standard}}\nstudents: {objectives: {kd: {kind: kd}}}\n"
        f"certify: {{{section}}}\n"
    )
    return {name: value for name, value in read(path, ExperimentConfig).certify if name not in ("limit", "properties")}


SAME: dict[str, tuple[str, str, CertifyConfig]] = {
    "defaults": ("--eps 8/255", "eps: 8/255", CertifyConfig(eps="8/255", methods=("pgd", "ibp", "crown"))),
    "teacher": (
        "--eps 0.1 --teacher t.pt",
        "eps: 0.1, methods: [pgd, ibp, crown, joint]",
        CertifyConfig(eps=0.1, methods=("pgd", "ibp", "crown", "joint")),
    ),
    "everything": (
        "--eps 0.1 --norm l2 --methods pgd,crown --option steps=50 --engine native --cross-check 3 --seed 7 "
        "--batch-size 16 --workers 3",
        "eps: 0.1, norm: l2, methods: [pgd, crown], options: {steps: 50, engine: native, cross_check: 3}, seed: 7, "
        "batch_size: 16, workers: 3",
        CertifyConfig(
            eps="0.1",
            norm="l2",
            methods=(Pgd(steps=50), Crown(engine="native", cross_check=3)),
            seed=7,
            batch_size=16,
            workers=3,
        ),
    ),
    "fractions and exponents": (
        "--eps 2/255 --complete --time-limit 1/2 --option iterations=1e1",
        "eps: 2/255, methods: complete, options: {time_limit: 1/2, iterations: 1e1}",
        CertifyConfig(eps="2/255", methods=(Complete(time_limit=0.5, iterations=10),)),
    ),
    "a method's own settings": (
        "--eps 0.1 --methods crown --option tolerance=1e-2 --option engine=auto-lirpa",
        "eps: 0.1, methods: [{kind: crown, tolerance: 1e-2}], options: {engine: auto-lirpa}",
        CertifyConfig(eps="0.1", methods=(Crown(tolerance=0.01),), options={"engine": "auto-lirpa"}),
    ),
    "smoothing": (
        "--eps 0.5 --norm l2 --methods smoothing --sigma 0.25 --n 1000 --grid 1/8",
        "eps: 0.5, norm: l2, methods: {kind: smoothing, sigma: 0.25, n: 1e3, question: grid, step: 0.125}",
        CertifyConfig(eps="0.5", norm="l2", methods=(Smoothing(sigma=0.25, n=1000, question="grid", step=0.125),)),
    ),
    "an option of its own or not": (
        "--eps 0.5 --norm l2 --methods smoothing --option sigma=0.25 --option question=full",
        "eps: 0.5, norm: l2, methods: [smoothing], options: {sigma: 1/4, question: full}",
        typed("--eps 0.5 --norm l2 --methods smoothing --sigma 0.25 --full"),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_command_line_yaml_and_python_build_the_same_configuration(name: str, tmp_path: Path) -> None:
    arguments, section, expected = SAME[name]
    assert typed(arguments) == expected
    assert from_yaml(tmp_path, section) == dict(expected)
    assert CertifyConfig.parse(expected.model_dump(mode="json")) == expected, "its own JSON is another configuration"


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("pgd", {"steps": 0}, "method pgd: steps must be at least 1, got 0"),
    ("pgd", {"steps": -2.0}, "method pgd: steps must be at least 1, got -2.0"),
    ("pgd", {"steps": 1.5}, "method pgd: steps: 1.5 is not a whole number; write it like 20"),
    ("pgd", {"steps": "many"}, "method pgd: steps: 'many' is not a whole number; write it like 20"),
    ("pgd", {"steps": 1e30}, "method pgd: steps must be at most 1000000000000000, got 1e+30"),
    ("crown", {"tolerance": "1/0"}, "method crown: tolerance: '1/0' divides by zero; write it like 8/255 or 0.03"),
    ("crown", {"engine": "foo"}, "method crown: engine must be 'auto', 'native' or 'auto-lirpa', got 'foo'"),
    ("smoothing", {}, "method smoothing: the setting sigma is missing: give one, like sigma=0.25"),
    ("smoothing", {"sigma": 1, "alpha": 0.7}, "method smoothing: alpha must be less than 0.5, got 0.7"),
    ("smoothing", {"sigma": 1, "n": 5}, "method smoothing: n must be at least n0, got n=5 and n0=100"),
    ("crown", {"tolerance": "[1]"}, "method crown: tolerance: [1] is not a number; write it like 8/255, 0.03 or 1e-3"),
    ("pgd", {"stps": 5}, "none of the methods pgd has a setting 'stps'. Did you mean 'steps'?"),
    ("pgd", {"sigma": 1}, "none of the methods pgd has a setting 'sigma'. It belongs to smoothing."),
    ("crwn", {}, "unknown method 'crwn'. Did you mean 'crown'?"),
]


@pytest.mark.parametrize(("kind", "options", "line"), MISTAKES, ids=[line for *_, line in MISTAKES])
def test_a_mistake_in_a_setting_is_the_same_line_everywhere(
    kind: str, options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    given = [part for name, value in options.items() for part in ("--option", f"{name}={value}")]
    assert refused("certify", "--model", "none.pt", "--eps", "0.1", "--methods", kind, *given) == f"certkd: {line}\n"
    settings = ", ".join(f"{name}: {value}" for name, value in options.items())
    with pytest.raises(InputError) as caught:
        from_yaml(tmp_path, f"eps: 0.1, methods: [{kind}], options: {{{settings}}}")
    assert str(caught.value) == f"{tmp_path / 'run.yaml'}: certify: {line}"
    options = {name: [1] if value == "[1]" else value for name, value in options.items()}
    values: dict[str, Any] = {"eps": 0.1, "methods": [kind], "options": options}
    with pytest.raises(InputError) as caught:
        CertifyConfig.parse(values)
    assert str(caught.value) == line
    with pytest.raises(InputError) as caught:
        CertifyConfig(**values)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--sigma 1 --option sigma=2", "sigma is given twice: by --sigma and by --option"),
        ("--sigma 1 --full --option question=eps", "question is given twice: by --full and by --option"),
        ("--sigma 1 --grid 0.1 --option step=0.2", "step is given twice: by --grid and by --option"),
        ("--sigma 1 --full --grid 0.1", "--full and --grid answer different questions"),
    ],
)
def test_a_setting_is_given_once(arguments: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        typed(f"--eps 0.5 --norm l2 --methods smoothing {arguments}")


NAMES: list[tuple[str, str]] = [
    ("--eps 2/255", "net-linf-2_255"),
    ("--eps 2/255 --methods pgd,ibp,crown", "net-linf-2_255"),
    ("--eps 2/255 --methods crown,pgd", "net-linf-2_255-crown+pgd"),
    ("--eps 0.1 --norm l2 --complete", "net-l2-0.1-complete"),
    ("--eps 0.5 --norm l2 --methods smoothing --sigma 1/4", "net-l2-0.5-sigma0.25-smoothing"),
    ("--eps 0.5 --norm l2 --methods smoothing --option sigma=0.5", "net-l2-0.5-sigma0.5-smoothing"),
    ("--eps 0.1 --teacher a/t.pt", "net-linf-0.1-with-t"),
    ("--eps 0.1 --teacher a/t.pt --methods crown,joint", "net-linf-0.1-with-t-crown+joint"),
]


@pytest.mark.parametrize(("arguments", "name"), NAMES, ids=[arguments for arguments, _ in NAMES])
def test_a_file_without_a_name_is_named_after_its_question(arguments: str, name: str) -> None:
    teacher = "a/t.pt" if "--teacher" in arguments else None
    assert default_out("runs/net.pt", typed(arguments), (), teacher) == Path(f"runs/{name}.h5")


def test_the_name_tells_the_list_and_the_teachers_own_methods() -> None:
    config = typed("--eps 0.1 --teacher t.pt")
    alone = config.alone()
    assert alone is not None and default_out("timm:resnet18", alone) == Path("timm-resnet18-linf-0.1.h5")
    assert default_out("runs/net.pt", alone, ["all"]) == Path("runs/net-linf-0.1-all.h5")


def test_methods_may_be_named_in_one_text() -> None:
    expected = CertifyConfig(eps=0.1, methods=("crown", "pgd"))
    assert CertifyConfig(eps=0.1, methods="crown, pgd") == expected
    with pytest.raises(InputError, match=r"^unknown method 'crwn'\. Did you mean 'crown'\?$"):
        CertifyConfig(eps=0.1, methods="pgd,crwn")


def test_a_methods_own_setting_comes_before_the_options() -> None:
    for method in (Pgd(steps=7), {"kind": "pgd", "steps": 7}):
        config = CertifyConfig(eps=0.1, methods=[method, "crown"], options={"steps": 5, "restarts": 2})
        assert config.methods == (Pgd(steps=7, restarts=2), Crown()), method


def test_methods_are_named_or_the_default_ones() -> None:
    assert typed("--eps 0.1 --methods crown --teacher t.pt").kinds == ("crown",), "named methods are taken as named"
    assert typed("--eps 0.1 --methods crown,pgd").kinds == ("crown", "pgd")


MARKS = {
    "": "",
    "--data cifar10 --split validation": "-cifar10-validation",
    "--data pictures/test.npz --limit 20": "-test-first20",
    "--indices 3,17,40-99": "-samples3_17_40-99",
    "--indices-file lists/lost.txt": "-lost",
    "--instances lists/all.csv": "-all",
    f"--indices {','.join(map(str, range(30)))}": "-samples79935a8a",
}


@pytest.mark.parametrize("arguments", MARKS)
def test_the_default_file_is_named_after_the_samples(arguments: str) -> None:
    options = certify.make_context("certify", ["net.pt", "--eps", "0.1", *arguments.split()]).params
    config = certify_config(options.pop("eps"), options)
    assert default_out("net.pt", config, marks_of(options)) == Path(f"net-linf-0.1{MARKS[arguments]}.h5")
