"""Operators of int8 networks: integers by plain loops, gradients, capture, and the graph with its errors."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.graph.int8_nets import Branches, Dense, whole
from verifiers.certify.config import CertifyConfig
from verifiers.certify.identity import in_own_arithmetic
from verifiers.core.errors import InputError, Unsupported
from verifiers.graph import integers
from verifiers.graph.capture import capture
from verifiers.graph.lowering.integers import (
    LARGEST_SUM,
    WHOLE,
    CodeSum,
    IntegerConvolution,
    IntegerDense,
    Rescale,
    Rounded,
    _sum_error,
)
from verifiers.graph.operators import Interval
from verifiers.graph.program import Program
from verifiers.graph.rounding import UNIT, gamma

AROUND = [1, 1, 1, 1, 1, 1]


def int8(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(whole(*shape, seed=seed)).to(torch.int8)


def test_sums_are_exact_where_float32_is_not() -> None:
    """700 products of 255 and 127 exceed 2^24; the last one differs by 1."""
    x, weight = torch.full((1, 700), 255.0), torch.full((1, 700), 127, dtype=torch.int8)
    x[0, -1] = 1.0
    bias = torch.tensor([3], dtype=torch.int32)
    exact = 699 * 255 * 127 + 127 + 3
    assert exact > WHOLE
    assert float(integers.linear(x.double(), weight, bias, False)) == exact
    assert float(integers.linear(x, weight, bias, False)) == float(np.float32(exact))


def test_convolutions_equal_loops_over_integers() -> None:
    x, weight, bias = whole(2, 2, 4, 5, seed=1), whole(4, 1, 3, 2, seed=2), whole(4, seed=3)
    geometry, groups = [2, 1, 1, 0, 1, 2], 2
    found = integers.conv(
        torch.from_numpy(x).float(),
        torch.from_numpy(weight).to(torch.int8),
        torch.from_numpy(bias).to(torch.int32),
        geometry,
        groups,
        False,
    )
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    assert found.shape == (2, 4, 2, 3)
    for i, o, a, b in itertools.product(range(2), range(4), range(2), range(3)):
        total = int(bias[o])
        for u, v in itertools.product(range(3), range(2)):
            total += int(padded[i, o // 2, 2 * a + u, b + 2 * v]) * int(weight[o, 0, u, v])
        assert float(found[i, o, a, b]) == total


def test_values_are_rounded_half_to_even_and_clamped() -> None:
    x, scale = torch.tensor([0.125, 0.375, 0.625, -0.125, 9.0, -9.0]), torch.tensor(0.25)
    assert integers.requantize(x, scale, True, -2.0, 5.0, 0.0).tolist() == [0, 2, 2, 0, 5, -2]
    assert integers.requantize(16 * x, scale, False, -2.0, 5.0, 0.0).tolist() == [0, 2, 2, 0, 5, -2]


def test_a_zero_point_that_is_added_before_changes_halves_alone() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, 0.4, -0.5])
    one = torch.tensor(1.0)
    assert integers.requantize(x, one, True, -9.0, 9.0, 0.0).tolist() == [0, 2, 2, 0, 0]
    assert integers.requantize(x, one, True, -9.0, 9.0, 3.0).tolist() == [1, 1, 3, 0, -1]


def test_sums_of_codes_equal_a_loop() -> None:
    a, b = whole(40, seed=4), whole(40, seed=5)
    ratios, zeros = np.array([0.5, 0.25], np.float32), np.array([3, 5, 11], np.float32)
    given = (torch.from_numpy(a).float(), torch.from_numpy(b).float(), *map(torch.from_numpy, (ratios, zeros)))
    found = integers.add(*given, -11.0, 244.0)
    for x, y, code in zip(a.tolist(), b.tolist(), found.tolist(), strict=True):
        raw = min(max(round(0.5 * x + 0.25 * y + 11), 0), 255)  # Python rounds halves to even
        assert code == raw - 11


def test_dynamic_codes_by_hand() -> None:
    """From -1 to 4 the scale is 5 / 255 and the zero point 51."""
    codes, scale = integers.dynamic(torch.tensor([[-1.0, 0.0, 4.0, 0.5]]))
    assert float(scale) == float(np.float32(5) / np.float32(255))
    assert codes.tolist() == [[-51, 0, 204, 26]] or codes.tolist() == [[-51, 0, 204, 25]]
    codes, scale = integers.dynamic(torch.zeros(1, 3))
    assert float(scale) == 1 and codes.tolist() == [[0, 0, 0]]


def test_gradients_go_straight_through() -> None:
    x = torch.tensor([0.3, 40.0, -0.4, -1.6], requires_grad=True)
    integers.requantize(x, torch.tensor(0.5), False, 0.0, 10.0, 0.0).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.5, 0.0, 0.5, 0.0]
    weight = int8(2, 3, seed=6)
    z = torch.zeros(1, 3, requires_grad=True)
    (integers.linear(z, weight, None, False) * torch.tensor([1.0, 10.0])).sum().backward()
    assert z.grad is not None and z.grad.tolist() == [(weight[0].float() + 10 * weight[1].float()).tolist()]


@pytest.mark.parametrize("groups", [1, 2])
def test_the_gradient_of_a_convolution_is_that_of_torch(groups: int) -> None:
    weight = int8(4, 2 // groups, 3, 3, seed=7)
    images = [torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    rows = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    (integers.conv(images[0], weight, None, AROUND, groups, False) * rows).sum().backward()
    (nn.functional.conv2d(images[1], weight.float(), None, 1, 1, 1, groups) * rows).sum().backward()
    torch.testing.assert_close(images[0].grad, images[1].grad)


def test_the_gradients_of_a_sum_and_of_dynamic_codes() -> None:
    a, b = (torch.tensor([2.0, 90.0], requires_grad=True) for _ in range(2))
    ratios, zeros = torch.tensor([0.5, 0.25]), torch.zeros(3)
    integers.add(a, b, ratios, zeros, 0.0, 20.0).sum().backward()
    assert a.grad is not None and a.grad.tolist() == [0.5, 0.0]
    assert b.grad is not None and b.grad.tolist() == [0.25, 0.0]
    x = torch.tensor([0.0, 255.0], requires_grad=True)
    integers.dynamic(x)[0].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("make", [Dense, Branches])
def test_a_network_of_codes_is_captured_for_any_number_of_images(make: type[nn.Module]) -> None:
    network = make().eval()
    shape = (5, 2) if make is Dense else (5, 1, 4, 4)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    program = Program(network)
    captured = program.capture(x[:2])
    assert captured.module.together is not None, "it runs image by image"  # type: ignore[union-attr]
    torch.testing.assert_close(captured.whole(x), network(x), rtol=0, atol=0)
    alone = torch.cat([captured.whole(image) for image in x.split(1)])
    torch.testing.assert_close(captured.whole(x), alone, rtol=0, atol=0)
    assert len(program.sha256) == 64 and integers.computes_in_int8(network)


def test_the_hash_depends_on_weights_of_integers() -> None:
    one = Dense().eval()
    other = copy.deepcopy(one)
    other.first[0, 0] += 1
    x = torch.rand(2, 2)
    programs = [Program(each) for each in (one, other)]
    for program in programs:
        program.capture(x)
    assert programs[0].sha256 != programs[1].sha256


@pytest.mark.parametrize("make", [Dense, Branches])
def test_the_graph_is_the_network(make: type[nn.Module]) -> None:
    """In float64, on random images and where codes are on the border: multiples of half a step."""
    network = make().eval()
    shape = (64, 2) if make is Dense else (64, 1, 4, 4)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[32:] = (x[32:] * 32).round() / 32
    graph, twin = capture(network, x[:1]), copy.deepcopy(network).double()
    torch.testing.assert_close(graph(x), twin(x), rtol=0, atol=1e-9)


def kinds(network: nn.Module, x: Tensor) -> list[str]:
    return [type(node.operator).__name__ for node in capture(network.eval(), x).nodes[1:]]


def test_a_layer_and_its_scale_are_one_node() -> None:
    assert kinds(Dense(), torch.rand(1, 2))[:4] == ["Rescale", "Rounded", "IntegerDense", "Rounded"]
    found = kinds(Branches(), torch.rand(1, 1, 4, 4))
    assert found[:6] == ["Rescale", "Rounded", "IntegerConvolution", "Rounded", "IntegerConvolution", "Rounded"]
    assert "CodeSum" in found


class Twice(nn.Module):
    """Sums that are rounded to two scales and used as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", int8(3, 2, seed=8))
        self.register_buffer("scales", torch.tensor([0.02, 0.05]))

    def forward(self, x: Tensor) -> Tensor:
        sums = integers.linear(x, self.weight, None, False)
        one, other = (integers.requantize(sums, scale, False, -9.0, 9.0, 0.0) for scale in self.scales)
        return one + 2 * other + 0.1 * sums


def test_sums_that_are_read_twice_stay_a_node() -> None:
    network = Twice()
    assert kinds(network, torch.rand(1, 2)).count("IntegerDense") == 3
    x = 4 * torch.rand(9, 2, dtype=torch.float64)
    torch.testing.assert_close(capture(network, x[:1])(x), network.double()(x), rtol=0, atol=1e-9)


def test_dynamic_quantisation_has_no_bounds() -> None:
    class Ranged(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            codes, scale = integers.dynamic(x)
            return codes * scale

    with pytest.raises(Unsupported, match="quantises by the range of its values"):
        capture(Ranged().eval(), torch.rand(1, 3))


# Errors of float32


def box(low: Tensor, high: Tensor) -> Interval:
    return Interval(low[None].double(), high[None].double())


def test_exact_sums_have_no_error_and_large_ones_that_of_a_conversion() -> None:
    layer = IntegerDense(torch.tensor([[127.0] * 4]).double(), torch.tensor([5.0]).double(), (1,))
    small, large = box(torch.zeros(4), torch.full((4,), 255.0)), box(torch.zeros(4), torch.full((4,), 1e5))
    assert layer.rounding([small], layer.interval(small)) is None
    after = layer.interval(large)
    error = layer.rounding([large], after)
    assert error is not None and float(error) == pytest.approx(UNIT * float(after.high), rel=1e-6)
    huge = box(torch.zeros(4), torch.full((4,), 1e7))
    assert float(layer.interval(huge).high) > LARGEST_SUM
    error = layer.rounding([huge], layer.interval(huge))
    assert error is not None and torch.isinf(error).all(), "an int32 that overflows has a bound"


def test_sums_of_floats_have_the_error_of_every_order() -> None:
    """4 products, the bias, and 5 more roundings of a term: of the dequantised factors, the bias and the product."""
    layer = IntegerDense(torch.tensor([[100.0, -100.0, 3.0, 1.0]]).double(), torch.tensor([-7.0]).double(), (1,))
    layer.floats = True
    given = box(torch.full((4,), -2.0), torch.full((4,), 9.0))
    error = layer.rounding([given], layer.interval(given))
    size = 9 * 204 + 7
    assert error is not None and float(error) == pytest.approx(float(gamma(5 + 5)) * size, rel=1e-6)


def test_a_rescaled_layer_has_the_error_of_its_scale() -> None:
    network = Dense(scale=0.02)
    graph = capture(network.eval(), torch.rand(1, 2))
    layer = graph.nodes[3].operator
    assert isinstance(layer, IntegerDense) and layer.scale is not None
    given = box(torch.zeros(2), torch.full((2,), 16.0))
    after = layer.interval(given)
    error = layer.rounding([given], after)
    largest = torch.maximum(after.low.abs(), after.high.abs())
    assert error is not None
    torch.testing.assert_close(error, gamma(7) * largest, rtol=1e-6, atol=1e-40)


def test_float32_stays_within_the_errors_of_a_rescaled_sum() -> None:
    """Every order of the scales' products and quotients, against exact rationals."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        x, w, y = (np.float32(value) for value in generator.random(3) + 1e-3)
        total = np.float32(generator.integers(-(2**23), 2**23))
        exact = float(total) * float(x) * float(w) / float(y)
        ways = [total * ((x * w) / y), (total * x) * w / y, total * (x / y) * w, (total * (x * w)) * (1 / y)]
        bound = float(gamma(6)) * abs(exact)
        for k, way in enumerate(ways):
            assert abs(float(way) - exact) <= bound, f"order {k} is off by {abs(float(way) - exact)}"


def test_rescaled_values_and_sums_of_codes_state_their_errors() -> None:
    given = box(torch.tensor([-3.0]), torch.tensor([5.0]))
    scaled = Rescale(torch.tensor(0.25, dtype=torch.float64), (1,), divide=True, added=2.0)
    assert scaled.interval(given).high.tolist() == [[20.0]]
    error = scaled.rounding([given], scaled.interval(given))
    assert error is not None and float(error) == pytest.approx(float(gamma(6)) * 22, rel=1e-6)
    both = CodeSum((0.5, 2.0), [(1,), (1,)], (1,), torch.zeros(1, dtype=torch.float64), added=4.0)
    after = both.interval(given, given)
    assert after.low.tolist() == [[-7.5]] and after.high.tolist() == [[12.5]]
    error = both.rounding([given, given], after)
    assert error is not None and float(error) == pytest.approx(float(gamma(6)) * 16.5, rel=1e-6)


def test_rows_tighten_only_what_reaches_an_end_of_the_range() -> None:
    network = Dense()
    graph = capture(network.eval(), torch.rand(1, 2))
    rounded = graph.nodes[4].operator
    assert isinstance(rounded, Rounded)
    given = box(torch.tensor([-3.0, 1.0, 100.0, 130.0]), torch.tensor([2.0, 90.0, 140.0, 150.0]))
    (masks,) = rounded.inputs_to_tighten([given])
    assert masks is not None and masks.tolist() == [[True, False, True, False]]
    assert graph.code_ends[3] == (0.5, 126.5)


def test_codes_of_the_image_are_apart() -> None:
    """Each is a monotone function of one pixel; after a convolution none is."""
    graph = capture(Branches().eval(), torch.rand(1, 1, 4, 4))
    assert graph.apart[:4] == [True, True, True, False] and graph.coded[:4] == [False, False, True, False]
    assert isinstance(graph.nodes[3].operator, IntegerConvolution)


# Other forms of int8


def refusal(network: nn.Module) -> str:
    with pytest.raises(InputError) as caught:
        in_own_arithmetic(CertifyConfig(eps="0.1"), network)
    message = str(caught.value)
    assert message.startswith("an int8 network in a form that is not read: ")
    return message


def test_modules_of_torch_are_refused_with_the_reason() -> None:
    static = nn.Sequential(nn.Flatten(), nn.ReLU())
    static.add_module("last", torch.ao.nn.quantized.Quantize(0.1, 0, torch.quint8))
    said = refusal(static)
    assert "'last': torch.ao's quantised modules hold their integers where no graph shows them" in said
    assert "write them with certkd.in_integers(network, image_shape)" in said


@pytest.mark.slow
def test_dynamic_modules_and_tensors_of_torchao_are_refused_with_the_reason() -> None:
    linear = nn.Sequential(nn.Linear(32, 32))
    dynamic = torch.ao.quantization.quantize_dynamic(linear, {nn.Linear}, dtype=torch.qint8)
    assert "'0': torch.ao's dynamic modules quantise by the range of a whole batch" in refusal(dynamic)
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(linear, torchao.Int8DynamicActivationInt8WeightConfig())
    assert "'0.weight': torchao's tensors run kernels that no graph shows" in refusal(linear)


@pytest.mark.parametrize("network", [nn.Linear(2, 2), nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), Dense()])
def test_other_networks_are_in_no_such_form(network: nn.Module) -> None:
    assert integers.other_form(network) is None


def test_a_sum_that_only_its_bias_keeps_in_int32_has_no_bound() -> None:
    """A bias in float32 is added behind the sum, which has overflowed then."""
    size, after, scale = torch.tensor([[1e3]]), torch.tensor([[1e3]]), torch.tensor(1e-3)
    assert bool(_sum_error(size, after, None, scale, torch.tensor([1e3])).isfinite().all())
    assert bool(_sum_error(size, after, None, scale, torch.tensor([3e6])).isinf().all())
