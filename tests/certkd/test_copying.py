"""The copies of an experiment: made once, trained further, and what is deployed is what is described."""

from pathlib import Path

import pytest
import torch

from certkd.config.copies import Int8, LowRank, Prune
from certkd.config.experiment import CopyConfig, Tuning
from certkd.config.settings import DataConfig
from certkd.copying import Deployed, make
from certkd.data import sources
from certkd.networks import checkpoint
from certkd.networks import resolve as networks
from certkd.networks.checkpoint import Checkpoint
from certkd.objectives import Standard
from tests.certkd.networks.copies.originals import original
from verifiers.core.errors import InputError
from verifiers.graph.integers import computes_in_int8

DATA = sources.load(DataConfig())
TUNE = Tuning(objective=Standard())


def load(file: Path) -> Checkpoint:
    return networks.load(file, data=DATA)


@pytest.fixture
def whole(tmp_path: Path) -> Deployed:
    file = tmp_path / "whole.pt"
    checkpoint.save(original("certkd:mlp", hidden=[6], classes=10), file)
    return Deployed.of(load(file), file)


def made(copy: CopyConfig, whole: Deployed, tuned: list[Path] | None = None) -> Deployed:
    def tune(begin: Path) -> Path:
        """Stand in for a training: the weights are doubled."""
        assert tuned is not None, "nothing is to be trained"
        tuned.append(begin)
        found, result = load(begin), begin.with_name("tuned.pt")
        with torch.no_grad():
            for parameter in found.model.parameters():
                parameter.mul_(2)
        checkpoint.save(found, result)
        return result

    return make(copy, whole, DATA, whole.file.with_name("copy"), tune=tune, load=load)


@pytest.mark.parametrize("how", [Prune(share=0.8), LowRank()], ids=["prune", "low-rank"])
def test_a_checkpoint_is_deployed_and_made_once(how: Prune | LowRank, whole: Deployed) -> None:
    copy = made(CopyConfig(of="teacher", how=how), whole)
    assert copy.file.name == "copy.pt" and copy.network.copied["of"] == whole.network.sha256
    assert copy.facts.multiply_adds < whole.facts.multiply_adds
    before = copy.file.stat().st_mtime_ns
    again = made(CopyConfig(of="teacher", how=how), whole)
    assert again.network.sha256 == copy.network.sha256 and copy.file.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"copy\.pt is a copy of another network or made with other settings"):
        made(CopyConfig(of="teacher", how=Prune(share=0.3)), whole)


def test_a_copy_is_trained_further_and_the_result_is_deployed(whole: Deployed) -> None:
    begun: list[Path] = []
    copy = made(CopyConfig(of="teacher", how=Prune(share=0.8), tune=TUNE), whole, begun)
    assert [path.name for path in begun] == ["copy.pt"] and copy.file.name == "tuned.pt"
    assert copy.facts.nonzero == load(begun[0]).copied["facts"]["nonzero"], "zeros stay"


def test_int8_is_made_of_the_original_or_of_what_was_trained(whole: Deployed) -> None:
    copy = made(CopyConfig(of="teacher", how=Int8(images=16)), whole)
    assert copy.file.name == "copy.onnx" and computes_in_int8(copy.network.model) and copy.facts == whole.facts
    before = copy.file.read_bytes()
    assert made(CopyConfig(of="teacher", how=Int8(images=16)), whole).file.read_bytes() == before
    with pytest.raises(InputError, match=r"copy\.onnx is a copy of another network or made with other settings"):
        made(CopyConfig(of="teacher", how=Int8(images=16), tune=TUNE), whole, [])
    copy.file.unlink()
    begun: list[Path] = []
    trained = made(CopyConfig(of="teacher", how=Int8(images=16), tune=TUNE), whole, begun)
    assert begun == [whole.file] and trained.file.read_bytes() != before


def test_other_files_are_no_copies(whole: Deployed) -> None:
    whole.file.with_name("copy.pt").write_bytes(whole.file.read_bytes())
    with pytest.raises(InputError, match="is a copy of another network"):
        made(CopyConfig(of="teacher", how=Prune()), whole)
