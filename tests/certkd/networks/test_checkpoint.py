"""Checkpoints: what is written comes back bit for bit; what is not a checkpoint is refused by name and never run."""

import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import certkd
from certkd.config.settings import DataConfig
from certkd.data import sources as data
from certkd.files import write_whole
from certkd.networks import checkpoint
from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint, load, save
from verifiers.core.errors import InputError

SPEC = ModelSpec(
    name="certkd:cnn", options={"width": 4, "hidden": 12}, classes=10, shape=(1, 8, 8), mean=(0.3,), std=(0.4,)
)
BARE = ModelSpec(name="certkd:mlp", options={"hidden": [8]}, classes=4, shape=(1, 4, 4))


def example(spec: ModelSpec = SPEC, seed: int = 0) -> Checkpoint:
    """A network with everything a checkpoint can hold."""
    torch.manual_seed(seed)
    return Checkpoint(
        build(spec).eval(),
        data={"name": "digits", "seed": 3, "image_size": 224},
        teacher_sha256="ab" * 32,
        training={"epochs": 2, "objective": {"kind": "kdiga", "lambda_iga": 0.1}, "milestones": [0.5]},
        metrics={"clean": 0.75},
    )


def refusal(path: Path, **options: Any) -> str:
    """The one line that refuses a file; it names the file."""
    with pytest.raises(InputError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message, message
    return message


def bare(path: Path, spec: ModelSpec = BARE, prefix: str = "") -> dict[str, torch.Tensor]:
    """The weights of a network alone, saved as many people do."""
    torch.manual_seed(5)
    state = {f"{prefix}{name}": value for name, value in build(spec).network.state_dict().items()}
    torch.save(state, path)
    return state


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    before, path = example(), tmp_path / f"student{suffix}"
    save(before, path)
    after = load(path)
    ours, theirs = before.model.state_dict(), after.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), f"{name} changed"
    assert after.sha256 == before.sha256
    assert after.model.spec == SPEC
    for part in ("data", "teacher_sha256", "training", "metrics"):
        assert getattr(after, part) == getattr(before, part), f"{part} changed"
    assert not after.model.training, "a loaded network is in eval mode"
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(before.model(x), after.model(x))


def test_both_formats_have_the_same_hash(tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors"):
        save(example(), tmp_path / name)
    assert load(tmp_path / "a.pt").sha256 == load(tmp_path / "a.safetensors").sha256
    assert example(seed=1).sha256 != example(seed=2).sha256, "other weights have another hash"


def test_saving_twice_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "[x]" / "s.pt"
    for seed in (1, 2):
        save(example(seed=seed), path)
    assert load(path).sha256 == example(seed=2).sha256
    assert [p.name for p in path.parent.iterdir()] == ["s.pt"], "no temporary file may stay"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_in_another_memory_order_are_saved(tmp_path: Path, suffix: str) -> None:
    before = example()
    before.model.to(memory_format=torch.channels_last)
    save(before, tmp_path / f"s{suffix}")
    assert load(tmp_path / f"s{suffix}").sha256 == before.sha256


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.pt"
    save(example(), path)

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pickle is run")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, fail)
    assert load(path).sha256 == example().sha256


# nothing is executed


class Evil:
    """A pickle of this makes a folder when it is run."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"mkdir '{self.trace}'",)


def _torch_new(content: Any, path: Path) -> None:
    torch.save(content, path)


def _torch_old(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _plain_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def _oldest_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


WRITERS = [_torch_new, _torch_old, _plain_pickle, _oldest_pickle]


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("name", ["evil.pt", "evil.pth", "evil.bin", "evil.ckpt", "evil"])
@pytest.mark.filterwarnings("error")
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, write: Callable[[Any, Path], None], name: str
) -> None:
    trace, path = tmp_path / "trace", tmp_path / name
    write({"weights": torch.zeros(2), "evil": Evil(trace)}, path)
    message = refusal(path, architecture=BARE)
    assert "is a pickle that" in message and "is not run" in message, message
    assert not trace.exists(), "loading ran the pickle's code"


def test_the_evil_pickle_is_evil(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "trace")))
    assert (tmp_path / "trace").exists(), "the tests above would prove nothing"


def test_the_refusal_names_the_code(tmp_path: Path) -> None:
    torch.save({"evil": Evil(tmp_path / "trace")}, tmp_path / "e.pt")
    assert "holds code (posix.system)" in refusal(tmp_path / "e.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
    message = refusal(tmp_path / "m.pt")
    assert "torch.nn.modules.linear.Linear" in message and "model.state_dict()" in message, message


# what is not a checkpoint


def half(path: Path) -> bytes:
    """The first half of a good checkpoint."""
    save(example(), path)
    return path.read_bytes()[: path.stat().st_size // 2]


NOT_CHECKPOINTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty"),
    "blanks": (b" \n\n ", "is empty"),
    "a web page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is an HTML page"),
    "a web page in capitals": (b"<HTML><HEAD><TITLE>404</TITLE></HEAD></HTML>", "is an HTML page"),
    "an error in XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is an HTML page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
    "text": (b"weights will follow\n" * 40, "is not a checkpoint"),
    "JSON": (b'{"weights": [1, 2]}', "is not a checkpoint"),
    "noise": (bytes(range(255, 0, -1)) * 9, "is not a checkpoint"),
}


@pytest.mark.parametrize("what", NOT_CHECKPOINTS)
def test_what_is_not_a_checkpoint_is_named(tmp_path: Path, what: str) -> None:
    content, words = NOT_CHECKPOINTS[what]
    path = tmp_path / "s.pt"
    path.write_bytes(content)
    assert words in refusal(path)


@pytest.mark.parametrize("what", NOT_CHECKPOINTS)
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "s.safetensors"
    path.write_bytes(NOT_CHECKPOINTS[what][0])
    assert str(path) in refusal(path)


def test_cut_files_are_named(tmp_path: Path) -> None:
    for suffix, words in ((".pt", "truncated"), (".safetensors", "not a complete checkpoint")):
        path = tmp_path / f"s{suffix}"
        path.write_bytes(half(path))
        assert words in refusal(path)
    torch.save(example().model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pt").read_bytes()
    for share in (0.02, 0.5, 0.99):
        (tmp_path / "old.pt").write_bytes(content[: int(len(content) * share)])
        assert "not a complete checkpoint" in refusal(tmp_path / "old.pt")


def test_a_damaged_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    save(example(), path)
    content = bytearray(path.read_bytes())
    content[40:400] = b"\0" * 360
    path.write_bytes(content)
    assert str(path) in refusal(path)


def test_a_folder_and_no_file_are_named(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)
    assert "no such checkpoint" in refusal(tmp_path / "none.pt")
    assert "no such checkpoint" in refusal(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(3), {"state_dict": {"a": 1}}, "text"])
def test_a_file_without_weights_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "s.pt")
    assert "holds no weights" in refusal(tmp_path / "s.pt", architecture=BARE)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_newer_format_is_refused(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"s{suffix}"
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    save(example(), path)
    monkeypatch.undo()
    message = refusal(path)
    assert "version 2" in message and "update certkd" in message, message


@pytest.mark.parametrize(("missing", "words"), [("architecture", "architecture"), ("state_dict", "holds no weights")])
def test_a_checkpoint_without_a_part_is_named(tmp_path: Path, missing: str, words: str) -> None:
    path = tmp_path / "s.pt"
    save(example(), path)
    content = torch.load(path, weights_only=True)
    del content[missing]
    torch.save(content, path)
    assert words in refusal(path)


# weights of another architecture, bare weights


def test_weights_of_another_architecture_name_the_tensor_and_the_shapes(tmp_path: Path) -> None:
    bare(tmp_path / "s.pt")
    other = BARE.model_copy(update={"options": {"hidden": [9]}})
    message = refusal(tmp_path / "s.pt", architecture=other)
    assert "certkd:mlp" in message and "1.weight has shape (8, 16) instead of (9, 16)" in message, message
    assert "and 2 more" in message, "the other two tensors of another shape are counted"
    deeper = BARE.model_copy(update={"options": {"hidden": [8, 8]}})
    assert "is missing" in refusal(tmp_path / "s.pt", architecture=deeper)
    bare(tmp_path / "deep.pt", deeper)
    assert "is unknown" in refusal(tmp_path / "deep.pt", architecture=BARE)


def test_a_checkpoint_whose_weights_do_not_fit_its_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    save(example(), path)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["network.0.weight"] = torch.zeros(1, 1, 4, 4)
    torch.save(content, path)
    assert "network.0.weight has shape (1, 1, 4, 4) instead of (4, 1, 4, 4)" in refusal(path)


def test_bare_weights_need_an_architecture(tmp_path: Path) -> None:
    bare(tmp_path / "s.pt")
    message = refusal(tmp_path / "s.pt")
    assert "bare weights" in message and "--arch" in message and "--data" in message, message


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_bare_weights_with_their_architecture(tmp_path: Path, prefix: str, key: str | None) -> None:
    path = tmp_path / "s.pt"
    state = bare(path, prefix=prefix)
    if key is not None:
        torch.save({key: state, "epoch": 7}, path)
    loaded = load(path, architecture=BARE).model.network.state_dict()
    for name, value in loaded.items():
        assert torch.equal(value, state[f"{prefix}{name}"]), name


def test_bare_safetensors_with_their_architecture(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = bare(tmp_path / "s.pt")
    save_file(state, tmp_path / "s.safetensors")
    assert (
        load(tmp_path / "s.safetensors", architecture=BARE).sha256 == load(tmp_path / "s.pt", architecture=BARE).sha256
    )
    assert "bare weights" in refusal(tmp_path / "s.safetensors")


def test_bare_weights_do_not_touch_the_normalisation(tmp_path: Path) -> None:
    bare(tmp_path / "s.pt")
    with_mean = BARE.model_copy(update={"mean": (0.5,), "std": (0.25,)})
    model = load(tmp_path / "s.pt", architecture=with_mean).model
    x = torch.rand(2, 1, 4, 4)
    assert torch.allclose(model(x), model.network((x - 0.5) / 0.25), atol=1e-5)


def test_metadata_in_safetensors_is_json(tmp_path: Path) -> None:
    from safetensors import safe_open

    save(example(), tmp_path / "s.safetensors")
    with safe_open(tmp_path / "s.safetensors", framework="pt") as file:
        metadata = json.loads(file.metadata()["certkd"])
    assert metadata["format"] == checkpoint.FORMAT and metadata["format_version"] == 1
    assert metadata["architecture"]["name"] == "certkd:cnn"


# whole or not at all


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, error: Exception, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"s{suffix}"
    save(example(seed=1), path)
    before = path.read_bytes()

    def fail(_: Any, place: Any, **__: Any) -> None:
        Path(place).write_bytes(b"the first half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(InputError, match=f"cannot write .*s{suffix}: .*{error.args[-1]}"):
        save(example(seed=2), path)
    assert path.read_bytes() == before, "the old checkpoint was damaged"
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "half a file was left behind"


def test_an_interruption_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("old")

    def interrupted(place: Path) -> None:
        place.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupted)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["s"]


def test_nobody_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("old")

    def write(place: Path) -> None:
        place.write_text("new")
        assert path.read_text() == "old", "the file must keep its content until the new one is whole"
        assert place.parent == path.parent, "a rename is atomic only within one folder"

    write_whole(path, write)
    assert path.read_text() == "new"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / f"s{suffix}", tmp_path / f"{'n' * 300}{suffix}"):
        with pytest.raises(InputError, match="cannot write"):
            save(example(), path)


def test_python_is_told_which_weights_were_taken(tmp_path: Path) -> None:
    spec = ModelSpec(name="certkd:mlp", options={"hidden": [3]}, classes=10, shape=(1, 8, 8))
    plain, averaged = build(spec).state_dict(), build(spec).state_dict()
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "both.pt")
    given = {"architecture": "certkd:mlp,hidden=[3]", "data": data.load(DataConfig())}
    with pytest.warns(UserWarning, match=r"both.pt: the weights under 'state_dict' are taken; choose others"):
        found = certkd.load_checkpoint(tmp_path / "both.pt", **given)
    assert all(torch.equal(value, plain[key]) for key, value in found.model.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = certkd.load_checkpoint(
            tmp_path / "both.pt", form=certkd.FileFormat(weights_key="state_dict_ema"), **given
        )
    assert all(torch.equal(value, averaged[key]) for key, value in found.model.state_dict().items())
