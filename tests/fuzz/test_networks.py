"""Damaged files of networks are read or refused; nothing is run, and nothing outside is opened."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from certkd.networks import checkpoint
from certkd.networks.builders import ModelSpec
from certkd.networks.onnx import classifier
from tests.fuzz.mutate import Mutation, mutants
from tests.fuzz.network_files import CHECKPOINT, ONNX, SAFETENSORS, checkpoints, older, onnx_files
from tests.fuzz.trial import Sandbox

BARE = ModelSpec(name="certkd:mlp", options={"hidden": [6]}, classes=4, shape=(1, 8, 8))
Valid = Callable[[Path], Sequence[bytes]]
KINDS: dict[str, tuple[str, Valid, Sequence[Mutation]]] = {
    "archive": (".pt", lambda folder: checkpoints(".pt", folder), CHECKPOINT),
    "older": (".pth", lambda folder: [older(one) for one in checkpoints(".pt", folder)], CHECKPOINT),
    "safetensors": (".safetensors", lambda folder: checkpoints(".safetensors", folder), SAFETENSORS),
    "onnx": (".onnx", lambda folder: onnx_files(), ONNX),
}
#: Seeds and numbers of files: in the default suite, and in the slow one.
RUNS = [pytest.param(0, 60, id="few"), *(pytest.param(i, 500, id=f"{i}", marks=pytest.mark.slow) for i in (1,))]


def use(path: Path) -> None:
    """Read a file as a command does; bare weights once more with a description."""
    if path.suffix == ".onnx":
        classifier.classifier(path)
        return
    try:
        checkpoint.load(path)
    except checkpoint.InputError as error:
        if "bare weights" not in str(error):
            raise
        checkpoint.load(path, architecture=BARE)


@pytest.mark.parametrize(("seed", "count"), RUNS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_read_or_refused(kind: str, seed: int, count: int, sandbox: Sandbox) -> None:
    suffix, valid, mutations = KINDS[kind]
    files = valid(sandbox.folder)
    path, refused = sandbox.folder / f"net{suffix}", 0
    for content in files:
        path.write_bytes(content)
        assert sandbox.call("a valid file", lambda: use(path)) is None, "a valid file is refused"
    for name, content in mutants(files, count, seed, mutations):
        path.write_bytes(content)
        refused += sandbox.call(name, lambda: use(path)) is not None
    assert refused > count / 4, f"only {refused} of {count} files are refused: the mutations change nothing"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_command_takes_little_time_and_memory(kind: str, sandbox: Sandbox) -> None:
    suffix, valid, mutations = KINDS[kind]
    path = sandbox.folder / f"net{suffix}"
    for name, content in mutants(valid(sandbox.folder), 2, 9, mutations):
        path.write_bytes(content)
        sandbox.process(name, "inspect", path)
