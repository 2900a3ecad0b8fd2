"""Files of torchao's int8 weights are read without it: the same bits, as checkpoints too, and lies are refused."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._tensor import _rebuild_from_type_v2
from torch._utils import _rebuild_wrapper_subclass

from certkd.networks import checkpoint
from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint
from certkd.networks.copies.facts import facts_of
from tests.cli import refused
from verifiers.core.errors import InputError
from verifiers.graph.coded import CodedLinear

SPEC = ModelSpec(name="certkd:mlp", options={"hidden": [12]}, classes=3, shape=(1, 4, 4), mean=(0.4,), std=(0.3,))


class Int8Tensor:
    """Pickles as torchao's tensor does."""

    def __init__(self, **state: Any) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        wrapper = (type(self), torch.float32, (2, 2), (2, 1), 0, torch.strided, torch.device("cpu"), False)
        return _rebuild_from_type_v2, (_rebuild_wrapper_subclass, type(self), wrapper, self.state)


@pytest.fixture(autouse=True)
def torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of that name, in which pickle finds the class."""
    fake: Any = ModuleType("torchao.quantization")
    fake.Int8Tensor, fake.Other = Int8Tensor, Other
    for kind in (Int8Tensor, Other):
        monkeypatch.setattr(kind, "__module__", "torchao.quantization")
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", fake)


class Other(Int8Tensor):
    """Another class of the package."""


def weights(**changes: Any) -> dict[str, Any]:
    """The state dict of the network with weights in int8; ``changes`` are of the first layer's."""
    torch.manual_seed(0)
    state: dict[str, Any] = {}
    for name, value in build(SPEC).network.state_dict().items():
        if not name.endswith("weight"):
            state[name] = value
            continue
        scales = value.abs().amax(1, keepdim=True) / 127
        parts = {"qdata": (value / scales).round().to(torch.int8), "scale": scales, "block_size": [1, value.shape[1]]}
        parts |= {"zero_point": torch.zeros_like(scales), "act_quant_kwargs": None, "reduce_range": False}
        state[name] = Int8Tensor(**parts | (changes if len(state) == 0 else {}))
    return state


def saved(folder: Path, **changes: Any) -> Path:
    torch.save(weights(**changes), folder / "coded.pt")
    return folder / "coded.pt"


def read(path: Path) -> Checkpoint:
    return checkpoint.load(path, architecture=SPEC)


def by_hand(x: Tensor) -> Tensor:
    state = weights()
    first, second = (state[name].state for name in state if name.endswith("weight"))
    biases = [value for value in state.values() if isinstance(value, Tensor)]
    x = ((x - 0.4) / 0.3).flatten(1)
    x = ((x @ first["qdata"].float().T) * first["scale"].flatten() + biases[0]).relu()
    return (x @ second["qdata"].float().T) * second["scale"].flatten() + biases[1]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_network_is_that_of_its_codes(prefix: str, tmp_path: Path) -> None:
    torch.save({f"{prefix}{name}": value for name, value in weights().items()}, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt")
    x = torch.rand(50, 1, 4, 4)
    with torch.no_grad():
        assert torch.allclose(found.model(x), by_hand(x), rtol=1e-6, atol=1e-6)
    assert [type(layer) for layer in found.model.network][1::2] == [CodedLinear, CodedLinear]
    facts = facts_of(found.model)
    assert facts.weights == 16 * 12 + 12 + 12 * 3 + 3 and facts.bytes == 16 * 12 + 12 * 3 + 4 * (12 + 3)
    assert 0.9 * (16 * 12 + 12 * 3) < facts.multiply_adds <= 16 * 12 + 12 * 3


def test_it_is_saved_as_a_checkpoint_and_comes_back(tmp_path: Path) -> None:
    found, x = read(saved(tmp_path)), torch.rand(20, 1, 4, 4)
    for suffix in (".pt", ".safetensors"):
        checkpoint.save(found, tmp_path / f"own{suffix}")
        again = checkpoint.load(tmp_path / f"own{suffix}")
        assert torch.equal(again.model(x), found.model(x)) and again.sha256 == found.sha256
        assert [layer.kind for layer in again.model.spec.layers] == ["weights-in-int8"] * 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zero_point": torch.ones(12, 1)}, "has a zero point other than 0: quantise symmetrically"),
        ({"act_quant_kwargs": {"a": 1}}, "rounds values as well as weights"),
        ({"scale": torch.ones(6, 2)[:, :1]}, "without a scale for each row alone"),
        ({"block_size": [3, 8]}, "without a scale for each row alone"),
        ({"scale": torch.ones(1, 12)}, "without a scale for each row alone"),
        ({"qdata": torch.ones(12, 16)}, "without codes or scales"),
        (
            {"qdata": torch.ones(16, 12, dtype=torch.int8), "scale": torch.ones(16, 1), "block_size": [1, 12]},
            "has shape (16, 12)",
        ),
        ({"qdata": torch.ones(12, 16, 1, dtype=torch.int8)}, "without a scale for each row alone"),
        ({"qdata": 3}, "without codes or scales"),
    ],
)
def test_what_is_not_such_a_matrix_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        read(saved(tmp_path, **changes))
    assert words in str(refusal.value)


def test_other_classes_and_functions_are_not_run(tmp_path: Path) -> None:
    torch.save({"1.weight": Other()}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"holds tensors of torchao \(torchao.quantization.Other\): those of Int8"):
        read(tmp_path / "other.pt")
    said = refused("certify", tmp_path / "other.pt", "--arch", "certkd:mlp", "--data", "digits", "--eps", "0.1")
    assert "onnxruntime.quantization" in said


def test_codes_for_another_layer_are_refused(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"name": "certkd:cnn", "options": {}, "shape": (1, 8, 8)})
    network = build(spec).network
    state: dict[str, Any] = dict(network.state_dict())
    first = next(name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    codes = state[f"{first}.weight"].flatten(1).to(torch.int8)
    state[f"{first}.weight"] = Int8Tensor(qdata=codes, scale=torch.ones(len(codes), 1), block_size=[1, codes.shape[1]])
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(InputError, match="another architecture"):
        checkpoint.load(tmp_path / "a.pt", architecture=spec)


@pytest.mark.parametrize("described", [True, False])
def test_codes_elsewhere_are_refused_with_the_file(described: bool, tmp_path: Path) -> None:
    if described:  # a checkpoint of certkd describes its layers
        checkpoint.save(Checkpoint(build(SPEC).eval()), tmp_path / "a.pt")
        content = torch.load(tmp_path / "a.pt", weights_only=False)
        named = {f"network.{name}": value for name, value in weights().items()}
        assert named.keys() < content["state_dict"].keys()
        content["state_dict"] = {**content["state_dict"], **named}
        torch.save(content, tmp_path / "a.pt")
    else:
        torch.save(
            {**weights(), "1.bias": weights(qdata=torch.ones(12, 1, dtype=torch.int8))["1.weight"]}, tmp_path / "a.pt"
        )
    with pytest.raises(InputError, match=r"a\.pt"):
        checkpoint.load(tmp_path / "a.pt", architecture=None if described else SPEC)
