"""Damaged configurations of trainings and experiments."""

from pathlib import Path

import pytest

from certkd.config.experiment import ExperimentConfig
from certkd.config.reading import read
from certkd.config.settings import TrainJob
from tests.fuzz.mutate import TEXT, TOKENS, mutants
from tests.fuzz.trial import Sandbox
from tests.paths import ROOT

CONFIGS = [ROOT / "configs" / name for name in ("digits/kdiga.yaml", "digits/student.yaml", "digits.yaml")]
PLAIN = b"out: o\ndata: &d {name: digits, seed: 1}\nmodel: {name: certkd:mlp, options: {hidden: [8]}}\nepochs: 1e1\n"


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 100), *(pytest.param(seed, 500, marks=pytest.mark.slow) for seed in (1,))]
)
def test_damaged_configurations(sandbox: Sandbox, seed: int, count: int) -> None:
    Path("student.yaml").write_bytes(CONFIGS[1].read_bytes())
    valid = [*(path.read_bytes() for path in CONFIGS), PLAIN + b"objective: {kind: kd, temperature: 2}\nseed: 3\n"]
    refused = 0
    for name, content in mutants(valid, count, seed, TEXT):
        Path("a.yaml").write_bytes(content)
        for kind in (TrainJob, ExperimentConfig):
            refused += sandbox.call(name, lambda kind=kind: read("a.yaml", kind)) is not None
    assert refused > count, "most damaged configurations are refused as each kind"


PLACES = ("epochs: {}", "extends: {}", "objective: {}", "model: {{name: {}}}", "model: {{options: {{hidden: {}}}}}")


@pytest.mark.parametrize(
    ("kind", "longest"), [(TrainJob, 100), pytest.param(ExperimentConfig, 10**6, marks=pytest.mark.slow)]
)
def test_every_token_as_a_value_and_as_a_file_to_extend(sandbox: Sandbox, kind: type, longest: int) -> None:
    for token in TOKENS:
        if len(token) > longest:
            continue
        for place in PLACES if len(token) < 1000 else PLACES[:2]:
            Path("a.yaml").write_bytes(f"out: o\n{place.format(token)}\n".encode("utf-8", "surrogatepass"))
            name = f"{place} {token[:40]!r}"
            assert sandbox.call(name, lambda: read("a.yaml", kind)) is not None, f"{name} is taken"


def test_files_outside_are_not_extended(sandbox: Sandbox) -> None:
    Path("link.yaml").symlink_to("../outside/canary.yaml")
    for base in ("../outside/canary.yaml", str(sandbox.outside / "canary.yaml"), "link.yaml"):
        Path("a.yaml").write_text(f"extends: {base}\nout: o\nobjective: {{kind: standard}}\n")
        assert sandbox.command(base, "train", "--config", "a.yaml").code == 2


@pytest.mark.slow
def test_bombs_stay_within_memory_and_time(sandbox: Sandbox) -> None:
    layers = ", ".join(f"&a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    merges = "".join(f"x{i}: &x{i}\n  <<: [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 25))
    for text in (
        f"epochs: [&a0 [x], {layers}]",
        f"x0: &x0 {{a: 1}}\n{merges}",
        "extends: /dev/zero",
        "a: " + "[" * 90_000,
    ):
        Path("a.yaml").write_text(f"{text}\nout: o\nobjective: {{kind: standard}}\n")
        assert sandbox.process(text[:20], "train", "--config", "a.yaml").code == 2
