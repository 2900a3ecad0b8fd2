"""A VNN-LIB query: networks with named tensors, and linear conditions on the tensors' entries.

Versions 1.0 and 2.0 give the same query. Version 1.0 declares entries one by one (``X_0``, ``Y_3``) and has one network
without a name.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from certkd.exchange.expressions import Tree, written
from verifiers.core.errors import InputError, quoted
from verifiers.core.quantities import parse_number

#: The most cases of a query.
MOST_CASES = 100_000


class Kind(Enum):
    """The part that a tensor plays in its network."""

    INPUT = "input"
    HIDDEN = "hidden"
    OUTPUT = "output"


@dataclass(frozen=True)
class Variable:
    """A declared tensor.

    Attributes:
        name: in the query.
        kind: its part.
        dtype: element type as written.
        shape: its sides; () for a single number.
        onnx: its name in the network's file, if given.
    """

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    onnx: str = ""

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Network:
    """A declared network.

    Attributes:
        name: in the query; empty in version 1.0.
        variables: its tensors, in the order of their declarations.
        relation: ``("equal-to" or "isomorphic-to", other network)``, if declared.
    """

    name: str
    variables: tuple[Variable, ...]
    relation: tuple[str, str] | None = None

    def of(self, kind: Kind) -> list[Variable]:
        """Return the tensors of one kind."""
        return [variable for variable in self.variables if variable.kind is kind]


class Entry(NamedTuple):
    """An entry of a tensor: the tensor's name, and its place in the order of memory."""

    variable: str
    place: int


@dataclass(frozen=True)
class Linear:
    """A linear function of entries."""

    terms: Mapping[Entry, Fraction]
    constant: Fraction

    def plus(self, other: "Linear", factor: Fraction | int = 1) -> "Linear":
        """Add a multiple of another function."""
        terms = dict(self.terms)
        for entry, value in other.terms.items():
            terms[entry] = terms.get(entry, Fraction(0)) + factor * value
        kept = {entry: value for entry, value in terms.items() if value}
        return Linear(kept, self.constant + factor * other.constant)


class Formula:
    """A condition, or a junction of formulas."""


@dataclass(frozen=True)
class Condition(Formula):
    """``function <= 0``, or ``< 0`` if it is strict."""

    function: Linear
    strict: bool = False

    @property
    def negation(self) -> "Condition":
        """The condition that holds where this one does not."""
        return Condition(Linear({}, Fraction(0)).plus(self.function, -1), not self.strict)


@dataclass(frozen=True)
class Junction(Formula):
    """All of several formulas, or any of them."""

    every: bool
    parts: tuple[Formula, ...]


@dataclass(frozen=True)
class Query:
    """A query.

    Attributes:
        version: "1.0" or "2.0".
        networks: in the order of their declarations.
        assertions: formulas that must all hold.
    """

    version: str
    networks: tuple[Network, ...]
    assertions: tuple[Formula, ...]

    def cases(self) -> "tuple[list[Condition], list[list[Condition]]]":
        """Return the conditions that all cases share, and the further conditions of each case.

        Raises:
            InputError: there are more than ``MOST_CASES`` cases.
        """
        common: list[Condition] = []
        cases: list[list[Condition]] = [[]]
        for assertion in self.assertions:
            found = disjuncts(assertion)
            if len(found) == 1:
                common += found[0]
            else:
                cases = _joined(cases, found)
        return common, cases


def _joined(one: Sequence[list[Condition]], other: Sequence[list[Condition]]) -> list[list[Condition]]:
    if len(one) * len(other) > MOST_CASES:
        raise InputError(f"the property has more than {MOST_CASES} cases when its alternatives are combined")
    return [a + b for a, b in product(one, other)]


def disjuncts(formula: Formula) -> list[list[Condition]]:
    """Return the disjunctive normal form.

    Raises:
        InputError: it has more than ``MOST_CASES`` cases.
    """
    if isinstance(formula, Condition):
        return [[formula]]
    assert isinstance(formula, Junction)
    if not formula.every:
        found = [case for part in formula.parts for case in disjuncts(part)]
        return _joined(found, [[]])
    cases: list[list[Condition]] = [[]]
    for part in formula.parts:
        cases = _joined(cases, disjuncts(part))
    return cases


class Scope:
    """The tensors of a query, by their names in expressions."""

    def __init__(self) -> None:
        self.tensors: dict[str, Variable] = {}
        self.entries: dict[str, Entry] = {}  # single entries: version 1.0, and tensors without sides

    def add(self, variable: Variable) -> None:
        """Add a tensor.

        Raises:
            InputError: the name is taken.
        """
        if variable.name in self.tensors:
            raise InputError(f"{quoted(variable.name)} is declared twice")
        self.tensors[variable.name] = variable
        if variable.shape == ():
            self.entries[variable.name] = Entry(variable.name, 0)

    def entry(self, name: str, indices: str | None) -> Entry:
        """Find an entry.

        Raises:
            InputError: there is no such tensor, or it has no such entry.
        """
        if indices is None and name in self.entries:
            return self.entries[name]
        if name not in self.tensors or indices is None:
            raise InputError(f"{quoted(name + (indices or ''))} is not declared")
        shape = self.tensors[name].shape
        found = whole_numbers(indices)
        if len(found) != len(shape) or any(i >= side for i, side in zip(found, shape, strict=True)):
            raise InputError(f"{quoted(name + indices)} is no entry of a tensor of shape {list(shape)}")
        place = 0
        for i, side in zip(found, shape, strict=True):
            place = place * side + i
        return Entry(name, place)


def whole_numbers(indices: str) -> tuple[int, ...]:
    """Read ``[1,3,32]``.

    Raises:
        InputError: an entry is not a whole number.
    """
    parts = [part.strip() for part in indices[1:-1].split(",")] if indices[1:-1].strip() else []
    if not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise InputError(f"{quoted(indices)} must list whole numbers")
    return tuple(map(int, parts))


def formula_of(tree: Tree, scope: Scope) -> Formula:
    """Read a condition, or ``and``, ``or`` and ``not`` of formulas.

    Raises:
        InputError: it is something else, or not linear.
    """
    if isinstance(tree, str) or not tree or not isinstance(tree[0], str):
        raise InputError(f"{quoted(written(tree))} is no condition")
    head, parts = tree[0], tree[1:]
    if head in ("and", "or") and parts:
        return Junction(head == "and", tuple(formula_of(part, scope) for part in parts))
    if head == "not" and len(parts) == 1:
        return _negated(formula_of(parts[0], scope))
    if head not in ("<=", ">=", "<", ">", "=", "==", "!=", "distinct"):
        raise InputError(f"{quoted(written(tree))} is no condition: known are and, or, not, <=, >=, <, >, ==, !=")
    sides = [linear_of(part, scope) for part in _operands(parts)]
    if len(sides) != 2:
        raise InputError(f"{quoted(written(tree))} must compare two values")
    difference = sides[0].plus(sides[1], -1)
    below = Condition(difference, strict=head == "<")
    above = replace(below.negation, strict=head == ">")
    if head in ("<=", "<"):
        return below
    if head in (">=", ">"):
        return above
    if head in ("=", "=="):
        return Junction(True, (below, above))
    return Junction(False, (replace(below, strict=True), replace(above, strict=True)))


def _negated(formula: Formula) -> Formula:
    if isinstance(formula, Condition):
        return formula.negation
    assert isinstance(formula, Junction)
    return Junction(not formula.every, tuple(map(_negated, formula.parts)))


def _operands(trees: Sequence[Tree]) -> Iterator[Tree | tuple[str, str]]:
    """Yield operands; a name and the indices after it are one."""
    place = 0
    while place < len(trees):
        tree, after = trees[place], trees[place + 1] if place + 1 < len(trees) else None
        if isinstance(tree, str) and isinstance(after, str) and after.startswith("["):
            yield tree, after
            place += 2
        else:
            yield tree
            place += 1


def linear_of(tree: Tree | tuple[str, str], scope: Scope) -> Linear:
    """Read a number, an entry, or sums, differences and products with numbers.

    Raises:
        InputError: it is something else, or not linear.
    """
    if isinstance(tree, tuple):
        return Linear({scope.entry(*tree): Fraction(1)}, Fraction(0))
    if isinstance(tree, str):
        if tree[0].isdigit() or tree[0] in "+-.":
            return Linear({}, _number(tree))
        return Linear({scope.entry(tree, None): Fraction(1)}, Fraction(0))
    if len(tree) < 2 or tree[0] not in ("+", "-", "*"):
        raise InputError(f"{quoted(written(tree))} is no sum, difference or product")
    values = [linear_of(part, scope) for part in _operands(tree[1:])]
    if tree[0] == "*":
        return _product(values, tree)
    if tree[0] == "-" and len(values) == 1:
        return Linear({}, Fraction(0)).plus(values[0], -1)
    return _total(values, -1 if tree[0] == "-" else 1)


def _total(values: Iterable[Linear], sign: int) -> Linear:
    first, *others = values
    for value in others:
        first = first.plus(value, sign)
    return first


def _product(values: Sequence[Linear], tree: Tree) -> Linear:
    found = values[0]
    for value in values[1:]:
        if found.terms and value.terms:
            raise InputError(f"{quoted(written(tree))} is not linear")
        found, value = (value, found) if value.terms else (found, value)
        found = Linear({}, Fraction(0)).plus(found, value.constant)
    return found


@lru_cache(maxsize=4096)
def _number(text: str) -> Fraction:
    return parse_number(text)
