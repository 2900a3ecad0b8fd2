"""Networks of torch.ao's quantised modules: the same integers, bounds that hold, and what is not read."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.graph import torch_int8
from tests.verifiers.graph.torch_int8 import nnq, quantization
from verifiers.bound_propagation.native.engine import Native
from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.errors import InputError
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.graph import quantized
from verifiers.graph.integers import computes_in_int8, other_form
from verifiers.graph.program import Program
from verifiers.graph.quantized import has_quantized, in_integers

SHAPE = (1, 4, 4)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
KINDS = pytest.mark.parametrize("make", [torch_int8.plain, torch_int8.residual], ids=["plain", "residual"])
ENGINES = [engine for engine in ("x86", "fbgemm") if engine in torch.backends.quantized.supported_engines]


@KINDS
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_are_those_of_torch_in_all_bits(make: Any, engine: str, seed: int) -> None:
    network = make(engine=engine, seed=seed)
    found, x = in_integers(network, SHAPE), torch.rand(2000, *SHAPE)
    assert torch.equal(found(x), network(x))
    assert computes_in_int8(found) and has_quantized(network) and not has_quantized(found)


def test_a_slow_version_in_numbers_of_python_gives_the_same_codes() -> None:
    """Every layer but the sums, from the formula alone."""
    network = torch_int8.plain()
    x = torch.rand(3, *SHAPE)
    stub, first = network[0], network[1]
    after = first(stub(x))
    scale, s_in, weight = float(first.scale), float(stub.scale), first.weight()
    for image, channel, row, column in [(0, 0, 0, 0), (1, 2, 1, 0), (2, 3, 1, 1)]:
        total = 0
        for i in range(3):
            for j in range(3):
                y, z = 2 * row + i - 1, 2 * column + j - 1
                if 0 <= y < 4 and 0 <= z < 4:
                    code = min(max(round(float(x[image, 0, y, z]) / s_in), 0), 255)
                    total += code * int(weight[channel, 0, i, j].int_repr())
        s_w = float(weight.q_per_channel_scales()[channel])
        value = (total + float(first.bias().detach()[channel]) / (s_in * s_w)) * s_in * s_w / scale
        assert abs(int(after[image, channel, row, column].int_repr()) - max(value, 0.0)) <= 0.5 + 1e-4


@KINDS
def test_no_point_of_a_ball_leaves_the_bounds(make: Any) -> None:
    """The points run in torch's own kernels."""
    network, eps, x = make(), 0.03, torch.rand(1, *SHAPE)
    rows = torch.cat([torch.eye(3), -torch.eye(3)]).double()[None]
    engine = Native(Program(in_integers(network, SHAPE)), x, arithmetic=Arithmetic.INT8)
    noise = 2 * torch.rand(3000, *SHAPE) - 1
    points = (x + eps * torch.cat([noise, noise[:1000].sign()])).clamp(0, 1)
    scale = next(layer.scale for layer in reversed(list(network.modules())) if isinstance(layer, nnq.Linear))
    values = (network(points).double() / scale) @ rows[0].T  # a last product with a scale is left out of the graph
    for method in ("ibp", "crown"):
        found = engine.ask(Balls.around(x.double(), eps, Norm.LINF), rows, method).bound
        assert bool((values >= found - 1e-4).all()), f"{method}: {float((found - values).max())} below"


@pytest.mark.slow
@KINDS
def test_nothing_breaks_a_certificate_in_torchs_own_kernels(make: Any) -> None:
    """10,000 points, half of them corners, and PGD's, in each certified ball."""
    network = make(seed=3)
    found, x = in_integers(network, SHAPE), torch.rand(6, *SHAPE)
    labels = network(x).argmax(1)
    rows = certify(found, (x, labels), CertifyConfig(eps="0.02", methods=("crown", "pgd")))
    radii = torch.from_numpy(rows["crown"]["radius"])
    assert int((radii > 0).sum()) >= 2
    for image, label, radius in zip(x, labels, radii.float() * (1 - 1e-6), strict=True):
        noise = 2 * torch.rand(10_000, *SHAPE) - 1
        noise[5_000:] = noise[5_000:].sign()
        if radius > 0:
            assert bool((network((image + radius * noise).clamp(0, 1)).argmax(1) == label).all())


def broken(**changes: Any) -> nn.Module:
    network = torch_int8.plain()
    for name, value in changes.items():
        setattr(network, name, value)
    return network


class Odd(nn.Module):
    """An operator on codes that has no form in integers."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        *inner, last = torch_int8.plain()
        self.inner, self.last, self.operation = nn.Sequential(*inner), last, operation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.inner(x)))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Odd(torch.nn.functional.hardswish), "hardswish of the quantised network has no form in integers"),
        (Odd(lambda codes: codes.int_repr().float()), "int_repr of the quantised network has no form"),
        (nn.Sequential(*torch_int8.plain()[:9]), "gives codes and no real numbers: end it with DeQuantStub"),
        (nn.Sequential(*torch_int8.plain()[1:]), "begin the quantised network with QuantStub"),
        (nn.Sequential(nnq.Quantize(0.1, 3, torch.qint8), nnq.DeQuantize()), "use quint8"),
    ],
)
def test_what_has_no_form_is_refused_by_name(network: nn.Module, words: str) -> None:
    with pytest.raises(InputError) as refusal:
        in_integers(network, SHAPE)
    assert words in str(refusal.value)


class Random(nn.Module):
    """Draws a number when it runs, which a trace holds for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch_int8.plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + torch.rand(3)


class Mixing(Random):
    """Subtracts the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y - y.mean()


@pytest.mark.parametrize("network", [Random(), Mixing()], ids=["random", "mixing"])
def test_what_is_no_function_of_one_image_is_refused(network: nn.Module) -> None:
    with pytest.raises(InputError, match="mixes the images of a batch, or draws random numbers"):
        in_integers(network, SHAPE)


@pytest.mark.parametrize("place", ["", "1"])
def test_a_hook_is_refused(place: str) -> None:
    """A hook on one image in a million would not be met by the images that are compared."""
    network = torch_int8.plain()
    network.get_submodule(place).register_forward_hook(lambda module, x, y: y)
    with pytest.raises(InputError, match="has a hook at"):
        in_integers(network, SHAPE)


def test_a_forward_of_a_module_alone_is_refused() -> None:
    network = torch_int8.plain()
    network[1].forward = network[1].forward
    with pytest.raises(InputError, match="has a hook at '1'"):
        in_integers(network, SHAPE)


def test_kernels_that_give_other_integers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As clipped sums of products are, on engines and processors that clip them."""
    network = torch_int8.plain()
    other = copy.deepcopy(network)
    kernel = type(other[8]).forward
    monkeypatch.setattr(type(other[8]), "forward", lambda self, x: kernel(self, clipped(x)))
    with pytest.raises(InputError, match=r"other integers than exact sums on \d+ of 24 random images"):
        in_integers(other, SHAPE)


def clipped(x: Any) -> Any:
    """The same codes, those above 40 clipped."""
    return torch._make_per_tensor_quantized_tensor(x.int_repr().clamp_max(40), x.q_scale(), x.q_zero_point())


def test_what_certify_says_of_such_networks() -> None:
    assert "certkd.in_integers(network, image_shape)" in str(other_form(torch_int8.plain()))
    dynamic = quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear}, dtype=torch.qint8)
    assert "quantise by the range of a whole batch" in str(other_form(dynamic))


def test_weights_per_tensor_with_a_zero_point() -> None:
    network = torch_int8.plain()
    weight = torch.quantize_per_tensor(torch.randn(3, 12) + 1, 0.1, -20, torch.qint8)
    network[8].set_weight_bias(weight, torch.randn(3))
    x = torch.rand(500, *SHAPE)
    assert torch.equal(in_integers(network, SHAPE)(x), network(x))


def test_graphs_of_fx_are_read() -> None:
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    network = nn.Sequential(*[layer for layer in torch_int8.layers() if "Stub" not in type(layer).__name__]).eval()
    mapping = quantization.QConfigMapping().set_global(torch_int8.qconfig())
    ready = prepare_fx(network, mapping, (torch.rand(1, *SHAPE),))
    ready(torch.rand(256, *SHAPE))
    made, x = convert_fx(ready), torch.rand(500, *SHAPE)
    assert torch.equal(in_integers(made, SHAPE)(x), made(x))


def layer_of(weight: Tensor, *, scale: float = 1 / 255, to: float = 0.1, bias: Tensor | None = None) -> nn.Sequential:
    """Rounding of images to codes, one linear layer with weights of scale 1 / 64, and real numbers again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = nnq.Linear(weight.shape[1], weight.shape[0])
        made = torch.quantize_per_tensor(weight / 64, 1 / 64, 0, torch.qint8)
        layer.set_weight_bias(made, bias)
        layer.scale, layer.zero_point = to, 128
        return nn.Sequential(nnq.Quantize(scale, 0, torch.quint8), nn.Flatten(), layer, nnq.DeQuantize()).eval()


def test_weights_whose_products_may_be_clipped_are_refused() -> None:
    """Two products of 65, 64 and values of 255 leave int16: processors without VNNI clip them."""
    kept = torch.tensor([[64.0, 64.0, -64.0, 1.0], [3.0, -64.0, -64.0, 63.0]])
    assert isinstance(in_integers(layer_of(kept), (1, 2, 2)), nn.Module)
    for place, value in (((0, 0), 65.0), ((1, 2), -65.0)):
        weight = kept.clone()
        weight[place] = value
        with pytest.raises(InputError, match="leave int16, where processors without VNNI clip sums: observe weights"):
            in_integers(layer_of(weight), (1, 2, 2))


def test_small_logits_must_be_equal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    network = layer_of(torch.tensor([[1.0, 2.0, -3.0, 4.0], [4.0, 3.0, 2.0, -1.0]]), to=1e-9)
    assert in_integers(network, (1, 2, 2)) is not None
    monkeypatch.setitem(
        quantized._MODULES, nnq.DeQuantize, lambda w, m, x: w.call(torch.ops.aten.mul.Tensor, x.node, -1e-9)
    )
    with pytest.raises(InputError, match="other integers than exact sums"):
        in_integers(network, (1, 2, 2))


@pytest.mark.parametrize("wrong", [-1 / 255, 0.0, float("inf")])
def test_scales_are_positive(wrong: float) -> None:
    with pytest.raises(InputError, match="is not positive and finite"):
        in_integers(layer_of(torch.ones(2, 4), scale=wrong), (1, 2, 2))


class Calling(nn.Sequential):
    """Code of its own around forward, which no trace sees."""

    def __call__(self, x: Tensor) -> Tensor:
        return -super().__call__(x)


def test_what_a_trace_leaves_out_is_refused() -> None:
    network = layer_of(torch.ones(2, 4))
    with pytest.raises(InputError, match="has a __call__ of its own: write it as forward"):
        in_integers(Calling(*network).eval(), (1, 2, 2))
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, found: None)
    try:
        with pytest.raises(InputError, match="hooks of all modules are registered"):
            in_integers(network, (1, 2, 2))
    finally:
        handle.remove()
