"""Copies in files: they come back as they were, and files that lie are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from certkd.config.copies import LowRank, Prune
from certkd.networks.checkpoint import Checkpoint, load, save
from certkd.networks.copies.compress import compressed
from certkd.networks.copies.masks import Masks
from tests.certkd.networks.copies.originals import images, original
from verifiers.core.errors import InputError

WAYS: dict[str, Any] = {
    "weights": Prune(share=0.8),
    "channels": Prune(what="channels"),
    "svd-tucker": LowRank(),
    "cp": LowRank(form="cp"),
    "tt": LowRank(form="tt", ranks="energy=0.8"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_comes_back_as_it_was(way: str, suffix: str, tmp_path: Path) -> None:
    whole = original(width=4, hidden=12)
    copy = compressed(whole, WAYS[way])
    save(copy, tmp_path / f"a{suffix}")
    found = load(tmp_path / f"a{suffix}")
    x = images(whole)
    assert torch.equal(found.model(x), copy.model(x)) and not found.model.training
    assert found.copied == copy.copied and found.model.spec == copy.model.spec and found.data == whole.data


def test_a_pruned_copy_that_is_decomposed_can_be_trained_further() -> None:
    both = compressed(compressed(original(), Prune(share=0.5)), LowRank())
    Masks(both.model).keep()
    assert both.model.spec.layers[0].kind == "masked" and both.model.spec.layers[-1].kind == "factored"


def test_a_narrow_copy_has_a_smaller_file(tmp_path: Path) -> None:
    whole = original("certkd:resnet", (3, 8, 8))
    save(whole, tmp_path / "whole.pt")
    save(compressed(whole, Prune(what="channels", share=0.75)), tmp_path / "narrow.pt")
    assert (tmp_path / "narrow.pt").stat().st_size < 0.4 * (tmp_path / "whole.pt").stat().st_size


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"path": "9", "kind": "masked"}, "the network has no layer '9'"),
        ({"path": "1", "kind": "masked"}, "the network's layer '1' has no weight to change"),
        ({"path": "1.2.3", "kind": "masked"}, "the network has no layer '1.2.3'"),
        ({"path": "0", "kind": "resized", "shape": [2, 1, 3, 3]}, "a layer Conv2d cannot have weights of shape"),
        ({"path": "0", "kind": "factored", "form": "tucker", "ranks": [1]}, "has no form tucker with ranks"),
        ({"path": "5", "kind": "factored", "form": "tt", "ranks": [1, 1, 1]}, "a layer Linear has no form tt"),
        ({"path": "0", "kind": "resized", "shape": [1 << 23, 1, 4, 4]}, "describes a larger network than its weights"),
        ({"path": "0", "kind": "folded"}, "architecture: layers.0: unknown kind 'folded'"),
        ({"path": "0", "kind": "factored", "form": "svd", "ranks": [0]}, "architecture: layers.0"),
    ],
)
def test_a_file_that_lies_about_its_layers_is_refused(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    save(original(), tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt")
    content["architecture"]["layers"] = [change]
    torch.save(content, tmp_path / "b.pt")
    with pytest.raises(InputError, match=why.replace("(", r"\(")):
        load(tmp_path / "b.pt")


def test_a_file_that_lies_about_its_original_is_refused(tmp_path: Path) -> None:
    copy = compressed(original(), Prune())
    for name, value in (("of", "xyz"), ("facts", {"weights": -1}), ("more", 1)):
        save(Checkpoint(copy.model, copied={**copy.copied, name: value}), tmp_path / "a.pt")
        with pytest.raises(InputError, match=r"a\.pt: copied: "):
            load(tmp_path / "a.pt")
