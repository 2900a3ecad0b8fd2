"""State dicts of torch.ao's quantised modules are read without being run: the same bits, and lies are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certkd.networks import checkpoint
from certkd.networks.builders import ModelSpec
from certkd.networks.checkpoint import Checkpoint
from tests.paths import ROOT
from tests.verifiers.graph import torch_int8
from verifiers.core.errors import InputError
from verifiers.graph.integers import computes_in_int8

FILE = ROOT / "tests/verifiers/graph/torch_int8.py"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def read(state: dict[str, Any], folder: Path, name: str = f"{FILE}:plain", **changes: Any) -> Checkpoint:
    """Save a state dict, and read it for the network that a function of the user's makes."""
    torch.save(state, folder / "int8.pt")
    spec = ModelSpec(**{"name": name, "classes": 3, "shape": (1, 4, 4), **changes})
    return checkpoint.load(folder / "int8.pt", architecture=spec)


@pytest.mark.parametrize("make", [torch_int8.plain, torch_int8.residual], ids=["plain", "residual"])
def test_logits_are_those_of_torch_in_all_bits(make: Any, tmp_path: Path) -> None:
    network = make(seed=1)
    found = read(network.state_dict(), tmp_path, f"{FILE}:{make.__name__}")
    x = torch.rand(300, 1, 4, 4)
    assert torch.equal(found.model(x), network(x)) and computes_in_int8(found.model)
    assert found.sha256 != read(make(seed=2).state_dict(), tmp_path, f"{FILE}:{make.__name__}").sha256


def test_normalisation_comes_before_the_codes(tmp_path: Path) -> None:
    network = torch_int8.plain(seed=1)
    found = read(network.state_dict(), tmp_path, mean=(0.1,), std=(0.9,))
    x = torch.rand(50, 1, 4, 4)
    assert torch.allclose(found.model(x), network((x - 0.1) / 0.9), atol=2 * float(network[8].scale))
    assert not torch.equal(found.model(x), network(x))


def test_a_zero_point_alone_changes_the_hash(tmp_path: Path) -> None:
    state = torch_int8.plain().state_dict()
    other = {**state, "8.zero_point": state["8.zero_point"] + 1}
    assert read(state, tmp_path).sha256 != read(other, tmp_path).sha256


def weight(**changes: Any) -> Tensor:
    """Quantised weights of the last layer: 3 outputs, 12 inputs."""
    given = {"scales": torch.full((3,), 0.1), "zeros": torch.zeros(3, dtype=torch.long), **changes}
    codes = given.get("codes", torch.ones(3, 12, dtype=torch.int8))
    return torch._make_per_channel_quantized_tensor(codes, given["scales"], given["zeros"], 0)


PACKED = "8._packed_params._packed_params"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({PACKED: (weight(), None)}, "lacks '8._packed_params._packed_params.1'"),
        ({PACKED: (weight(scales=torch.tensor([0.1, -1, 1])), torch.ones(3))}, "scales or zero points that no int8"),
        ({PACKED: (weight(scales=torch.tensor([0.1, torch.inf, 1])), torch.ones(3))}, "scales or zero points"),
        ({PACKED: (weight(scales=torch.tensor([0.1, torch.nan, 1])), torch.ones(3))}, "scales or zero points"),
        ({PACKED: (weight(zeros=torch.tensor([0, 999, 0])), torch.ones(3))}, "scales or zero points"),
        ({PACKED: (weight(codes=torch.ones(3, 13, dtype=torch.int8)), torch.ones(3))}, "has shape (3, 13)"),
        ({PACKED: (weight(), torch.ones(4))}, "has shape (4,)"),
        ({PACKED: (weight(), torch.tensor([1.0, torch.nan, 0.0]))}, "holds NaN"),
        ({"1.weight": torch.ones(4, 1, 3, 3)}, "type torch.float32"),
        ({"1.scale": torch.ones(2)}, "has shape (2,)"),
        ({"1.scale": torch.tensor(0.0)}, "a scale that is not positive"),
        ({"0.scale": torch.tensor([torch.nan])}, "holds NaN"),
        ({"1.zero_point": torch.tensor(300)}, "zero point 300"),
        ({"9.more": torch.ones(1)}, "holds '9.more'"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        read({**torch_int8.plain().state_dict(), **changes}, tmp_path)
    assert words in str(refusal.value) and "int8.pt" in str(refusal.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    state = torch_int8.plain().state_dict()
    del state["1.bias"]
    with pytest.raises(InputError, match=r"lacks '1\.bias' of the quantised network"):
        read(state, tmp_path)


def test_a_float_network_for_such_a_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a function of your own that returns the network as"):
        read(torch_int8.plain().state_dict(), tmp_path, "certkd:mlp")


def test_dynamic_modules_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n\n\ndef net():\n    inner = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))\n"
        "    return torch.ao.quantization.quantize_dynamic(inner, {torch.nn.Linear}, torch.qint8)\n"
    )
    inner = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    state = torch_int8.quantization.quantize_dynamic(inner, {nn.Linear}, torch.qint8).state_dict()
    with pytest.raises(InputError, match="dynamic modules quantise by the range of a whole batch"):
        read(state, tmp_path, f"{tmp_path / 'own.py'}:net")


def test_a_pickle_of_the_whole_network_is_not_run(tmp_path: Path) -> None:
    torch.save(torch_int8.plain(), tmp_path / "whole.pt")
    with pytest.raises(InputError, match=r"is a pickle that holds code .* save plain weights with torch\.save"):
        checkpoint.load(tmp_path / "whole.pt")
