"""Counterexample files: an input and the network's outputs at it, in VNN-COMP's form and in that of VNN-LIB 2.0."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from certkd.exchange.expressions import expressions, text_of, written
from certkd.exchange.query import whole_numbers
from verifiers.core.errors import InputError, loading, quoted
from verifiers.core.quantities import parse_number

COUNTEREXAMPLE = "counterexample"
_NAME = re.compile(r"([XY])_([0-9]{1,9})")
_HEADING = re.compile(r"([A-Za-z]\w*)\s+(\w+)\s*(\[[0-9,\s]*\])")
#: Digits of a number without a finite decimal form.
DIGITS = 40


@dataclass(frozen=True)
class Assignment:
    """Values of a network's input and outputs, in the order of memory.

    Attributes:
        x: the input.
        y: the outputs as the file states them; empty if it does not.
    """

    x: list[Fraction]
    y: list[Fraction]


def read_assignment(path: Path) -> Assignment:
    """Read ``((X_0 0.5) ... (Y_9 1.25))``, or tensors with a heading such as ``X float32 [1,3]`` and a value a line.

    A first line with the verdict, as in results of tools, is skipped.

    Raises:
        InputError: the file has another form.
    """
    with loading(path, f"a {COUNTEREXAMPLE}"):
        text = _body(path)
        try:
            return _bracketed(text) if text.startswith("(") else _listed(text)
        except InputError as error:
            raise InputError(f"{path} is not a {COUNTEREXAMPLE}: {error}") from None


def _body(path: Path) -> str:
    """Read the text below the verdict."""
    text = text_of(path, COUNTEREXAMPLE).lstrip()
    first, _, rest = text.partition("\n")
    return rest.lstrip() if first.strip() in ("sat", "violated") else text


def _bracketed(text: str) -> Assignment:
    values: dict[str, dict[int, Fraction]] = {"X": {}, "Y": {}}
    for tree, _ in expressions(text):
        for pair in tree:
            name = _NAME.fullmatch(str(pair[0])) if len(pair) == 2 and isinstance(pair, list) else None
            if name is None:
                raise InputError(f"{quoted(written(pair))} must look like (X_0 0.5)")
            values[name.group(1)][int(name.group(2))] = parse_number(written(pair[1]))
    found = [[each[i] for i in sorted(each)] for each in values.values()]
    for tensor, each in values.items():
        if sorted(each) != list(range(len(each))):
            raise InputError(f"some entries of {tensor} are missing")
    return _checked(*found)


def _listed(text: str) -> Assignment:
    found = _tensors(text)
    if len(found) > 2:
        raise InputError("it must list one input and one output")
    return _checked(*found.values(), *([[]] * (2 - len(found))))


def read_tensors(path: Path) -> dict[str, list[Fraction]]:
    """Read tensors with headings, as VNN-LIB 2.0 writes them, by name.

    Raises:
        InputError: the file has another form.
    """
    with loading(path, f"a {COUNTEREXAMPLE}"):
        text = _body(path)
        try:
            return _tensors(text)
        except InputError as error:
            raise InputError(f"{path} is not a {COUNTEREXAMPLE}: {error}") from None


def _tensors(text: str) -> dict[str, list[Fraction]]:
    found: dict[str, list[Fraction]] = {}
    sizes: dict[str, int] = {}
    name = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        heading = _HEADING.fullmatch(line)
        if heading is not None:
            name = heading.group(1)
            if name in found:
                raise InputError(f"it lists {quoted(name)} twice")
            found[name], sizes[name] = [], math.prod(whole_numbers(heading.group(3)))
        elif name:
            found[name].append(parse_number(line))
        else:
            raise InputError(f"{quoted(line)} must be a heading like X float32 [1,3]")
    wrong = next((name for name, values in found.items() if len(values) != sizes[name]), None)
    if wrong is not None:
        raise InputError(f"{quoted(wrong)} must be listed with all of its entries: {sizes[wrong]}")
    return found


def _checked(x: list[Fraction], y: list[Fraction]) -> Assignment:
    if not x:
        raise InputError("it has no input")
    return Assignment(x, y)


def assignment(x: Sequence[Fraction], y: Sequence[Fraction]) -> Iterator[str]:
    """Write an input and outputs in VNN-COMP's form, with every digit."""
    values = [*(("X", i, value) for i, value in enumerate(x)), *(("Y", i, value) for i, value in enumerate(y))]
    for place, (tensor, i, value) in enumerate(values):
        opened, closed = "(" if place == 0 else " ", ")" if place == len(values) - 1 else ""
        yield f"{opened}({tensor}_{i} {decimal(value)}){closed}"


def tensors(values: Iterable[tuple[str, str, Sequence[int], Sequence[Fraction]]]) -> Iterator[str]:
    """Write tensors by name, type and shape in the form of VNN-LIB 2.0, with every digit."""
    for name, dtype, shape, entries in values:
        yield f"{name} {dtype} [{','.join(map(str, shape))}]"
        yield from map(decimal, entries)


def decimal(value: Fraction) -> str:
    """Write a number in decimal, exactly where that ends, and with ``DIGITS`` digits after the point elsewhere."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    places = max(1, places if rest == 1 else DIGITS)
    digits = str(abs(round(value * 10**places))).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
