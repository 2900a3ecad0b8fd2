"""Weights in int8 as torchao stores them: the same bits as its kernels, certified in float32, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.certifying import certify
from verifiers.core.errors import InputError
from verifiers.graph.capture import capture
from verifiers.graph.coded import CodedLinear, in_plain_codes

torchao = pytest.importorskip("torchao.quantization")


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12, bias), nn.ReLU(), nn.Linear(12, 3, bias)).eval()


def quantised(bias: bool = True) -> nn.Sequential:
    made = network(bias)
    torchao.quantize_(made, torchao.Int8WeightOnlyConfig())
    return made


@pytest.mark.parametrize("bias", [True, False])
def test_plain_modules_give_the_logits_of_torchao_in_all_bits(bias: bool) -> None:
    given = quantised(bias)
    plain = in_plain_codes(given)
    x = torch.randn(200, 1, 4, 4)
    with torch.no_grad():
        assert torch.equal(plain(x), given(x))
        assert not torch.equal(plain(x), network(bias)(x)), "it was rounded"
    kinds = [type(layer) for layer in plain]
    assert kinds == [nn.Flatten, CodedLinear, nn.ReLU, CodedLinear] and type(given[1]) is nn.Linear, "a copy"
    assert plain[1].codes.dtype is torch.int8 and int(plain[1].codes.abs().max()) == 127
    scale = network(bias)[1].weight.abs().amax(1) / 127
    assert torch.allclose(plain[1].weight, network(bias)[1].weight, atol=float(scale.max()) * 0.51)


def test_other_networks_come_back_themselves() -> None:
    given = network()
    assert in_plain_codes(given) is given
    alone = nn.Sequential(quantised()[1])[0]
    assert isinstance(in_plain_codes(alone), CodedLinear), "a network may be one layer"


def test_its_bounds_hold_and_it_is_certified_in_float32() -> None:
    given = quantised()
    x = torch.rand(6, 1, 4, 4)
    with torch.no_grad():
        labels = given(x).argmax(1)
    found = certify(given, x, labels, eps="0.05", methods=("pgd", "ibp", "crown"))
    assert found.attributes["arithmetic"] == "float32" and (found["crown"]["radius"] > 0).any()
    for row, radius in enumerate(found["crown"]["radius"]):
        near = (x[row] + radius * (2 * torch.rand(500, 1, 4, 4) - 1)).clamp(0, 1)
        with torch.no_grad():
            assert bool((given(near).argmax(1) == labels[row]).all()), "a point of the ball has another class"
    graph = capture(in_plain_codes(given), x[:1])
    assert torch.allclose(graph(x.double()).float(), given(x), atol=1e-5)


def test_another_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CodedLinear, "forward", lambda self, x: x @ self.weight.T)
    with pytest.raises(InputError, match="'1': torchao's kernel gives other values than its codes times their scales"):
        in_plain_codes(quantised())


@pytest.mark.parametrize("change", ["zero_point", "act_quant_kwargs"])
def test_other_tensors_stay_as_they_are(change: str) -> None:
    given = quantised()
    for layer in (given[1], given[3]):
        value: Any = torch.ones_like(layer.weight.zero_point) if change == "zero_point" else object()
        setattr(layer.weight, change, value)
    assert in_plain_codes(given) is given


def test_values_that_are_rounded_too_are_refused_with_what_is_read() -> None:
    given = network()
    torchao.quantize_(given, torchao.Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(InputError, match="of torchao's tensors those of Int8WeightOnlyConfig in linear"):
        certify(given, torch.rand(2, 1, 4, 4), torch.zeros(2).long(), eps="0.1", methods=("pgd",))
