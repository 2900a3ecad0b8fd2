"""Capture a network as a graph of operators with torch.export; plain sequences are translated directly.

The graph is captured for a batch of one, and every operator treats a batch sample by sample. Nothing in the network
can therefore mix the samples of a batch. Unsupported operators are rejected by name, with their module.
"""

import copy
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verifiers.core.errors import Unsupported, one_line
from verifiers.graph.exported import Exported
from verifiers.graph.graph import Builder, Graph, Ref
from verifiers.graph.lowering import LOWERINGS
from verifiers.graph.lowering.constants import fold, perturb
from verifiers.graph.lowering.shapes import note_rounded
from verifiers.graph.sequence import written


def capture(model: nn.Module, x: Float[Tensor, "1 *shape"], dtype: torch.dtype = torch.float64) -> Graph:
    """Capture the graph of a network in eval mode, in the given dtype, for images like ``x``.

    Raises:
        Unsupported: the network cannot be exported, or an operator is not known.
    """
    like = x[:1].detach().to(dtype)
    exported = export(copy.deepcopy(model).to(dtype), like)
    builder = Builder(like)
    output = lower(exported, exported.state, builder)
    # Other operators may read the output too; nodes after it do not matter.
    return Graph(builder.nodes[: output.node + 1], like)


def export(model: nn.Module, x: Float[Tensor, "1 *shape"]) -> Exported:
    """Put a network into eval mode, freeze it, and export it for one image.

    Raises:
        Unsupported: the network cannot be exported, or changes a buffer.
    """
    model = model.eval().requires_grad_(False)
    plain = written(model)
    if plain is not None:
        return plain
    exported = _export(model, x)
    signature = exported.graph_signature
    if signature.buffers_to_mutate:
        raise Unsupported(
            f"native: the network changes its buffer {next(iter(signature.buffers_to_mutate.values()))!r}"
        )
    return Exported(
        nodes=list(exported.graph.nodes),
        weights={**signature.inputs_to_parameters, **signature.inputs_to_buffers},
        constants={
            name: exported.constants[target].detach()
            for name, target in signature.inputs_to_lifted_tensor_constants.items()
        },
        images=frozenset(signature.user_inputs),
        state={name: value.detach() for name, value in {**exported.constants, **exported.state_dict}.items()},
    )


def lower(exported: Exported, weights: Mapping[str, Tensor], builder: Builder) -> Ref:
    """Append an exported network with the given weights to a graph.

    Raises:
        Unsupported: an operator is not known.
    """
    known: dict[str, Any] = {**exported.constants, **{name: weights[w] for name, w in exported.weights.items()}}
    for constant in exported.constants.values():
        note_rounded(builder, constant)
    for node in exported.nodes:
        if node.op == "placeholder":
            if node.name not in known and node.name not in exported.images:
                raise Unsupported(f"native: the network holds {node.name!r}, neither a tensor nor its input")
            known.setdefault(node.name, Ref(0, tuple(builder.like.shape)))
        elif node.op == "call_function":
            builder.path, builder.kind = _path(node), _kind(node.target)
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: known[n.name])
            known[node.name] = _lower(builder, node.target, args, kwargs, LOWERINGS)
        elif node.op == "output":
            outputs = torch.fx.node.map_arg(node.args, lambda n: known[n.name])[0]
            if len(outputs) != 1 or not isinstance(outputs[0], Ref):
                raise Unsupported("native: the network's output must be one tensor that depends on the image")
            return outputs[0]
    raise AssertionError("a graph without an output")


def _export(model: nn.Module, x: Tensor) -> Any:
    try:
        with warnings.catch_warnings(), _quiet(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(model, (x,), strict=False)
            known = all(_known_as_it_is(node) for node in exported.graph.nodes)
            return exported if known else exported.run_decompositions({})  # slow; rewrites operators in place
    except Exception as error:  # torch.export passes on any error of the network's own code
        text = one_line(error)
        raise Unsupported(f"native: torch.export cannot capture the network: {type(error).__name__}: {text}") from error


def _known_as_it_is(node: Any) -> bool:
    """Return whether a node of an exported graph has a lowering and changes nothing in place."""
    if node.op != "call_function" or node.target is operator.getitem:
        return True
    return hasattr(node.target, "_schema") and not node.target._schema.is_mutable and _kind(node.target) in LOWERINGS


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch, which logs and prints pages about errors that it then raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _lower(builder: Builder, target: Any, args: Any, kwargs: Any, table: dict[str, Callable[..., Any]]) -> Any:
    depends = any(isinstance(leaf, Ref) for leaf in torch.utils._pytree.tree_leaves((args, kwargs)))
    if not depends and torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
        raise builder.refuse("it draws random numbers")
    if target is operator.getitem:
        return target(*args, **kwargs)
    if not depends:
        return fold(builder, target, args, kwargs, table.get(builder.kind))
    if builder.kind not in table:
        raise builder.refuse("not among the operators it bounds")
    try:
        _signature(table[builder.kind]).bind(builder, *args, **kwargs)
    except TypeError as error:
        raise builder.refuse(f"with an argument that has no bounds here, {error}") from error
    before, lowering = len(builder.nodes), table[builder.kind]
    try:
        return perturb(builder, before, args, kwargs, lowering, lowering(builder, *args, **kwargs))
    except (ValueError, IndexError, TypeError, AttributeError, NotImplementedError) as error:
        text = one_line(error)
        raise builder.refuse(f"with these arguments ({type(error).__name__}: {text})") from error


#: Signatures of lowerings; reading one takes longer than a small lowering.
_signature = cache(inspect.signature)


@cache
def _kind(target: Any) -> str:
    """Return the operator's name: aten.conv2d.default -> conv2d."""
    return str(target.name()).removeprefix("aten::").split(".")[0] if hasattr(target, "name") else str(target)


def _path(node: Any) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return str(paths[-1]).removeprefix("L['self'].") if paths else ""
