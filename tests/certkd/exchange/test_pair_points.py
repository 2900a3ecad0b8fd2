"""Points of two ONNX files in onnxruntime: the files decide, each point alone, with normalisation and layout."""

from pathlib import Path

import pytest
import torch
from torch import nn

from certkd.exchange.pair_points import broken_in_onnxruntime
from certkd.networks.builders import ModelSpec, build
from certkd.networks.onnx.classifier import classifier
from certkd.networks.onnx.export import export
from tests.cli import succeeds
from verifiers.core.relation import Property, Relation

SHAPE = (1, 2, 2)


def linear(*rows: tuple[float, ...]) -> nn.Module:
    """Logits as given rows of the four pixels and one, in a network that can be exported."""
    made = build(ModelSpec(name="certkd:mlp", options={"hidden": [4]}, classes=2, shape=SHAPE)).eval()
    layers = [module for module in made.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        layers[0].weight.copy_(torch.eye(4))
        layers[0].bias.zero_()
        layers[1].weight.copy_(torch.tensor([row[:4] for row in rows]))
        layers[1].bias.copy_(torch.tensor([row[4] for row in rows]))
    return made


#: Class 0 where the first pixel is below a threshold of 0.5 or 0.6.
NETWORKS = {
    "half": linear((0.0, 0.0, 0.0, 0.0, 0.5), (1.0, 0.0, 0.0, 0.0, 0.0)),
    "more": linear((0.0, 0.0, 0.0, 0.0, 0.6), (1.0, 0.0, 0.0, 0.0, 0.0)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    for name, network in NETWORKS.items():
        assert export(network, folder / f"{name}.onnx") is None
    return {name: folder / f"{name}.onnx" for name in NETWORKS}


def points(*first: float) -> torch.Tensor:
    found = torch.zeros((len(first), *SHAPE))
    found[:, 0, 0, 0] = torch.tensor(first)
    return found


def loaded(path: Path) -> tuple[str, nn.Module]:
    return str(path), classifier(path).model


def test_the_property_fails_strictly_between_the_thresholds(files: dict[str, Path]) -> None:
    pair, images = (loaded(files["half"]), loaded(files["more"])), points(0.3, 0.3, 0.3)
    tried = points(0.45, 0.55, 0.7)
    assert broken_in_onnxruntime(Relation(), *pair, images, tried) == [False, True, False]
    assert broken_in_onnxruntime(Relation(delta=0.2), *pair, images, tried) == [False, False, False]
    assert broken_in_onnxruntime(Relation(Property.TRANSFER), *pair, images, tried) == [False, True, False]
    close = [Relation(Property.CLOSE, tolerance=tolerance) for tolerance in (0.05, 0.15)]
    assert [broken_in_onnxruntime(one, *pair, images, tried) for one in close] == [[True] * 3, [False] * 3]


def test_the_file_decides_and_not_the_network_that_was_read(files: dict[str, Path]) -> None:
    """With the other file in its place, onnxruntime computes that one."""
    half, more = loaded(files["half"]), loaded(files["more"])
    swapped = str(files["more"]), half[1]
    assert broken_in_onnxruntime(Relation(), half, more, points(0.3), points(0.55)) == [True]
    assert broken_in_onnxruntime(Relation(), swapped, more, points(0.3), points(0.55)) == [False]


def test_the_networks_are_left_as_they_were(files: dict[str, Path]) -> None:
    half, more = loaded(files["half"]), loaded(files["more"])
    before = half[1](points(0.55))
    broken_in_onnxruntime(Relation(), half, more, points(0.3), points(0.55))
    assert torch.equal(half[1](points(0.55)), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in half[1].modules())


def test_the_normalisation_stays(files: dict[str, Path]) -> None:
    """A file that expects pixels of twice the size changes its class at half the threshold."""
    scaled = str(files["half"]), classifier(files["half"], mean=(0.0,), std=(0.5,)).model
    assert broken_in_onnxruntime(Relation(), scaled, loaded(files["more"]), points(0.1), points(0.3)) == [True]


@pytest.mark.slow
def test_the_command_runs_points_in_onnxruntime(files: dict[str, Path], tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "d.npz", x_test=points(0.1, 0.55, 0.58, 0.9)[:, 0].numpy(), y_test=np.array([0, 1, 1, 1]))
    pair = "--student", files["half"], "--teacher", files["more"], "--data", tmp_path / "d.npz"
    out = succeeds("match", *pair, "--eps", "0.01", "--out", tmp_path / "a.h5", "--time-limit", "5")
    assert "for 2 of 4 samples; on 2 it does not, here is a point for each; none is open." in out
    assert "in onnxruntime the property fails at 2 of 2 points too" in out
