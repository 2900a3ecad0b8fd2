"""Read VNN-LIB files of versions 1.0 and 2.0, plain or packed by gzip.

Source of the grammar: the VNN-LIB standard, version 2.0 (vnnlib.org); version 1.0 is read as VNN-COMP used it.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from certkd.exchange.expressions import Tree, expressions, text_of, written
from certkd.exchange.query import (
    Condition,
    Entry,
    Formula,
    Kind,
    Network,
    Query,
    Scope,
    Variable,
    formula_of,
    whole_numbers,
)
from verifiers.core.errors import InputError, loading, quoted
from verifiers.properties.property import Box, Case, Inequality, Property

VNNLIB = "VNN-LIB property"
RELATIONS = ("equal-to", "isomorphic-to")
_KINDS = {f"declare-{kind.value}": kind for kind in Kind}
_PLAIN = re.compile(r"([XY])_([0-9]{1,9})")


def read_query(path: Path) -> Query:
    """Read a file.

    Raises:
        InputError: it is not VNN-LIB, or has conditions that are not linear; the message has the line.
    """
    with loading(path, f"a {VNNLIB}"):
        reader = _Reader()
        text = text_of(path, VNNLIB)
        try:
            for tree, reader.line in expressions(text):
                reader.read(tree)
            reader.line = 0
            return reader.query()
        except InputError as error:
            message = str(error)
            where = "" if message.startswith("line ") or not reader.line else f"line {reader.line}: "
            raise InputError(f"{path} {where}{message}") from None


class _Reader:
    """The declarations and assertions of a file, in order."""

    def __init__(self) -> None:
        self.scope, self.networks, self.assertions = Scope(), list[Network](), list[Formula]()
        self.version, self.line = "", 0
        self.plain: dict[str, set[int]] = {"X": set(), "Y": set()}

    def read(self, tree: list[Tree]) -> None:
        """Read one command.

        Raises:
            InputError: it is no command, or in the wrong place.
        """
        head = tree[0] if tree and isinstance(tree[0], str) else ""
        if head == "vnnlib-version" and len(tree) == 2:
            self.version = written(tree[1]).strip("<>")
            if self.version.split(".")[0] not in ("1", "2"):
                raise InputError(f"version {quoted(self.version)} of VNN-LIB is not known: 1.0 and 2.0 are")
        elif head in ("declare-const", "declare-fun"):
            self._entry(tree)
        elif head == "declare-network":
            self._network(tree)
        elif head == "assert" and len(tree) == 2:
            self.assertions.append(formula_of(tree[1], self.scope))
        elif head not in ("set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"):
            raise InputError(f"{quoted(written(tree))} is no command of VNN-LIB")

    def _entry(self, tree: list[Tree]) -> None:
        """Declare an entry of version 1.0."""
        name = tree[1] if len(tree) > 2 and isinstance(tree[1], str) else ""
        found = _PLAIN.fullmatch(name)
        if found is None or written(tree[-1]) not in ("Real", "real"):
            raise InputError(f"{quoted(written(tree))} must declare X_0, X_1, ... or Y_0, Y_1, ... as Real")
        tensor, place = found.group(1), int(found.group(2))
        if place in self.plain[tensor]:
            raise InputError(f"{quoted(name)} is declared twice")
        self.plain[tensor].add(place)
        self.scope.entries[name] = Entry(tensor, place)

    def _network(self, tree: list[Tree]) -> None:
        """Declare a network of version 2.0."""
        if len(tree) < 3 or not isinstance(tree[1], str):
            raise InputError(f"{quoted(written(tree))} must declare a network with inputs and outputs")
        name, relation, variables = tree[1], None, []
        if name in (network.name for network in self.networks):
            raise InputError(f"the network {quoted(name)} is declared twice")
        for part in tree[2:]:
            head = part[0] if isinstance(part, list) and part else ""
            if isinstance(head, str) and head in RELATIONS and len(part) == 2 and relation is None:
                relation = (head, written(part[1]))
                if relation[1] not in (network.name for network in self.networks):
                    raise InputError(f"the network {quoted(relation[1])} is not declared before {quoted(name)}")
            elif isinstance(head, str) and head in _KINDS:
                variables.append(_variable(part))
                self.scope.add(variables[-1])
            else:
                raise InputError(f"{quoted(written(part))} is no declaration in a network")
        network = Network(name, tuple(variables), relation)
        if not network.of(Kind.INPUT) or not network.of(Kind.OUTPUT):
            raise InputError(f"the network {quoted(name)} needs an input and an output")
        self.networks.append(network)

    def query(self) -> Query:
        """Return what was read.

        Raises:
            InputError: nothing is declared or asserted, or entries are missing.
        """
        if any(self.plain.values()):
            if self.networks:
                raise InputError("has declarations of both versions of VNN-LIB")
            variables = []
            for tensor, kind in (("X", Kind.INPUT), ("Y", Kind.OUTPUT)):
                places = self.plain[tensor]
                missing = next((i for i in range(len(places)) if i not in places), None)
                if not places or missing is not None:
                    raise InputError(f"does not declare {tensor}_{missing or 0}")
                variables.append(Variable(tensor, kind, "Real", (len(places),)))
            self.networks = [Network("", tuple(variables))]
        if not self.networks or not self.assertions:
            raise InputError(f"{'asserts' if self.networks else 'declares'} nothing: it is no {VNNLIB}")
        version = self.version or ("1.0" if not self.networks[0].name else "2.0")
        return Query(version, tuple(self.networks), tuple(self.assertions))


def _variable(tree: Tree) -> Variable:
    """Read ``(declare-input X float32 [1,3] "name")``; the shape of a single number is ``[]``."""
    words = [word for word in tree if isinstance(word, str)]
    fits = len(words) == len(tree) and len(words) in (4, 5) and words[3].startswith("[")
    if not fits or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", words[1]):
        raise InputError(f"{quoted(written(tree))} must look like (declare-input X float32 [1,3])")
    onnx = words[4].strip('"') if len(words) == 5 else ""
    return Variable(words[1], _KINDS[words[0]], words[2], whole_numbers(words[3]), onnx)


def property_of(query: Query, inputs: int, outputs: int) -> Property:
    """Turn a query about one network into a property of a network with these numbers of inputs and outputs.

    Raises:
        InputError: it is about several networks or tensors, or another network, or leaves an input without a bound.
    """
    if len(query.networks) != 1:
        names = ", ".join(network.name for network in query.networks)
        raise InputError(f"the property is about {len(query.networks)} networks ({names}), not one")
    network = query.networks[0]
    given, made = network.of(Kind.INPUT), network.of(Kind.OUTPUT)
    if len(network.variables) != 2 or len(given) != 1:
        raise InputError("the property is about several inputs or outputs, or hidden tensors: only one of each is read")
    for what, variable, size in (("inputs", given[0], inputs), ("outputs", made[0], outputs)):
        if variable.size != size:
            raise InputError(f"the property is about {variable.size} {what}, the network has {size}")
    entries = [f"input {i}" for i in range(inputs)]
    return Cases(given[0].name, entries, outputs).property(query)


class Cases:
    """The boxes and inequalities of a query's cases.

    Args:
        image: the name of the input; every other tensor is the output.
        names: of its entries, for messages.
        outputs: the number of outputs.
    """

    def __init__(self, image: str, names: Sequence[str], outputs: int) -> None:
        self.image, self.names, self.inputs, self.outputs = image, names, len(names), outputs

    def property(self, query: Query) -> Property:
        """Build the cases; those with an empty box, or a condition that never holds, are left out."""
        common, cases = query.cases()
        low, high = list[Fraction | None]([None] * self.inputs), list[Fraction | None]([None] * self.inputs)
        shared = self._bounded(common, low, high)
        while any(_implied(inequality, low, high) for inequality in shared or ()):
            pass  # each finds a bound that was missing
        made: list[Case] = []
        boxes: dict[object, Box] = {}  # cases of one box share the object
        for conditions in cases if shared is not None else ():
            ends = low.copy(), high.copy()
            rest = self._bounded(conditions, *ends)
            if rest is None:
                continue
            own = {next(iter(each.function.terms)).place for each in conditions if self._is_bound(each)}
            key = tuple((i, ends[0][i], ends[1][i]) for i in sorted(own))
            if key not in boxes:
                boxes[key] = self._box(*ends)
            if not boxes[key].empty:
                made.append(Case(boxes[key], tuple(dict.fromkeys((*(shared or ()), *rest)))))
        return Property(self.inputs, self.outputs, tuple(made))

    def _is_bound(self, condition: Condition) -> bool:
        """Return whether a condition bounds one input."""
        terms = condition.function.terms
        return len(terms) == 1 and next(iter(terms)).variable == self.image

    def _bounded(
        self, conditions: list[Condition], low: list[Fraction | None], high: list[Fraction | None]
    ) -> list[Inequality] | None:
        """Tighten bounds of inputs; return the other conditions, or None if one of them never holds.

        A strict bound of an input tightens the closed box, and stays a condition.
        """
        rest: list[Inequality] = []
        for condition in conditions:
            function = condition.function
            if not function.terms:
                if function.constant > 0 or (function.constant == 0 and condition.strict):
                    return None
                continue
            if self._is_bound(condition):
                ((entry, slope),) = function.terms.items()
                end = -function.constant / slope
                side, better = (high, min) if slope > 0 else (low, max)
                before = side[entry.place]
                side[entry.place] = end if before is None else better(before, end)
                if not condition.strict:
                    continue
            parts: dict[bool, list[tuple[int, Fraction]]] = {True: [], False: []}
            for entry, value in function.terms.items():
                parts[entry.variable == self.image].append((entry.place, value))
            rest.append(Inequality(tuple(parts[False]), tuple(parts[True]), function.constant, condition.strict))
        return rest

    def _box(self, low: list[Fraction | None], high: list[Fraction | None]) -> Box:
        ends = []
        for side, values in (("lower", low), ("upper", high)):
            missing = next((i for i, value in enumerate(values) if value is None), None)
            if missing is not None:
                raise InputError(f"{self.names[missing]} has no {side} bound: a property needs a box of inputs")
            ends.append(tuple(value for value in values if value is not None))
        return Box(*ends)


def _implied(inequality: Inequality, low: list[Fraction | None], high: list[Fraction | None]) -> bool:
    """Bound an input that has no bound yet by an inequality of inputs alone; return whether one was found."""
    if inequality.outputs:
        return False
    for place, value in inequality.inputs:
        side = high if value > 0 else low
        if side[place] is not None:
            continue
        least = inequality.constant
        for i, slope in inequality.inputs:
            end = low[i] if slope > 0 else high[i]
            if i != place:
                if end is None:
                    break
                least += slope * end
        else:
            side[place] = -least / value
            return True
    return False
