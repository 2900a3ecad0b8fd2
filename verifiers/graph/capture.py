"""Capture a network as a program with torch.export; plain sequences are translated directly.

A program is captured in the network's own precision, for a batch of one, and every operator treats a batch sample by
sample. Nothing in the program can therefore mix the samples of a batch. The graph that is bounded is made from the
program. Unsupported operators are rejected by name, with their module.
"""

import copy
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from verifiers.core.errors import Unsupported, one_line
from verifiers.graph.executable import converted, unlifted, without_writes
from verifiers.graph.exported import Exported, kind_of, path_of
from verifiers.graph.graph import Builder, Graph, Node, Ref
from verifiers.graph.lowering import LOWERINGS
from verifiers.graph.lowering.constants import MOVES, fold, perturb
from verifiers.graph.lowering.integers import IntegerSum
from verifiers.graph.lowering.shapes import note_rounded
from verifiers.graph.recurrent import DECOMPOSITIONS, has_recurrent
from verifiers.graph.sequence import written
from verifiers.graph.tape import Tape, difference, tape_of
from verifiers.graph.watch import Replay, answers_of_deployment, blame, blamed, watch
from verifiers.runtime.modes import in_eval_mode
from verifiers.runtime.oom import pass_on_memory


class Hidden(Unsupported):
    """The network's Python code does what no graph shows.

    Attributes:
        single: whether it reads a number from the image, as only code for one image does.
    """

    single = False


def capture(model: nn.Module, x: Float[Tensor, "1 *shape"], dtype: torch.dtype = torch.float64) -> Graph:
    """Capture the graph of a network in eval mode, for images like ``x``; its constants are in the given dtype.

    Raises:
        Unsupported: the network cannot be exported, or an operator is not known.
    """
    return graph_of([program_of(model, x)], x, dtype)


def program_of(model: nn.Module, x: Float[Tensor, "1 *shape"]) -> fx.GraphModule:
    """Capture a network in its own precision, as a module for one image.

    Raises:
        Unsupported: the network cannot be exported.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise Unsupported(
            "the network is TorchScript, which hides its code: give the torch.nn.Module that it was made from"
        )
    return unlifted(export(copy.deepcopy(model), x[:1].detach().to(precision_of(model, x)), given=model))


def precision_of(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> torch.dtype:
    """Return the dtype of a network's weights; of the images if it has none."""
    weights = (weight.dtype for weight in (*model.parameters(), *model.buffers()) if weight.is_floating_point())
    return next(weights, x.dtype)


def graph_of(programs: Sequence[fx.GraphModule], x: Float[Tensor, "1 *shape"], dtype: torch.dtype) -> Graph:
    """Make the graph of a program, with its constants in the given dtype; of several, with all their logits in a row.

    Raises:
        Unsupported: an operator is not known.
    """
    builder, outputs = Builder(x[:1].detach().to(dtype)), []
    for program in programs:
        twin = converted(program, dtype)
        state = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
        images = frozenset(node.name for node in twin.graph.nodes if node.op == "placeholder")
        weights = {name: value.detach() for name, value in state.items()}
        outputs.append(lower(Exported(list(twin.graph.nodes), {}, {}, images, weights), weights, builder))
    output = outputs[0] if len(outputs) == 1 else LOWERINGS["cat"](builder, outputs, 1)
    # Other operators may read the output too; nodes after it do not matter.
    return Graph(_used(builder.nodes[: output.node + 1]), builder.like)


def _used(nodes: Sequence[Node]) -> list[Node]:
    """Leave out sums of integers that nothing reads: their products with a scale are nodes of their own."""
    read = {i for node in nodes for i in node.inputs} | {len(nodes) - 1}
    kept = [i for i, node in enumerate(nodes) if i in read or not isinstance(node.operator, IntegerSum)]
    places = {old: new for new, old in enumerate(kept)}
    return [replace(nodes[i], inputs=tuple(places[j] for j in nodes[i].inputs)) for i in kept]


def export(model: nn.Module, x: Float[Tensor, "1 *shape"], *, given: nn.Module | None = None) -> Exported:
    """Put a network into eval mode, freeze it, and export it for one image.

    Args:
        model: the network, or a copy of it.
        x: the image.
        given: the network itself, whose operators are compared with those that were exported; None to compare nothing.

    Raises:
        Unsupported: the network cannot be exported, its code reads values of the image, or it changes a buffer.
    """
    model = in_eval_mode(model).requires_grad_(False)
    plain = written(model)
    if plain is not None:
        return plain
    exported = _export(model, x, given)
    signature = exported.graph_signature
    if signature.buffers_to_mutate:
        raise Unsupported(
            f"the network changes its buffer {next(iter(signature.buffers_to_mutate.values()))!r} when it runs"
        )
    _label(model, exported.graph.nodes)
    return _read(exported)


def _read(exported: Any) -> Exported:
    """Return what torch.export found, in our form."""
    signature = exported.graph_signature
    return Exported(
        nodes=list(exported.graph.nodes),
        weights={**signature.inputs_to_parameters, **signature.inputs_to_buffers},
        constants={
            name: exported.constants[target].detach()
            for name, target in signature.inputs_to_lifted_tensor_constants.items()
        },
        images=frozenset(signature.user_inputs),
        state={name: value.detach() for name, value in {**exported.constants, **exported.state_dict}.items()},
        buffers=frozenset(signature.inputs_to_buffers.values()),
    )


def _label(model: nn.Module, nodes: Iterable[fx.Node]) -> None:
    """Let messages name a module with a ``graph_label`` by that, without a line of its code.

    Such a module runs an operation that a file describes; its code is nothing that the user wrote.
    """
    labels = {path: getattr(module, "graph_label", None) for path, module in model.named_modules()}
    for node in nodes:
        if isinstance(label := labels.get(path_of(node)), str):
            node.meta["nn_module_stack"] = {"": (label, "")}
            node.meta.pop("stack_trace", None)


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
                raise Unsupported(f"the network holds {node.name!r}, neither a tensor nor its input")
            known.setdefault(node.name, Ref(0, tuple(builder.like.shape)))
        elif node.op == "get_attr":
            known[node.name] = weights[node.target]
            note_rounded(builder, known[node.name])
        elif node.op == "call_function" and (node.users or node.target is not operator.getitem):
            builder.path, builder.kind = path_of(node), kind_of(node.target)
            builder.trace = node.meta.get("stack_trace")
            _check_truth(builder, node)
            _check_precision(builder, node)
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: known[n.name])
            known[node.name] = _lower(builder, node.target, args, kwargs, LOWERINGS)
        elif node.op == "output":
            outputs = torch.fx.node.map_arg(node.args, lambda n: known[n.name])[0]
            outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
            if len(outputs) != 1 or not isinstance(outputs[0], Ref):
                raise Unsupported("the network's output must be one tensor that depends on the image")
            return outputs[0]
    raise AssertionError("a graph without an output")


def _check_truth(builder: Builder, node: fx.Node) -> None:
    """Refuse sums of truth values, which are truth values again: the graph computes with 0 and 1."""
    truth = bool(node.meta.get("bool"))
    if not node.meta.get("image"):
        return
    if (truth and builder.kind in ("add", "add_")) or (not truth and builder.kind == "bitwise_not"):
        raise builder.refuse("a sum of truth values, or a negation of bits")


def _check_precision(builder: Builder, node: fx.Node) -> None:
    """Refuse results in half precision, which rounds more than float32; constants may be moved and converted."""
    if node.meta.get("half") and (node.meta.get("image") or builder.kind not in MOVES):
        raise builder.refuse("a result in half precision: proofs are about float32")


def _export(model: nn.Module, x: Tensor, given: nn.Module | None) -> Any:
    """Export a network to a graph in which nothing is written in place."""
    with blamed("the network fails on one image"):
        watched = watch(model, x)
    if watched.hidden:
        hidden = Hidden(f"the network cannot be captured: {watched.hidden}")
        hidden.single = watched.single
        raise hidden
    with _captures(), torch.no_grad(), answers_of_deployment(), Replay(watched.constants):
        exported = torch.export.export(model, (x,), strict=False)
    raw = exported if all(hasattr(n.target, "_schema") for n in exported.graph.nodes if _is_operator(n)) else None
    if raw is not None and given is not None:
        _check_operators(given, raw, x)
    with _captures():
        if has_recurrent(exported.graph):
            exported = exported.run_decompositions(DECOMPOSITIONS)
        trial = copy.deepcopy(exported.graph)  # with other names
        if without_writes(trial) and all(_known(node) for node in trial.nodes):
            without_writes(exported.graph)
        else:
            exported = exported.run_decompositions({})  # slow; rewrites operators that write in place
    if raw is None and given is not None:  # it held blocks of code, such as ``with torch.no_grad()``
        _check_operators(given, exported, x)
    return exported


def _is_operator(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is not operator.getitem


@contextmanager
def _captures() -> Iterator[None]:
    """Run torch.export silently; it passes on any error of the network's own code, which becomes ``Unsupported``."""
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            yield
    except Unsupported:
        raise
    except Exception as error:
        pass_on_memory(error)
        raise Unsupported(
            f"torch.export cannot capture the network{blame(error)}: {type(error).__name__}: {one_line(error)}"
        ) from error


def _check_operators(given: nn.Module, exported: Any, x: Tensor) -> None:
    """Compare the operators that the network runs with those that were exported.

    Raises:
        Hidden: they differ, so the network's code knew that it was captured.
    """
    if exported.graph_signature.buffers_to_mutate:
        return  # it is refused
    with _captures():
        program = unlifted(_read(exported))
    flags = {name: weight.requires_grad for name, weight in given.named_parameters()}
    for name, weight in program.named_parameters():  # torch computes some products in another way with gradients
        weight.requires_grad_(flags.get(name, False))
    with blamed("the network fails on one image"):
        different = next(filter(None, (difference(*both) for both in _recordings(given, program, x))), None)
    if different is not None:
        raise Hidden(
            f"the network cannot be captured: it then computes with other operators, such as {different}; its code may "
            "ask for the type of its input, or whether its weights are frozen"
        )


def _recordings(given: nn.Module, program: nn.Module, x: Tensor) -> Iterator[tuple[Tape, Tape]]:
    """Record a network and its program: with gradients and without, and the network in this thread too."""
    for gradients in (False, True):
        exported = tape_of(program, x, gradients=gradients)
        yield tape_of(given, x, gradients=gradients), exported
        if not gradients:
            yield tape_of(given, x, here=True), exported


def _known(node: Any) -> bool:
    """Return whether a node of an exported graph has a lowering."""
    if not _is_operator(node):
        return True
    return hasattr(node.target, "_schema") and kind_of(node.target) in LOWERINGS


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


def _depends(given: Any) -> bool:
    """Return whether arguments hold a value that depends on the image."""
    if isinstance(given, tuple | list | dict):
        return any(_depends(each) for each in (given.values() if isinstance(given, dict) else given))
    return isinstance(given, Ref)


def _lower(builder: Builder, target: Any, args: Any, kwargs: Any, table: dict[str, Callable[..., Any]]) -> Any:
    depends = _depends(args) or _depends(kwargs)
    if not depends and torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
        raise builder.refuse("it draws random numbers")
    if target is operator.getitem:
        if isinstance(args[0], list) and args[1] >= len(args[0]):
            raise builder.refuse(f"its result {args[1]} has no bounds")
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
    except (ValueError, IndexError, TypeError, AttributeError, NotImplementedError, RuntimeError) as error:
        pass_on_memory(error)
        text = one_line(error)
        raise builder.refuse(f"with these arguments ({type(error).__name__}: {text})") from error


#: Signatures of lowerings; reading one takes longer than a small lowering.
_signature = cache(inspect.signature)
