"""Solve VNN-LIB properties of ONNX files: one, or a list as VNN-COMP publishes them."""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float

from certkd.exchange.assignments import assignment, read_assignment, tensors
from certkd.exchange.instance_table import Instance, Row
from certkd.exchange.pairs import Pair, Wiring, check_relation, pair_point, pair_property, pair_tensors, wiring_of
from certkd.exchange.query import Query
from certkd.exchange.vnnlib_file import property_of, read_query
from certkd.files import write_whole
from certkd.networks.onnx.function import Function, function
from verifiers.core.errors import InputError, quoted
from verifiers.core.quantities import Arithmetic
from verifiers.core.table import counted
from verifiers.graph.program import Program
from verifiers.properties.property import Property
from verifiers.properties.solver import Descent, Solver, Verdict
from verifiers.properties.witnesses import Reference, Witness, holds

T = TypeVar("T")

#: Networks that are kept for later instances.
KEPT = 4


@dataclass(frozen=True)
class Task:
    """Turn a query about networks into a question about one program.

    Attributes:
        query: the query.
        question: the property of the program.
        program: the network, or both.
        shape: of one input of the program.
        reference: runs one input in onnxruntime.
        pair: both networks, if there are two.
    """

    query: Query
    question: Property
    program: Program
    shape: tuple[int, ...]
    reference: Reference
    pair: Pair | None = None


@dataclass
class Networks:
    """Load networks, and keep the last few with what was built for them."""

    _kept: dict[Hashable, Any] = field(default_factory=dict)

    def get(self, path: Path) -> tuple[Function, Program]:
        """Return the network of a file; raises InputError as ``function``."""

        def make() -> tuple[Function, Program]:
            made = function(path)
            return made, Program(made.module, entire=True)

        return self._keep(path, make)

    def pair(self, paths: tuple[Path, Path], wiring: Wiring) -> Pair:
        """Return two networks as one; raises InputError as ``function``."""
        one, other = (self.get(path) for path in paths)
        return self._keep((*paths, wiring.places), lambda: Pair.of(one, other, wiring))

    def _keep(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._kept:
            made = make()
            self._kept = dict(list(self._kept.items())[1 - KEPT :])
            self._kept[key] = made
        return self._kept[key]


@dataclass(frozen=True)
class Settings:
    """Hold the settings for solving instances.

    Attributes:
        folder: where counterexamples are written.
        seed: of the search.
        arithmetic: what a proof is about.
    """

    folder: Path
    seed: int = 0
    arithmetic: Arithmetic = Arithmetic.FLOAT32


def solve_all(instances: Iterable[Instance], settings: Settings) -> Iterator[Row]:
    """Solve instances in order; one whose files cannot be read is unknown, with the reason."""
    networks = Networks()
    for instance in instances:
        yield solve_or_say(instance, settings, networks)


def solve_or_say(instance: Instance, settings: Settings, networks: Networks) -> Row:
    """Solve one instance of a list; if its files cannot be read it is unknown, with the reason."""
    started = time.monotonic()
    try:
        return solve(instance, settings, networks)
    except InputError as error:
        return Row(instance, Verdict.UNKNOWN, time.monotonic() - started, reason=str(error))


def solve(instance: Instance, settings: Settings, networks: Networks | None = None) -> Row:
    """Solve one instance, and write the counterexample if there is one; the time includes reading.

    Raises:
        InputError: the network or the property cannot be read, or the counterexample cannot be written.
    """
    started = time.monotonic()
    task = _read(instance, networks or Networks())
    solver = Solver(task.program, task.shape, task.reference, settings.arithmetic, Descent(seed=settings.seed))
    answer = solver(task.question, started + instance.timeout)
    name = "" if answer.witness is None else _write(answer.witness, task, instance, settings.folder)
    return Row(instance, answer.verdict, time.monotonic() - started, name, answer.reason)


def _read(instance: Instance, networks: Networks) -> Task:
    query = read_query(instance.property_path)
    try:
        paths = _files(query, instance.networks)
        if len(query.networks) != 1:
            return _read_pair(query, paths, networks)
    except InputError as error:
        raise _about(instance, error) from None
    network, program = networks.get(paths[0])
    try:
        question = property_of(query, int(np.prod(network.shape)), network.outputs)
    except InputError as error:
        raise _about(instance, error) from None
    return Task(query, question, program, network.shape, network.reference)


def _about(instance: Instance, error: InputError) -> InputError:
    """Name the property in a message, unless it names a file."""
    files = [*(path for _, path in instance.networks), instance.property_path]
    said = str(error)
    return InputError(said if said.startswith(tuple(map(str, files))) else f"{instance.property_path}: {said}")


def _files(query: Query, given: Sequence[tuple[str, Path]]) -> list[Path]:
    """Return the file of each declared network: by name, or in the order of the declarations.

    Raises:
        InputError: a network has no file, or a file has no network.
    """
    declared = [network.name for network in query.networks]
    same = {n.name: n.relation[1] for n in query.networks if n.relation is not None and n.relation[0] == "equal-to"}
    files = {name: path for name, path in given if name}
    if not files:
        wanted = declared if len(given) == len(declared) else [name for name in declared if name not in same]
        if len(given) != len(wanted):
            names = f" ({', '.join(declared)})" if any(declared) else ""
            networks = counted(len(declared), "network")
            raise InputError(f"the property is about {networks}{names}, {counted(len(given), 'file')} given")
        files = dict(zip(wanted, (path for _, path in given), strict=True))
    elif any(declared):
        unknown = next((name for name in files if name not in declared), None)
        if unknown is not None or len(files) < len(given):
            raise InputError(f"the property is about {', '.join(declared)}, not {quoted(unknown or [*files][-1])} too")
    else:
        files = {"": given[0][1]} if len(given) == 1 else {}
    for name in declared:
        if (path := files.get(name, files.get(same.get(name, "")))) is None:
            raise InputError(f"the network {quoted(name)} of the property has no file")
        files[name] = path
    return [files[name] for name in declared]


def _read_pair(query: Query, paths: Sequence[Path], networks: Networks) -> Task:
    wiring = wiring_of(query)
    pair = networks.pair((paths[0], paths[1]), wiring)
    check_relation(query, pair.networks)
    question = pair_property(query, wiring, pair.networks)
    return Task(query, question, pair.program, pair.shape, pair.reference, pair)


def _write(witness: Witness, task: Task, instance: Instance, folder: Path) -> str:
    """Write a counterexample; return the name of its file."""
    name, outputs = f"{instance.name}.counterexample", fractions(witness.outputs)
    if task.pair is None:
        lines = list(assignment(witness.point, outputs))
    else:
        lines = list(tensors(pair_tensors(task.query, task.pair, witness.point, outputs)))
    write_whole(folder / name, lambda place: place.write_text("\n".join(lines) + "\n"))
    return name


@dataclass(frozen=True)
class Replay:
    """A counterexample run again.

    Attributes:
        holds: it satisfies the property, in certkd and in onnxruntime.
        lines: what was found.
    """

    holds: bool
    lines: tuple[str, ...]


def replay(instance: Instance, path: Path) -> Replay:
    """Run a counterexample file again, exactly: without any tolerance.

    Raises:
        InputError: a file cannot be read, or the counterexample has another number of inputs.
    """
    task = _read(instance, Networks())
    point, stated = _given(path, task)
    if point is None:
        return Replay(False, ("the inputs of the two networks differ where the property sets them equal",))
    image = np.array([float(value) for value in point], np.float32).reshape(task.shape)
    inside = [
        case
        for case in task.question.cases
        if all(low <= x <= high for low, x, high in zip(case.box.low, point, case.box.high, strict=True))
    ]
    task.program.capture(torch.from_numpy(np.stack([image, image])))
    with torch.no_grad():
        ours = task.program.module(torch.from_numpy(image[None])).flatten().numpy()
    theirs = task.reference(image)
    lines = [] if inside else ["the input is outside of every box of the property"]
    for name, outputs in (("certkd", ours), ("onnxruntime", theirs)):
        found = bool(inside) and holds(inside, point, outputs)
        lines.append(f"{name}: the property is {'satisfied' if found else 'not satisfied'}")
    if len(stated) == len(theirs):
        apart = np.abs(np.array([float(value) for value in stated]) - theirs).max()
        lines.append(f"outputs differ from the file's by at most {apart:.3g}")
    satisfied = bool(inside) and holds(inside, point, ours) and holds(inside, point, theirs)
    return Replay(satisfied, tuple(lines))


def _given(path: Path, task: Task) -> tuple[list[Fraction] | None, list[Fraction]]:
    """Read a counterexample: the point, None if the networks get other inputs than the query says, and the outputs.

    Raises:
        InputError: it has another form, or another number of inputs.
    """
    if task.pair is not None:
        return pair_point(task.query, task.pair, path)
    given = read_assignment(path)
    if len(given.x) != task.question.inputs:
        raise InputError(f"{path} has {len(given.x)} inputs, the network {task.question.inputs}")
    return given.x, given.y


def fractions(values: Float[np.ndarray, " values"]) -> list[Fraction]:
    """Convert float32 numbers exactly."""
    return [Fraction(float(value)) for value in values]
