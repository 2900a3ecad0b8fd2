"""Write relations of two networks as VNN-LIB 2.0: boxes of images, each with the set where a relation fails."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from certkd.data.splits import Split
from certkd.exchange.instance_table import LIST
from certkd.exchange.property_list import about
from certkd.exchange.vnnlib import ball, exact
from certkd.files import write_whole
from certkd.networks.builders import Classifier
from verifiers.bound_propagation import HalfSpaces, unsafe
from verifiers.core.quantities import Epsilon
from verifiers.core.relation import Property, Relation

#: The names of the networks in a query, with their inputs and outputs; the student comes first.
NETWORKS = (("student", "X", "Y"), ("teacher", "Z", "W"))
BATCH = 256


@dataclass(frozen=True)
class PairProperties:
    """The properties to write, and the names in their files.

    Attributes:
        networks: the ONNX files of student and teacher, relative to the folder.
        relation: what must hold on each ball.
        name: of the data set and split.
        eps: radius of the linf ball, pixel units.
        timeout: seconds for each instance.
    """

    networks: tuple[str, str]
    relation: Relation
    name: str
    eps: Epsilon
    timeout: int

    @property
    def cell(self) -> str:
        """Both networks in a list of instances."""
        return repr([(name, file) for (name, *_), file in zip(NETWORKS, self.networks, strict=True)])

    def path(self, index: int) -> str:
        """Name the file of a sample's property."""
        threshold = f"-{self.relation.threshold:g}" if self.relation.threshold else ""
        eps = self.eps.text.replace("/", "_")
        return f"vnnlib/{self.name}_{index}_{eps}_{self.relation.kind}{threshold}.vnnlib"


@dataclass(frozen=True)
class PairQuery:
    """A query to write: the box of both inputs, and the set of outputs where the relation fails.

    Attributes:
        low, high: the box in pixel units, float64.
        spaces: the set, in the student's outputs followed by the teacher's; its values are below 0 there.
        alike: declare the teacher's architecture to be the student's.
        about: comments.
    """

    low: Float[np.ndarray, "*shape"]
    high: Float[np.ndarray, "*shape"]
    spaces: HalfSpaces
    alike: bool = False
    about: tuple[str, ...] = ()


def write_pair_instances(
    student: Classifier, teacher: Classifier, samples: Split, folder: Path, wanted: PairProperties
) -> list[str]:
    """Write a property for each sample, misclassified or not, and ``instances.csv``.

    Args:
        student, teacher: in eval mode, on the CPU.
        samples: a property each.
        folder: its ``vnnlib`` folder is made.
        wanted: relation, radius, time limit and names.

    Returns:
        The paths of the VNN-LIB files, relative to the folder.

    Raises:
        InputError: the folder cannot be written.
    """
    alike = _architecture(student) == _architecture(teacher)
    paths: list[str] = []
    for start in range(0, len(samples), BATCH):
        images, _ = samples.batch(torch.arange(start, min(start + BATCH, len(samples))), torch.device("cpu"))
        with torch.no_grad():
            preferred = teacher(images).argmax(1).tolist()
        indices = samples.indices[start : start + BATCH].tolist()
        for image, index, c in zip(images, indices, preferred, strict=True):
            spaces = unsafe(wanted.relation, c, student.spec.classes)
            notes = _sentence(wanted.relation, c), about(index, wanted.name, wanted.eps)
            write_pair_query(
                folder / wanted.path(index), PairQuery(*ball(image.numpy(), wanted.eps), spaces, alike, notes)
            )
            paths.append(wanted.path(index))
    write_whole(folder / LIST, lambda temporary: _list(temporary, wanted, paths))
    return paths


def _architecture(model: Classifier) -> tuple[object, ...]:
    spec = model.spec
    return spec.name, spec.options, spec.classes, spec.shape, len(spec.mean), spec.resize, spec.output


def _sentence(relation: Relation, c: int) -> str:
    """Say what a query is the failure of."""
    threshold = f"{relation.threshold:g}"
    sentences = {
        Property.SAME_CLASS: f"the student gives the class that the teacher prefers by more than {threshold}",
        Property.CLOSE: f"no output of the student is further than {threshold} from the teacher's",
        Property.NOT_WORSE: f"the student's margin of class {c} is at most {threshold} below the teacher's",
        Property.TRANSFER: f"wherever the teacher gives class {c}, the student does",
    }
    return f"on the whole box {sentences[relation.kind]}: these are its failures"


def _list(path: Path, wanted: PairProperties, paths: list[str]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows((wanted.cell, row, wanted.timeout) for row in paths)


def write_pair_query(path: Path, query: PairQuery) -> None:
    """Write a query, one image at a time; every digit of a bound is written, so the box is not rounded.

    Raises:
        InputError: the file cannot be written.
    """
    text = "\n".join(_lines(query)) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text))


def _lines(query: PairQuery) -> Iterator[str]:
    shape, classes = query.low.shape, query.spaces.outputs.shape[1] // 2
    yield from (f"; {line}" for line in query.about)
    yield "(vnnlib-version <2.0>)"
    for place, (name, given, made) in enumerate(NETWORKS):
        yield f"(declare-network {name}"
        if place and query.alike:
            yield f"    (isomorphic-to {NETWORKS[0][0]})"
        yield f"    (declare-input {given} float32 [1,{','.join(map(str, shape))}])"
        yield f"    (declare-output {made} float32 [1,{classes}])"
        yield ")"
    (_, x, _), (_, z, _) = NETWORKS
    for at in np.ndindex(shape):
        entry = f"[0,{','.join(map(str, at))}]"
        yield f"(assert (>= {x}{entry} {exact(float(query.low[at]))}))"
        yield f"(assert (<= {x}{entry} {exact(float(query.high[at]))}))"
        yield f"(assert (== {z}{entry} {x}{entry}))"
    yield "(assert (or"
    yield from (f"    {_case(query.spaces, number)}" for number in range(query.spaces.cases))
    yield "))"


def _case(spaces: HalfSpaces, number: int) -> str:
    """Write that all values of a case are below 0."""
    rows = (spaces.case == number).nonzero().flatten().tolist()
    parts = [_below(spaces.outputs[row].tolist(), float(spaces.constant[row])) for row in rows]
    return parts[0] if len(parts) == 1 else f"(and {' '.join(parts)})"


def _below(coefficients: list[float], constant: float) -> str:
    """Write ``coefficients @ [Y, W] + constant < 0`` with only positive terms on either side."""
    half = len(coefficients) // 2
    names = [f"{made}[0,{k}]" for _, _, made in NETWORKS for k in range(half)]
    sides = []
    for sign in (1, -1):
        terms = [
            name if sign * value == 1 else f"(* {exact(sign * value)} {name})"
            for name, value in zip(names, coefficients, strict=True)
            if sign * value > 0
        ]
        terms += [exact(sign * constant)] if sign * constant > 0 else []
        sides.append(terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})" if terms else "0.0")
    return f"(< {sides[0]} {sides[1]})"
