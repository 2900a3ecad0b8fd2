"""Queries about two networks, as properties of one point that feeds both.

Entries of the inputs that the query sets equal are one entry of the point; every other entry is one of its own. The
outputs of the pair are those of the first network, then those of the second.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from certkd.exchange.assignments import read_tensors
from certkd.exchange.query import Condition, Entry, Formula, Junction, Kind, Linear, Network, Query, Variable, disjuncts
from certkd.exchange.vnnlib_file import Cases
from certkd.networks.onnx.function import Function
from verifiers.core.errors import InputError, quoted
from verifiers.graph.program import PairProgram, Program
from verifiers.properties.property import Property

#: The names of the point and of the outputs in a rewritten query.
POINT, OUTPUTS = "point", "outputs"


@dataclass(frozen=True)
class Wiring:
    """Assign the entries of one point to the inputs of two networks.

    Attributes:
        size: the number of entries of the point.
        places: for each network, the place in the point of every entry of its input.
        names: of the entries, for messages.
    """

    size: int
    places: tuple[tuple[int, ...], tuple[int, ...]]
    names: tuple[str, ...]

    @property
    def shared(self) -> bool:
        """True if both networks get the point itself."""
        whole = tuple(range(self.size))
        return self.places == (whole, whole)


def tensors_of(network: Network) -> tuple[Variable, Variable]:
    """Return the input and the output of a network.

    Raises:
        InputError: it declares other tensors.
    """
    given, made = network.of(Kind.INPUT), network.of(Kind.OUTPUT)
    if len(network.variables) != 2 or len(given) != 1:
        raise InputError(
            f"the network {quoted(network.name)} has several inputs or outputs, or hidden tensors: only one of each is "
            "read"
        )
    return given[0], made[0]


def wiring_of(query: Query) -> Wiring:
    """Find the entries of both inputs that a query sets equal, in all of its cases.

    Raises:
        InputError: the query is not about two networks with one input and one output each.
    """
    if len(query.networks) != 2:
        names = ", ".join(network.name for network in query.networks)
        raise InputError(f"the property is about {len(query.networks)} networks ({names}): one or two are read")
    inputs = [tensors_of(network)[0] for network in query.networks]
    entries = [Entry(variable.name, i) for variable in inputs for i in range(variable.size)]
    leader = {entry: entry for entry in entries}

    def first(entry: Entry) -> Entry:
        while leader[entry] != entry:
            entry = leader[entry]
        return entry

    order = {entry: number for number, entry in enumerate(entries)}
    for one, other in _ties(query):
        if one in leader and other in leader:
            low, high = sorted((first(one), first(other)), key=order.__getitem__)
            leader[high] = low
    free = [entry for entry in entries if leader[entry] == entry]
    place = {entry: number for number, entry in enumerate(free)}
    places = [tuple(place[first(Entry(v.name, i))] for i in range(v.size)) for v in inputs]
    variables = {variable.name: variable for variable in inputs}
    named = tuple(_named(variables[entry.variable], entry.place) for entry in free)
    return Wiring(len(free), (places[0], places[1]), named)


def _ties(query: Query) -> Iterator[tuple[Entry, Entry]]:
    """Yield the pairs of entries of which each is at most the other in every case."""
    below: set[tuple[Entry, Entry]] = set()
    found = (disjuncts(assertion) for assertion in query.assertions)
    for condition in (each for cases in found if len(cases) == 1 for each in cases[0]):
        terms = condition.function.terms
        if condition.function.constant or len(terms) != 2 or sum(terms.values()):
            continue
        less, more = sorted(terms, key=lambda entry: -terms[entry])  # less - more <= 0
        below.add((less, more))
        if (more, less) in below:
            yield less, more


def _named(variable: Variable, place: int) -> str:
    indices = np.unravel_index(place, variable.shape) if variable.shape else ()
    return f"{variable.name}[{','.join(map(str, indices))}]" if variable.shape else variable.name


def pair_property(query: Query, wiring: Wiring, networks: Sequence[Function]) -> Property:
    """Turn a query about two networks into a property of the point that feeds both.

    Raises:
        InputError: a network has other tensors than the query declares, or an input has no bound.
    """
    moved: dict[Entry, Entry] = {}
    offset = 0
    for network, function, places in zip(query.networks, networks, wiring.places, strict=True):
        given, made = tensors_of(network)
        inputs = int(np.prod(function.shape))
        for what, variable, size in (("inputs", given, inputs), ("outputs", made, function.outputs)):
            if variable.size != size:
                declared = f"the property declares {quoted(network.name)} with {variable.size} {what}"
                raise InputError(f"{declared}, its network has {size}")
        moved |= {Entry(given.name, i): Entry(POINT, place) for i, place in enumerate(places)}
        moved |= {Entry(made.name, i): Entry(OUTPUTS, offset + i) for i in range(function.outputs)}
        offset += function.outputs
    assertions = tuple(_rewritten(assertion, moved) for assertion in query.assertions)
    rewritten = Query(query.version, query.networks, assertions)
    return Cases(POINT, wiring.names, offset).property(rewritten)


def _rewritten(formula: Formula, moved: Mapping[Entry, Entry]) -> Formula:
    if isinstance(formula, Condition):
        total = Linear({}, formula.function.constant)
        for entry, value in formula.function.terms.items():
            total = total.plus(Linear({moved[entry]: value}, Fraction(0)))
        return Condition(total, formula.strict)
    assert isinstance(formula, Junction)
    return Junction(formula.every, tuple(_rewritten(part, moved) for part in formula.parts))


def check_relation(query: Query, networks: Sequence[Function]) -> None:
    """Check what a query says about its second network.

    Raises:
        InputError: networks that are declared equal differ, or isomorphic ones have other shapes.
    """
    other = query.networks[1]
    if other.relation is None:
        return
    word, name = other.relation
    ours, theirs = ([v.shape for v in tensors_of(network)] for network in query.networks)
    if ours != theirs:
        raise InputError(f"{quoted(other.name)} is {word} {quoted(name)}, but they declare tensors of other shapes")
    if word == "equal-to" and networks[0].sha256 != networks[1].sha256:
        raise InputError(f"{quoted(other.name)} is equal-to {quoted(name)}, but the two files differ: give one file")


class Fed(nn.Module):
    """Run a network on chosen entries of a point."""

    def __init__(self, network: nn.Module, places: Sequence[int], shape: Sequence[int]) -> None:
        super().__init__()
        self.network, self.shape = network, tuple(shape)
        self.places: Tensor
        self.register_buffer("places", torch.tensor(places))

    def forward(self, x: Float[Tensor, "batch entries"]) -> Float[Tensor, "batch outputs"]:
        return self.network(x.index_select(1, self.places).reshape(len(x), *self.shape))


@dataclass(frozen=True)
class Pair:
    """Two networks that one point feeds.

    Attributes:
        networks: both.
        wiring: how.
        program: both as one program.
        shape: of the point.
    """

    networks: tuple[Function, Function]
    wiring: Wiring
    program: PairProgram
    shape: tuple[int, ...]

    @classmethod
    def of(cls, one: tuple[Function, Program], other: tuple[Function, Program], wiring: Wiring) -> "Pair":
        """Wire two networks; their own programs are used where both get the point itself."""
        functions = one[0], other[0]
        if wiring.shared and one[0].shape == other[0].shape:
            return cls(functions, wiring, PairProgram(one[1], other[1]), one[0].shape)
        first, second = (
            Program(Fed(function.module, places, function.shape).eval(), entire=True)
            for function, places in zip(functions, wiring.places, strict=True)
        )
        return cls(functions, wiring, PairProgram(first, second), (wiring.size,))

    def inputs(self, point: Float[np.ndarray, "*shape"]) -> list[Float[np.ndarray, "..."]]:
        """Return what the networks get."""
        flat = point.reshape(-1)
        parts = zip(self.networks, self.wiring.places, strict=True)
        return [flat[list(places)].reshape(function.shape) for function, places in parts]

    def reference(self, point: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, " outputs"]:
        """Run both networks in onnxruntime."""
        parts = zip(self.networks, self.inputs(point), strict=True)
        return np.concatenate([function.reference(image) for function, image in parts])


def pair_tensors(
    query: Query, pair: Pair, point: Sequence[Fraction], outputs: Sequence[Fraction]
) -> Iterator[tuple[str, str, Sequence[int], Sequence[Fraction]]]:
    """Yield name, type, shape and entries of every tensor at a point, in the order of the declarations."""
    offset = 0
    for network, places in zip(query.networks, pair.wiring.places, strict=True):
        given, made = tensors_of(network)
        entries = {given: [point[place] for place in places], made: outputs[offset : offset + made.size]}
        offset += made.size
        for variable in network.variables:
            yield variable.name, variable.dtype, variable.shape, entries[variable]


def pair_point(query: Query, pair: Pair, path: Path) -> tuple[list[Fraction] | None, list[Fraction]]:
    """Read a counterexample: the point that feeds both networks, None if there is none, and the stated outputs.

    Raises:
        InputError: it has another form, or leaves out an input.
    """
    found = read_tensors(path)
    point: dict[int, Fraction] = {}
    outputs: list[Fraction] = []
    tied = True
    for network, places in zip(query.networks, pair.wiring.places, strict=True):
        given, made = tensors_of(network)
        if len(found.get(given.name, ())) != given.size:
            raise InputError(f"{path} must list {given.size} entries of {quoted(given.name)}")
        for place, value in zip(places, found[given.name], strict=True):
            tied &= point.setdefault(place, value) == value
        outputs += found.get(made.name, [])
    return [point[place] for place in range(pair.wiring.size)] if tied else None, outputs
