"""Counterexample files: an input and the network's outputs at it, in VNN-COMP's form and in that of VNN-LIB 2.0."""

import re
from collections.abc import Iterator, Sequence
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
        text = text_of(path, COUNTEREXAMPLE).lstrip()
        first, _, rest = text.partition("\n")
        if first.strip() in ("sat", "violated"):
            text = rest.lstrip()
        try:
            return _bracketed(text) if text.startswith("(") else _listed(text)
        except InputError as error:
            raise InputError(f"{path} is not a {COUNTEREXAMPLE}: {error}") from None


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
    tensors: list[list[Fraction]] = []
    sizes: list[int] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        heading = _HEADING.fullmatch(line)
        if heading is not None:
            sides, size = whole_numbers(heading.group(3)), 1
            for side in sides:
                size *= side
            tensors.append([])
            sizes.append(size)
        elif tensors:
            tensors[-1].append(parse_number(line))
        else:
            raise InputError(f"{quoted(line)} must be a heading like X float32 [1,3]")
    if len(tensors) > 2 or any(len(each) != size for each, size in zip(tensors, sizes, strict=True)):
        raise InputError("it must list one input and one output, each with all of its entries")
    return _checked(*tensors, *([[]] * (2 - len(tensors))))


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
