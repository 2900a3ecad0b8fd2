"""Weights in int8 as torchao stores them: the same bits as its kernels, and bounds that hold."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from certkd.networks import checkpoint
from certkd.networks.builders import ModelSpec, build
from tests.certifying import certify
from verifiers.core.errors import InputError
from verifiers.graph.capture import capture
from verifiers.graph.coded import CodedLinear

torchao = pytest.importorskip("torchao.quantization")
SPEC = ModelSpec(name="certkd:mlp", options={"hidden": [12]}, classes=3, shape=(1, 4, 4), mean=(0.4,), std=(0.3,))


def quantised() -> Any:
    torch.manual_seed(0)
    made = build(SPEC).eval()
    torchao.quantize_(made.network, torchao.Int8WeightOnlyConfig())
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (200,), (5, 7)])
def test_a_layer_gives_the_values_of_torchao_in_all_bits(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    given = nn.Sequential(nn.Linear(16, 12, bias))
    plain = CodedLinear(16, 12, bias)
    plain.bias = given[0].bias
    torchao.quantize_(given, torchao.Int8WeightOnlyConfig())
    weight: Any = given[0].weight
    plain.codes, plain.scales = weight.qdata, weight.scale.flatten()
    for size in (0.1, 1.0, 100.0):
        x = size * torch.randn(*shape, 16)
        with torch.no_grad():
            assert torch.equal(plain(x), given(x))
    other = torch.nn.functional.linear(x, plain.codes * plain.scales[:, None], plain.bias)
    assert not torch.equal(plain(x), other) or shape == (1,), "another order of operations has other bits"


def test_the_network_of_a_file_is_the_one_that_was_saved(tmp_path: Path) -> None:
    given = quantised()
    torch.save(given.network.state_dict(), tmp_path / "a.pt")
    found = checkpoint.load(tmp_path / "a.pt", architecture=SPEC).model
    x = torch.rand(300, 1, 4, 4)
    with torch.no_grad():
        assert torch.equal(found(x), given(x))
    assert [type(layer) for layer in found.network][1::2] == [CodedLinear, CodedLinear]
    assert not hasattr(found.network[1], "weight"), "nobody sees other numbers than the deployed network has"


def test_its_bounds_hold_and_it_is_certified_in_float32(tmp_path: Path) -> None:
    given = quantised()
    torch.save(given.network.state_dict(), tmp_path / "a.pt")
    network = checkpoint.load(tmp_path / "a.pt", architecture=SPEC).model
    x = torch.rand(6, 1, 4, 4)
    with torch.no_grad():
        labels = given(x).argmax(1)
    found = certify(network, x, labels, eps="0.05", methods=("pgd", "ibp", "crown"))
    assert found.attributes["arithmetic"] == "float32" and (found["crown"]["radius"] > 0).any()
    for row, radius in enumerate(found["crown"]["radius"]):
        near = (x[row] + radius * (2 * torch.rand(500, 1, 4, 4) - 1)).clamp(0, 1)
        with torch.no_grad():
            assert bool((given(near).argmax(1) == labels[row]).all()), "a point of the ball has another class"
    graph = capture(network, x[:1])
    assert torch.allclose(graph(x.double()).float(), given(x), atol=1e-5)


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_networks_of_torchao_in_python_are_refused_with_what_is_read(config: str) -> None:
    given = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    torchao.quantize_(given, getattr(torchao, config)())
    with pytest.raises(InputError, match=r"no graph shows \(files of Int8WeightOnlyConfig's are read\)"):
        certify(given, torch.rand(2, 1, 4, 4), torch.zeros(2).long(), eps="0.1", methods=("pgd",))
