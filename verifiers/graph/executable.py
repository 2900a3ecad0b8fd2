"""Turn an exported network into a program: a graph of operators for one image, without Python code and without writes.

The program is a module. It runs in the network's own precision and, converted, in float64, on one image or on many.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from verifiers.core.errors import Unsupported
from verifiers.graph.exported import Exported, kind_of
from verifiers.runtime.oom import pass_on_memory
from verifiers.runtime.outputs import as_logits, rows_of

aten = torch.ops.aten
#: Operators without effect on values.
NOTHING = ("_assert_tensor_metadata", "alias", "detach", "lift_fresh_copy")
#: Operators whose results share no memory with their inputs, so that writing to the result changes nothing else.
_FRESH = frozenset(
    "conv1d conv2d conv3d conv_transpose2d linear batch_norm add sub mul div clone relu matmul mm bmm addmm cat "
    "max_pool2d avg_pool2d layer_norm group_norm sigmoid tanh silu gelu hardswish leaky_relu".split()
)


def unlifted(exported: Exported) -> fx.GraphModule:
    """Make a module that maps one image to its logits, with the weights under their own names.

    Raises:
        Unsupported: the output is not one tensor that depends on the image.
    """
    made = _Unlifting(exported)
    for node in exported.nodes:
        made.append(node)
    module = fx.GraphModule(made.root, made.graph)
    module.graph.lint()
    return module.eval().requires_grad_(False)


class _Unlifting:
    """Copy the nodes of an exported network; its weights, which are inputs there, become attributes."""

    def __init__(self, exported: Exported) -> None:
        self.exported, self.graph, self.root = exported, fx.Graph(), nn.Module()
        self._made: dict[fx.Node, fx.Node] = {}

    def append(self, node: fx.Node) -> None:
        """Add one node of the exported network."""
        if node.op == "placeholder":
            self._made[node] = self._placeholder(node)
        elif node.op == "output":
            self._output(node)
        else:
            self._made[node] = self._call(node)

    def _placeholder(self, node: fx.Node) -> fx.Node:
        exported = self.exported
        if node.name in exported.images:
            return _noted(self.graph.placeholder("image"), node, image=True)
        if node.name in exported.constants:
            name, value = f"constants.{node.name}", exported.constants[node.name]
        elif node.name in exported.weights:
            name = exported.weights[node.name]
            value = exported.state[name]
        else:
            raise Unsupported(f"the network holds {node.name!r}, neither a tensor nor its input")
        store(self.root, name, value, buffer=name in exported.buffers or name.startswith("constants."))
        made = self.graph.get_attr(name)
        made.meta = {"shape": tuple(value.shape), "image": False}
        return made

    def _call(self, node: fx.Node) -> fx.Node:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda given: self._made[given])
        kind, target = kind_of(node.target), cast(Any, node.target)
        if kind in NOTHING or (kind in ("dropout", "feature_dropout") and not args[2]):
            return cast(fx.Node, args[0])
        if kind == "rms_norm":
            args = _with_epsilon(tuple(args), node)
        depends = any(given.meta["image"] for given in tree_leaves((args, kwargs)) if isinstance(given, fx.Node))
        return _noted(self.graph.call_function(target, tuple(args), kwargs), node, image=depends)

    def _output(self, node: fx.Node) -> None:
        found = fx.node.map_arg(node.args, lambda given: self._made[given])[0]
        found = found if isinstance(found, tuple | list) else (found,)
        if len(found) != 1 or not isinstance(found[0], fx.Node) or not found[0].meta["image"]:
            raise Unsupported("the network's output must be one tensor that depends on the image")
        self.graph.output(found[0])


def _with_epsilon(args: tuple[Any, ...], node: fx.Node) -> tuple[Any, ...]:
    """Write down the default epsilon of RMS normalisation, which torch takes from the precision in which it runs."""
    x, shape, weight, eps = [*args, None, None][:4]
    return x, shape, weight, torch.finfo(node.meta["val"].dtype).eps if eps is None else eps


def _noted(made: fx.Node, node: fx.Node, *, image: bool) -> fx.Node:
    """Note a node's module and line, its shape, its kind of numbers, and whether it depends on the image."""
    value = node.meta.get("val")
    parts = [part for part in tree_leaves(value) if isinstance(part, Tensor)]
    made.meta = {
        "nn_module_stack": node.meta.get("nn_module_stack"),
        "shape": tuple(value.shape) if isinstance(value, Tensor) else None,
        "image": image,
        "bool": isinstance(value, Tensor) and value.dtype == torch.bool,
        "made": node.op == "call_function" and not node.all_input_nodes and [p.dtype for p in parts] == [torch.float32],
        "half": any(part.is_floating_point() and part.element_size() < 4 for part in parts),
        "stack_trace": node.meta.get("stack_trace"),
    }
    return made


def store(root: nn.Module, name: str, value: Tensor, *, buffer: bool) -> None:
    """Give a module a frozen parameter or a buffer, by a name with dots."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = cast(nn.Module, root._modules[part])
    if buffer or not value.is_floating_point():
        root.register_buffer(last, value.detach().clone())
    else:
        root.register_parameter(last, nn.Parameter(value.detach().clone(), requires_grad=False))


def without_writes(graph: fx.Graph) -> bool:
    """Replace operators that write to fresh values by those that do not; return whether none is left.

    ``relu_(conv(x))`` writes to memory that nothing else shares; later readers read the new value. Every other write
    is left as it is.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or not _writes(node):
            continue
        plain = getattr(aten, kind_of(node.target).removesuffix("_"), None)
        overload = getattr(node.target, "_overloadname", "default")
        if plain is None or overload not in plain.overloads() or not _alone(node):
            return False
        base = node.args[0]
        node.target = getattr(plain, overload)
        order = {each: k for k, each in enumerate(graph.nodes)}
        for user in list(base.users):
            if order[user] > order[node]:
                user.replace_input_with(base, node)
    return not any(node.op == "call_function" and _writes(node) for node in graph.nodes)


def _writes(node: fx.Node) -> bool:
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def _alone(node: fx.Node) -> bool:
    """Return whether a node writes to a fresh value that no earlier node views, of the result's own dtype and shape."""
    base = node.args[0]
    if not isinstance(base, fx.Node) or base.op != "call_function":
        return False
    fresh = kind_of(base.target) in _FRESH and not _writes(base)
    order = {each: k for k, each in enumerate(node.graph.nodes)}
    viewed = any(order[user] < order[node] and kind_of(user.target) not in _FRESH for user in base.users)
    tensors = [leaf.meta.get("val") for leaf in (base, *node.all_input_nodes)]
    same = len({value.dtype for value in tensors if isinstance(value, Tensor)}) == 1
    return fresh and not viewed and same


# The program in another precision


def converted(module: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """Copy a program into another floating-point precision: its constants, and the dtypes that its operators name.

    A conversion inside the program to half precision or to integers stays as it is: it rounds.
    """
    made = copy.deepcopy(module).to(dtype)
    for node in made.graph.nodes:
        node.args, node.kwargs = _of_dtype(node.args, dtype), _of_dtype(node.kwargs, dtype)
        if node.meta.get("made") and any(given.name == "dtype" for given in node.target._schema.arguments):
            node.kwargs = {**node.kwargs, "dtype": node.kwargs.get("dtype") or dtype}
    made.recompile()
    return made


def _of_dtype(given: Any, dtype: torch.dtype) -> Any:
    """Replace float32 and float64 in an operator's arguments."""
    return fx.node.map_aggregate(given, lambda leaf: dtype if leaf in (torch.float32, torch.float64) else leaf)


# Many images at once


class Images(nn.Module):
    """Map a batch of images to logits by a program for one image: no image can depend on another.

    A program of operators that treat the first axis as the batch runs on all images at once. Others are mapped over
    the images by ``torch.vmap``; what that does not know runs image by image.
    """

    def __init__(self, program: fx.GraphModule, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.program = program if dtype is None else converted(program, dtype)
        self.together = batched(self.program)

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        if self.together is not None:
            return self.together(x)
        if len(x) == 1:
            return self.program(x)
        try:
            with _without_advice():
                return torch.vmap(lambda image: self.program(image[None])[0])(x)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            pass_on_memory(error)
            return torch.cat([self.program(image) for image in x.split(1)])


@contextmanager
def _without_advice() -> Iterator[None]:
    """Let ``torch.vmap`` loop over an operator silently: it warns that a batching rule would be faster."""
    functorch: Any = torch._C._functorch
    functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_warning_enabled(True)


class OneByOne(nn.Module):
    """Run a network of Python code on each image alone; one score is two logits, unless outputs are kept ``entire``."""

    def __init__(self, network: nn.Module, *, entire: bool = False) -> None:
        super().__init__()
        self.network, self.entire = network, entire

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        rows = torch.cat([rows_of(self.network(image), 1) for image in x.split(1)])
        return rows if self.entire else as_logits(rows)


#: Operators of one image-dependent argument that treat every image alone, whatever their other arguments are.
_EACH = frozenset(
    "conv1d conv2d conv3d conv_transpose2d linear batch_norm relu relu6 leaky_relu sigmoid tanh silu gelu hardswish "
    "hardsigmoid hardtanh clamp clamp_min clamp_max elu selu celu mish softplus abs exp log sqrt rsqrt reciprocal neg "
    "sign square pow max_pool2d avg_pool2d adaptive_avg_pool2d avg_pool1d adaptive_avg_pool1d dropout feature_dropout "
    "clone contiguous to _to_copy constant_pad_nd pad reflection_pad2d replication_pad2d upsample_nearest2d "
    "upsample_bilinear2d pixel_shuffle pixel_unshuffle layer_norm group_norm prelu "
    "certkd_int8::linear certkd_int8::conv certkd_int8::requantize".split()
)
#: Operators on several tensors, entry by entry.
_ENTRYWISE = frozenset("add sub rsub mul div certkd_int8::add".split())
#: Operators that change the shape, whose sizes begin with the batch.
_SIZES = frozenset("view _unsafe_view reshape".split())


def batched(program: fx.GraphModule) -> fx.GraphModule | None:
    """Rewrite a program so that its first axis is a batch; None if an operator does not treat each image alone.

    The weights are shared.
    """
    graph = copy.deepcopy(program.graph)
    for node in graph.nodes:
        if node.op == "call_function" and node.meta["image"] and not _each_alone(node):
            return None
    return fx.GraphModule(program, graph).eval()


def _each_alone(node: fx.Node) -> bool:
    """Return whether an operator treats the first axis as the batch; sizes that name the batch are made free."""
    args: Any = node.args
    kind, given = kind_of(node.target), [n for n in tree_leaves((args, node.kwargs)) if isinstance(n, fx.Node)]
    images = [n for n in given if n.meta["image"]]
    shapes = [_shape(n) for n in (*images, node)]
    if any(shape is None or len(shape) < 2 or shape[0] != 1 for shape in shapes):
        return False
    rank = len(shapes[0] or ())
    if kind in _EACH:
        least = {
            "conv1d": 3,
            "conv2d": 4,
            "conv3d": 5,
            "conv_transpose2d": 4,
            "group_norm": 2,
            "certkd_int8::conv": 4,
        }.get(kind, 2)
        return images == [args[0]] and rank >= least and _normal(node, rank)
    if kind in _ENTRYWISE:
        constants = [_shape(n) for n in given if not n.meta["image"]]
        equal = all(len(shape or ()) == rank for shape in shapes)
        return equal and all(shape is not None and (len(shape) < rank or shape[0] == 1) for shape in constants)
    if kind == "flatten":
        return _axis(node, 1, 0, rank) >= 1
    if kind == "cat":
        return len(images) == len(args[0]) and _axis(node, 1, 0, rank) >= 1
    if kind == "mean" and len(args) > 1:
        return all(axis % rank >= 1 for axis in args[1] or (0,))
    if kind in _SIZES and isinstance(args[1], Sequence):
        node.target, node.args = aten.reshape.default, (args[0], [-1, *(shapes[-1] or ())[1:]])
        return True
    return False


def _normal(node: fx.Node, rank: int) -> bool:
    """Return whether no statistics are taken over the batch, and no constant adds an axis before it."""
    kind = kind_of(node.target)
    if kind == "layer_norm":
        return len(node.args[1]) < rank  # type: ignore[arg-type]
    if kind == "batch_norm":
        return not node.args[5]
    constants = [n for n in node.all_input_nodes if not n.meta["image"]]
    return kind not in ("pow", "clamp", "clamp_min", "clamp_max") or not constants


def _axis(node: fx.Node, position: int, default: int, rank: int) -> int:
    axis: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim", default)
    return int(axis) % rank


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    return node.meta.get("shape")
