"""Solve VNN-LIB properties of ONNX files: one, or a list as VNN-COMP publishes them."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from certkd.exchange.assignments import assignment, read_assignment
from certkd.exchange.instance_table import Instance, Row, bare
from certkd.exchange.vnnlib_file import property_of, read_query
from certkd.files import write_whole
from certkd.networks.onnx.function import Function, function
from verifiers.core.errors import InputError
from verifiers.core.quantities import Arithmetic
from verifiers.graph.program import Program
from verifiers.properties.property import Property
from verifiers.properties.solver import Answer, Descent, Solver, Verdict
from verifiers.properties.witnesses import holds

#: Networks that are kept for later instances.
KEPT = 4


@dataclass
class Networks:
    """Load networks, and keep the last few with what was built for them."""

    _kept: dict[Path, tuple[Function, Program]] = field(default_factory=dict)

    def get(self, path: Path) -> tuple[Function, Program]:
        """Return the network of a file; raises InputError as ``function``."""
        if path not in self._kept:
            made = function(path)
            self._kept = dict(list(self._kept.items())[1 - KEPT :])
            self._kept[path] = made, Program(made.module, entire=True)
        return self._kept[path]


@dataclass(frozen=True)
class Settings:
    """How instances are solved.

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
        started = time.monotonic()
        try:
            yield solve(instance, settings, networks)
        except InputError as error:
            yield Row(instance, Verdict.UNKNOWN, time.monotonic() - started, reason=str(error))


def solve(instance: Instance, settings: Settings, networks: Networks | None = None) -> Row:
    """Solve one instance, and write the counterexample if there is one; the time includes reading.

    Raises:
        InputError: the network or the property cannot be read, or the counterexample cannot be written.
    """
    started = time.monotonic()
    network, question, program = _read(instance, networks or Networks())
    solver = Solver(program, network.shape, network.reference, settings.arithmetic, Descent(seed=settings.seed))
    answer = solver(question, started + instance.timeout)
    name = "" if answer.witness is None else _write(answer, instance, settings.folder)
    return Row(instance, answer.verdict, time.monotonic() - started, name, answer.reason)


def _read(instance: Instance, networks: Networks) -> tuple[Function, Property, Program]:
    network_path, property_path = instance.paths
    query = read_query(property_path)
    network, program = networks.get(network_path)
    try:
        return network, property_of(query, int(np.prod(network.shape)), network.outputs), program
    except InputError as error:
        raise InputError(f"{property_path}: {error}") from None


def _write(answer: Answer, instance: Instance, folder: Path) -> str:
    """Write a counterexample; return the name of its file."""
    assert answer.witness is not None
    name = f"{bare(instance.network)}_{bare(instance.question)}.counterexample"
    lines = assignment(answer.witness.point, fractions(answer.witness.outputs))
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
    network, question, program = _read(instance, Networks())
    given = read_assignment(path)
    if len(given.x) != question.inputs:
        raise InputError(f"{path} has {len(given.x)} inputs, the network {question.inputs}")
    image = np.array([float(value) for value in given.x], np.float32).reshape(network.shape)
    inside = [
        case
        for case in question.cases
        if all(low <= x <= high for low, x, high in zip(case.box.low, given.x, case.box.high, strict=True))
    ]
    program.capture(torch.from_numpy(np.stack([image, image])))
    with torch.no_grad():
        ours = program.module(torch.from_numpy(image[None])).flatten().numpy()
    theirs = network.reference(image)
    lines = [] if inside else ["the input is outside of every box of the property"]
    for name, outputs in (("certkd", ours), ("onnxruntime", theirs)):
        found = bool(inside) and holds(inside, given.x, outputs)
        lines.append(f"{name}: the property is {'satisfied' if found else 'not satisfied'}")
    if given.y:
        stated = np.array([float(value) for value in given.y])
        if len(stated) == len(theirs):
            lines.append(f"outputs differ from the file's by at most {np.abs(stated - theirs).max():.3g}")
    satisfied = bool(inside) and holds(inside, given.x, ours) and holds(inside, given.x, theirs)
    return Replay(satisfied, tuple(lines))


def fractions(values: Float[np.ndarray, " values"]) -> list[Fraction]:
    """Convert float32 numbers exactly."""
    return [Fraction(float(value)) for value in values]
