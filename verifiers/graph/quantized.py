"""Networks of torch.ao's quantised modules, written with exact integers.

Torch keeps the integers of such a network where no graph shows them. They are written here with the operators of
:mod:`verifiers.graph.integers`, in the arithmetic of torch's engines x86 and fbgemm, to the last bit: with x and w
centred codes, m = s_x s_w / s_y and b a bias in float32, a layer gives round((sum x w + b / (s_x s_w)) m). Bounds also
cover engines that round in another order, or round biases to integers.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import Tensor, fx, nn

from verifiers.core.errors import InputError, one_line
from verifiers.graph import integers
from verifiers.graph.sequence import hooked, hooked_everywhere

#: The largest code of quint8, the only type that torch's kernels have for values.
LARGEST = 255
#: Random images on which both forms must give the same logits.
IMAGES = 24
#: Modules and methods that move codes or take their maxima: the same on codes as on real numbers.
MOVES = (nn.Flatten, nn.Identity, nn.Dropout, nnq.Dropout, nn.MaxPool2d, nn.ReLU, nn.Unflatten)
METHODS = frozenset("contiguous flatten permute relu relu_ reshape squeeze transpose unsqueeze view".split())
FUNCTIONS: tuple[Any, ...] = (torch.flatten, torch.relu, torch.reshape, torch.permute, torch.transpose)
FUNCTIONS += (torch.squeeze, torch.unsqueeze, torch.max_pool2d, nn.functional.relu, nn.functional.max_pool2d)
#: Methods that give a size, and no codes.
SIZES = frozenset(("size", "dim"))


class IntegerNetwork(nn.Module):
    """A network of torch.ao's quantised modules, in exact integers.

    Attributes:
        program: its operators.
        zeros: the zero points of its values, which are part of what is hashed.
    """

    int8 = True

    def __init__(self, program: fx.GraphModule, zeros: Sequence[int]) -> None:
        super().__init__()
        self.program = program
        self.register_buffer("zeros", torch.tensor(zeros, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Any:
        return self.program(x)


def has_quantized(network: nn.Module) -> bool:
    """Tell whether a network has torch.ao's static quantised modules, or operators on their values."""
    return any(type(each) in _MODULES or type(each) is nnq.QFunctional for each in network.modules())


def in_integers(network: nn.Module, shape: Sequence[int]) -> IntegerNetwork:
    """Write a network of torch.ao's quantised modules with exact integers, so that it can be certified as it runs.

    Both are run on random images and must give the same logits in all bits.

    Args:
        network: after ``torch.ao.quantization.convert``, in eval mode; from ``QuantStub`` to ``DeQuantStub``.
        shape: of one image.

    Raises:
        InputError: a module or an operator has no such form, the network has hooks, or torch's kernels give other
            integers on this machine.
    """
    _check_plain(network)
    try:
        traced = fx.symbolic_trace(network)
    except Exception as error:  # whatever its code does
        raise InputError(f"torch.fx cannot trace the quantised network: {one_line(error)}") from error
    writer = _Writer(traced)
    made = IntegerNetwork(writer.write(), writer.zeros).eval()
    _check_same(network, made, shape)
    return made


def _check_plain(network: nn.Module) -> None:
    """Refuse what tracing would leave out.

    Raises:
        InputError: the network has hooks or calls of its own.
    """
    if hooked_everywhere():
        raise InputError("hooks of all modules are registered, which integers leave out: remove them")
    for name, module in network.named_modules():
        if hooked(module):
            raise InputError(f"the quantised network has a hook at {name!r}, which its integers leave out: remove it")
        if type(module).__call__ is not nn.Module.__call__ and not isinstance(module, fx.GraphModule):
            raise InputError(f"{name or type(module).__name__!r} has a __call__ of its own: write it as forward")


def _check_same(network: nn.Module, made: nn.Module, shape: Sequence[int]) -> None:
    """Compare both on random images, one by one and together.

    Raises:
        InputError: they differ.
    """
    x = torch.rand(IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = network(x), made(x)
        alone = torch.cat([network(image) for image in x.split(1)])
    if not torch.equal(expected, alone):
        raise InputError("the quantised network mixes the images of a batch, or draws random numbers")
    if not torch.equal(expected, found):
        share = int((expected != found).flatten(1).any(1).sum())
        raise InputError(
            f"torch's kernels give other integers than exact sums on {share} of {IMAGES} random images: convert the "
            "network with torch.backends.quantized.engine = 'x86', as other engines round in other ways"
        )


@dataclass(frozen=True)
class _Codes:
    """A value in the new graph: centred codes, their scale (float32) and zero point."""

    node: fx.Node
    scale: Tensor
    zero: int

    @property
    def range(self) -> tuple[float, float]:
        return float(-self.zero), float(LARGEST - self.zero)


class _Writer:
    """Write a traced network once more, with integers in the place of quantised values."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced, self.graph = traced, fx.Graph()
        self.root = nn.Module()
        self.zeros: list[int] = []
        self.made: dict[fx.Node, Any] = {}

    def write(self) -> fx.GraphModule:
        """Write all nodes."""
        for name, module in self.traced.named_children():
            self.root.add_module(name, module)
        for node in self.traced.graph.nodes:
            self.made[node] = self._one(node)
        used = {node.target for node in self.graph.nodes if node.op == "call_module"}
        program = fx.GraphModule(self.root, self.graph)
        assert not any(type(program.get_submodule(name)) in _MODULES for name in used)
        return program

    def _one(self, node: fx.Node) -> Any:
        given = [self.made[each] for each in node.all_input_nodes]
        in_codes = any(isinstance(each, _Codes) for each in given)
        if node.op == "call_module":
            module = self.traced.get_submodule(str(node.target))
            written = _MODULES.get(type(module)) or (_ON_CODES.get(type(module)) if in_codes else None)
            if written is not None:
                return written(self, module, *given)
            return self._moved(node, type(module) in MOVES, type(module).__name__) if in_codes else self._copied(node)
        if node.op == "call_function" and node.target in _FUNCTIONS:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
            return _FUNCTIONS[node.target](self, *args, **kwargs)
        if node.op == "call_method" and node.target == "dequantize":
            return dequantize(self, None, given[0])
        if node.op == "get_attr" and isinstance(value := self._value(node), Tensor):
            return self.constant(value)
        sizes = node.target is getattr or (node.op == "call_method" and node.target in SIZES)
        if not in_codes or node.op == "output" or sizes:
            return self._copied(node)
        name = getattr(node.target, "__name__", str(node.target))
        moves = node.target in FUNCTIONS if node.op == "call_function" else node.target in METHODS
        return self._moved(node, moves or node.target is operator.getitem, name)

    def _value(self, node: fx.Node) -> Any:
        """Return an argument of an operator on codes: a value, or the constant that an attribute holds."""
        if node.op != "get_attr":
            return self.made[node]
        return operator.attrgetter(str(node.target))(self.traced)

    def _copied(self, node: fx.Node) -> fx.Node:
        """Copy a node of real numbers, or of sizes."""
        if node.op == "output" and any(isinstance(self.made[each], _Codes) for each in node.all_input_nodes):
            raise InputError("the quantised network gives codes and no real numbers: end it with DeQuantStub")
        return self.graph.node_copy(node, self._plain)

    def _moved(self, node: fx.Node, moves: bool, name: str) -> _Codes:
        """Copy an operator that moves codes, if it does."""
        values = [self.made[each] for each in node.all_input_nodes]
        codes = [each for each in values if isinstance(each, _Codes)]
        if not moves or len(codes) != 1:
            raise InputError(f"{name} of the quantised network has no form in integers here; {integers.QUANTIZE}")
        return _Codes(self.graph.node_copy(node, self._plain), codes[0].scale, codes[0].zero)

    def _plain(self, node: fx.Node) -> fx.Node:
        value = self.made[node]
        return value.node if isinstance(value, _Codes) else value

    def constant(self, value: Tensor) -> fx.Node:
        """Keep a tensor beside the graph."""
        name = f"constant{sum(1 for _ in self.root.named_buffers(recurse=False))}"
        self.root.register_buffer(name, value.detach().clone())
        return self.graph.get_attr(name)

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """Append an operator."""
        return self.graph.call_function(function, args)

    def rounded(self, x: fx.Node, factor: Tensor, to: "_To", low: float | None = None) -> _Codes:
        """Round x times a factor to codes."""
        least, most = to.range
        least = least if low is None else max(least, low)
        self.zeros.append(to.zero)
        node = self.call(integers.requantize, x, self.constant(factor), False, least, most, 0.0)
        return _Codes(node, to.scale, to.zero)


@dataclass(frozen=True)
class _To:
    """The scale and the zero point to which values are rounded."""

    scale: Tensor
    zero: int

    @classmethod
    def of(cls, scale: Any, zero: Any, dtype: torch.dtype = torch.quint8) -> "_To":
        """Read both as torch holds them.

        Raises:
            InputError: the values are not of quint8.
        """
        if dtype is not torch.quint8 or not 0 <= int(zero) <= LARGEST:
            raise InputError(f"values of {dtype} with zero point {int(zero)} have no kernels on CPUs: use quint8")
        found = torch.as_tensor(scale, dtype=torch.float32).reshape(())
        if not 0 < float(found) < float("inf"):
            raise InputError(f"the scale {float(found):g} of quantised values is not positive and finite")
        return cls(found, int(zero))

    @property
    def range(self) -> tuple[float, float]:
        return float(-self.zero), float(LARGEST - self.zero)


def quantize(writer: _Writer, module: Any, x: fx.Node) -> _Codes:
    """Round real numbers to codes; torch multiplies by the reciprocal of the scale."""
    to = _To.of(module.scale, module.zero_point, module.dtype)
    return writer.rounded(x, 1 / to.scale, to)


def quantize_per_tensor(writer: _Writer, x: fx.Node, scale: Any, zero_point: Any, dtype: torch.dtype) -> _Codes:
    """Round real numbers to codes, as graphs of torch.fx's quantisation do."""
    to = _To.of(scale, zero_point, dtype)
    return writer.rounded(x, 1 / to.scale, to)


def dequantize(writer: _Writer, module: Any, x: Any) -> fx.Node:
    """Multiply codes by their scale."""
    return writer.call(torch.ops.aten.mul.Tensor, _needed(x).node, writer.constant(x.scale))


def _needed(x: Any) -> _Codes:
    if not isinstance(x, _Codes):
        raise InputError("a quantised layer receives real numbers: begin the quantised network with QuantStub")
    return x


def _layer(writer: _Writer, module: Any, x: Any, sum_of: Callable[..., fx.Node], sides: int) -> _Codes:
    """Add up products of codes and round; ``sides`` are the axes behind the channels."""
    weight, to = module.weight(), _To.of(module.scale, module.zero_point)
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric) and weight.q_per_channel_axis() == 0:
        scales, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    elif weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scales, zeros = (torch.tensor([each]) for each in (weight.q_scale(), weight.q_zero_point()))
    else:
        raise InputError(f"quantised weights of the scheme {weight.qscheme()} are not read: use one scale per channel")
    _check_pairs(weight.int_repr(), module)
    if not bool(((scales > 0) & scales.isfinite()).all()):
        raise InputError("a scale of quantised weights is not positive and finite")
    codes = weight.int_repr().short() - zeros.short().reshape(-1, *(1,) * (weight.dim() - 1))
    scale = (_needed(x).scale * scales.float()).reshape(-1)
    bias = None if module.bias() is None else (module.bias().detach() / scale).float()
    sums = sum_of(x.node, writer.constant(codes), None if bias is None else writer.constant(bias))
    factor = scale / to.scale
    factor = factor.reshape(-1, *(1,) * sides) if factor.numel() > 1 else factor.reshape(())
    relu = isinstance(module, nniq.LinearReLU | nniq.ConvReLU2d)
    return writer.rounded(sums, factor, to, low=0.0 if relu else None)


def _check_pairs(codes: Tensor, module: nn.Module) -> None:
    """Refuse weights whose products with two values may leave int16, where processors without VNNI clip them.

    Raises:
        InputError: they may.
    """
    rows = torch.nn.functional.pad(codes.flatten(1).short(), (0, 2))  # a sum may have one term
    largest, least = rows.topk(2, 1).values.sum(1), rows.topk(2, 1, largest=False).values.sum(1)
    if int(largest.max()) * LARGEST > 32767 or int(least.min()) * LARGEST < -32768:
        raise InputError(
            f"two weights of {type(module).__name__} and values of 255 leave int16, where processors without VNNI clip "
            "sums: observe weights with reduce_range=True (torch.ao.quantization.PerChannelMinMaxObserver.with_args("
            "dtype=torch.qint8, qscheme=torch.per_channel_symmetric, reduce_range=True))"
        )


def linear(writer: _Writer, module: Any, x: Any) -> _Codes:
    """Apply a linear layer to codes."""
    return _layer(writer, module, x, lambda *args: writer.call(integers.linear, *args, True), 0)


def conv(writer: _Writer, module: Any, x: Any) -> _Codes:
    """Convolve codes over two axes.

    Raises:
        InputError: it pads with other values than 0.
    """
    if module.padding_mode != "zeros":
        raise InputError(f"a quantised convolution that pads by {module.padding_mode!r} is not read: pad with zeros")
    geometry = [*module.stride, *module.padding, *module.dilation]
    return _layer(writer, module, x, lambda *args: writer.call(integers.conv, *args, geometry, module.groups, True), 2)


def relu6(writer: _Writer, module: Any, x: Any) -> _Codes:
    """Clamp codes between 0 and the code of 6."""
    most = min(float(torch.round(6 * (1 / _needed(x).scale))), x.range[1])
    return _Codes(writer.call(torch.ops.aten.clamp.default, x.node, 0.0, most), x.scale, x.zero)


def add(writer: _Writer, a: Any, b: Any, scale: Any, zero_point: Any, relu: bool = False) -> _Codes:
    """Add two values of codes and round."""
    a, b, to = _needed(a), _needed(b), _To.of(scale, zero_point)
    ratios = torch.stack([a.scale / to.scale, b.scale / to.scale])
    zeros = torch.tensor([float(a.zero), float(b.zero), float(to.zero)])
    low, high = to.range
    writer.zeros.append(to.zero)
    constants = writer.constant(ratios), writer.constant(zeros), 0.0 if relu else low, high
    return _Codes(writer.call(integers.add, a.node, b.node, *constants), to.scale, to.zero)


def add_relu(writer: _Writer, a: Any, b: Any, scale: Any, zero_point: Any) -> _Codes:
    """Add two values of codes, and round what is above 0."""
    return add(writer, a, b, scale, zero_point, relu=True)


#: How modules and functions of quantised values are written; those of the second table are also of real numbers.
_MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nnq.Quantize: quantize,
    nnq.DeQuantize: dequantize,
    nnq.Linear: linear,
    nniq.LinearReLU: linear,
    nnq.Conv2d: conv,
    nniq.ConvReLU2d: conv,
    nnq.ReLU6: relu6,
}
_ON_CODES: dict[type[nn.Module], Callable[..., Any]] = {nn.ReLU6: relu6}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.quantize_per_tensor: quantize_per_tensor,
    torch.ops.quantized.add: add,
    torch.ops.quantized.add_relu: add_relu,
}
