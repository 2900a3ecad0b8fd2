"""Count the parts of an ONNX file before it is parsed: an empty part has two bytes in the file and eighty in memory."""

from collections.abc import Iterator
from pathlib import Path

from verifiers.core.errors import InputError

#: Most parts of a file, and the bytes of a file that certainly has fewer.
PARTS, SMALL = 2_000_000, 1 << 20
#: The messages inside messages that are followed, by number; and the fields that are numbers or text.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor"},
    "tensor": {},
}
_PLAIN: dict[str, frozenset[int]] = {
    "model": frozenset((2, 3, 4, 6)),
    "graph": frozenset((2, 10)),
    "function": frozenset((1, 4, 5, 6, 8, 10)),
    "node": frozenset((1, 2, 3, 4, 6, 7, 8)),
    "attribute": frozenset((1, 4, 7, 8, 9, 13, 21)),
    "tensor": frozenset((1, 4, 5, 6, 7, 8, 9, 10, 11, 12)),
}


def check_parts(content: bytes, path: Path) -> None:
    """Check that a file has no more parts than a network needs.

    Raises:
        InputError: it has more.
        ValueError, IndexError: it is damaged.
    """
    if len(content) <= SMALL:
        return
    left, stack = PARTS, [("model", 0, len(content))]
    while stack:
        kind, start, end = stack.pop()
        for number, begin, stop in _fields(content, start, end):
            inside = _INSIDE[kind].get(number)
            left -= 1
            if inside is not None:
                stack.append((inside, begin, stop))
            elif number not in _PLAIN[kind]:
                left -= (stop - begin) // 2
            if left < 0:
                raise InputError(f"{path} has more than {PARTS} parts: it is not a network, or damaged")


def _fields(content: bytes, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, the start and the end of each field of a message."""
    while place < end:
        tag, place = _number(content, place)
        kind = tag & 7
        if kind == 0:
            stop = _number(content, place)[1]
        elif kind == 2:
            length, place = _number(content, place)
            stop = place + length
        else:
            stop = place + {1: 8, 5: 4}.get(kind, end)
        if stop > end:
            raise ValueError("it ends too early")
        yield tag >> 3, place, stop
        place = stop


def _number(content: bytes, place: int) -> tuple[int, int]:
    """Read a number of seven bits a byte; return it and the place behind it."""
    value = shift = 0
    while shift < 70:
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise ValueError("a number of more than ten bytes")
