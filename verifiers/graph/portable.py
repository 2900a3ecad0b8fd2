"""Send a program to another process: the network as it is given, and the operators of the program that was captured.

A captured program is not captured again: its operators, constants and notes are written down, so both processes have
the same program, to the last bit.
"""

import importlib.util
import operator
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from verifiers.core.errors import Contradiction, InputError, Unsupported
from verifiers.geometry.balls import noise_like
from verifiers.graph.executable import store
from verifiers.graph.last_layer import Scores
from verifiers.graph.program import Captured, Program
from verifiers.runtime.alone import differing, logits_of
from verifiers.runtime.tasks import refused


@dataclass(frozen=True)
class _Node:
    """Another node of the program, by its place."""

    place: int


@dataclass(frozen=True)
class _Operator:
    """An operator of torch by its names."""

    namespace: str
    name: str
    overload: str

    def find(self) -> Any:
        return getattr(getattr(getattr(torch.ops, self.namespace), self.name), self.overload)


#: A node: its kind, name, operator, arguments and notes.
_Written = tuple[str, str, Any, Any, Any, dict[str, Any]]


@dataclass(frozen=True)
class Operators:
    """A program for one image, written down.

    Attributes:
        nodes: in their order.
        state: the constants by name, and which of them are buffers.
    """

    nodes: Sequence[_Written]
    state: Sequence[tuple[str, Tensor, bool]]

    @classmethod
    def of(cls, program: fx.GraphModule) -> "Operators":
        """Write a program down."""
        place = {node: number for number, node in enumerate(program.graph.nodes)}
        nodes: list[_Written] = []
        state: dict[str, tuple[str, Tensor, bool]] = {}
        for node in program.graph.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda given: cast(Any, _Node(place[given])))
            target = node.target
            if node.op == "get_attr":
                value = operator.attrgetter(target)(program)
                state[target] = (target, value.detach(), not isinstance(value, nn.Parameter))
            if isinstance(target, torch._ops.OpOverload):
                namespace, name = target.name().split("::", 1)
                target = _Operator(namespace, name.split(".")[0], target._overloadname)
            nodes.append((node.op, node.name, target, args, kwargs, _notes(node.meta)))
        return cls(nodes, list(state.values()))

    def program(self) -> fx.GraphModule:
        """Build the program again."""
        graph, root, made = fx.Graph(), nn.Module(), list[fx.Node]()
        for name, value, buffer in self.state:
            store(root, name, value, buffer=buffer)
        for op, name, target, args, kwargs, notes in self.nodes:
            args, kwargs = (fx.node.map_aggregate(each, lambda leaf: _found(leaf, made)) for each in (args, kwargs))
            target = target.find() if isinstance(target, _Operator) else target
            made.append(graph.create_node(op, target, args, kwargs, name=name))
            made[-1].meta = dict(notes)
        module = fx.GraphModule(root, graph)
        module.graph.lint()
        return module.eval().requires_grad_(False)


def _found(leaf: Any, made: Sequence[fx.Node]) -> Any:
    return made[leaf.place] if isinstance(leaf, _Node) else leaf


def _notes(meta: dict[str, Any]) -> dict[str, Any]:
    """Take the notes of a node; the modules around it by their paths alone."""
    stack = meta.get("nn_module_stack")
    paths = None if stack is None else {key: (str(path), "") for key, (path, _) in stack.items()}
    return {**meta, **({"nn_module_stack": paths} if "nn_module_stack" in meta else {})}


@dataclass(frozen=True)
class Portable:
    """A program that can be pickled.

    Attributes:
        given: the pickled network.
        files: modules of its classes that an import does not find, with their files.
        entire, paired: as in ``Program``.
        captured: the program's operators without and with its last layer, the layers that are left out, and whether
            there is one score; or the reason why the network cannot be captured.
        like: one image.
        logits: what the program gives for it and for noise, by which the one that is built is checked.
    """

    given: bytes
    files: Sequence[tuple[str, str]]
    entire: bool
    paired: bool
    captured: tuple[Operators, Operators, tuple[str, ...], bool] | Unsupported | Contradiction | None
    like: Tensor
    logits: Tensor

    @classmethod
    def of(cls, program: Program, like: Tensor) -> "Portable":
        """Take what another process needs.

        Raises:
            InputError: the network cannot be pickled.
        """
        found: Any = program.captured or program.failure
        if isinstance(found, Captured):
            scores = found.scores
            whole = Operators.of(scores.whole)
            inner = whole if scores.program is scores.whole else Operators.of(scores.program)
            found = (inner, whole, scores.left_out, scores.one)
        with refused("sent to"):
            given = pickle.dumps(program.given)
        image = like[:1].detach().cpu()
        return cls(given, _files(program.given), program.entire, program.paired, found, image, _logits(program, image))

    def program(self) -> Program:
        """Build the program; code of files that no import finds runs again.

        Raises:
            InputError: the network cannot be built, or is another function then: its class may leave out a part.
        """
        with refused("built in"):
            for name, path in self.files:
                _load(name, path)
            made = Program(pickle.loads(self.given), entire=self.entire, paired=self.paired)
        if isinstance(self.captured, tuple):
            inner, whole, left_out, one = self.captured
            last = whole.program()
            scores = Scores(last if inner is whole else inner.program(), last, left_out, one)
            made.restore(Captured.of(scores, made.given, self.like.to(made.device)))
        elif self.captured is not None:
            made.restore(self.captured)
        wrong = differing(_logits(made, self.like), self.logits, self.like, lambda x: None)
        if wrong is not None:
            raise InputError(
                f"the network is another function after pickling (logits differ by {wrong[1]:.3g}): use one process"
            )
        return made


def _logits(program: Program, image: Tensor) -> Tensor:
    """Compute the logits of an image and of noise."""
    return logits_of(program.module, torch.cat([image, noise_like(image)]).to(program.device)).cpu()


def _files(network: nn.Module) -> list[tuple[str, str]]:
    """List the modules that were loaded from a file under a name that no import finds."""
    found = {}
    for name in dict.fromkeys(type(module).__module__ for module in network.modules()):
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if spec is not None and spec.origin is not None and "." not in name and PathFinder.find_spec(name) is None:
            found[name] = spec.origin
    return list(found.items())


def _load(name: str, path: str) -> None:
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
