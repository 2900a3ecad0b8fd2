"""Read S-expressions, the brackets in which VNN-LIB is written."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from certkd.files import sniff
from verifiers.core.errors import InputError, quoted

#: Nested lists of words; indices like ``[0,1]`` are words of their own.
Tree = str | list[Any]

_WORDS = re.compile(r';[^\n]*|"[^"\n]*"|\[[^\]()\n]*\]|[()]|[^\s()\[\]";]+')
_BLANK = re.compile(r"\s*")
#: The largest text that is read, in bytes, and the deepest nesting.
LARGEST, DEEPEST = 1 << 30, 200


def text_of(path: Path, what: str) -> str:
    """Read a text file, packed by gzip or not.

    Raises:
        InputError: it is missing, no such file, not text, damaged or too large.
    """
    head = sniff(path, what)
    try:
        with gzip.open(path, "rb") if head[:2] == b"\x1f\x8b" else open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise InputError(f"{path} holds more than {LARGEST} bytes: it is not read")
        return content.decode()
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a {what}: it is damaged or not text") from None


def words(text: str) -> Iterator[tuple[str, int]]:
    """Yield the words of a text with their places, without comments.

    Raises:
        InputError: something is no word.
    """
    place = _BLANK.match(text).end()  # type: ignore[union-attr] # it matches everywhere
    while place < len(text):
        found = _WORDS.match(text, place)
        if found is None:
            raise InputError(f"line {text.count(chr(10), 0, place) + 1}: {quoted(text[place : place + 20])} is no word")
        if text[place] != ";":
            yield found.group(), place
        place = _BLANK.match(text, found.end()).end()  # type: ignore[union-attr]


def expressions(text: str) -> Iterator[tuple[list[Tree], int]]:
    """Yield the expressions of a text, each with the number of its line.

    Raises:
        InputError: brackets do not match, or something stands outside of all brackets.
    """
    stack: list[list[Tree]] = []
    first, line, counted = 0, 1, 0
    for word, place in words(text):
        if word == "(":
            if not stack:
                line, counted = line + text.count("\n", counted, place), place
                first = line
            stack.append([])
            if len(stack) > DEEPEST:
                raise InputError(f"line {first}: brackets are nested more than {DEEPEST} deep")
        elif not stack:
            raise InputError(f"line {text.count(chr(10), 0, place) + 1}: {quoted(word)} stands outside of all brackets")
        elif word == ")":
            done = stack.pop()
            if not stack:
                yield done, first
            else:
                stack[-1].append(done)
        else:
            stack[-1].append(word)
    if stack:
        raise InputError(f"line {first}: a bracket is never closed")


def written(tree: Tree) -> str:
    """Write a tree again, for messages."""
    return tree if isinstance(tree, str) else f"({' '.join(map(written, tree))})"
