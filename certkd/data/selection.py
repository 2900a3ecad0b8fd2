"""Select samples of a split: by number, the first few, or all."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from verifiers.core.errors import InputError
from verifiers.core.files import read_text

#: The largest list of samples, in bytes.
LARGEST_LIST = 20_000_000

_ITEM = re.compile(r"([0-9]{1,15})(?:\s*-\s*([0-9]{1,15}))?")


@dataclass(frozen=True)
class Selection:
    """Samples of a split, in the given order; all of them by default.

    Attributes:
        ranges: their numbers, counted from 0 in the split, without repeats; None if they are not named.
        limit: number of first samples to take.
        source: the origin of the numbers, for messages.
    """

    ranges: tuple[range, ...] | None = None
    limit: int | None = None
    source: str = ""

    def rows(self, samples: int, split: str) -> list[int]:
        """Return the numbers of the chosen samples in a split of ``samples`` samples; ``split`` names it in messages.

        Raises:
            InputError: the split has no such sample.
        """
        if self.ranges is None:
            return list(range(samples if self.limit is None else min(self.limit, samples)))
        outside = next((max(r.start, samples) for r in self.ranges if r.stop > samples), None)
        if outside is not None:
            raise InputError(f"{self.source}: no sample {outside}: {split} has {samples}, numbered 0 to {samples - 1}")
        return [row for r in self.ranges for row in r]


EVERYTHING = Selection()


def chosen(indices: str | None, file: str | Path | None, limit: int | None) -> Selection:
    """Combine ``--indices``, ``--indices-file`` and ``--limit`` into a selection.

    Args:
        indices: numbers and inclusive ranges, separated by commas: ``"3,17,40-99"``.
        file: a file with the same, on any number of lines; text after ``#`` is a comment.
        limit: number of first samples to take.

    Raises:
        InputError: two of them are given, a text is not a list of indices, an index is repeated, or the file has none.
    """
    options = {"--indices": indices, "--indices-file": file, "--limit": limit}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]} both select samples: give one of them")
    if indices is not None:
        return _named(list(_ranges(indices, "--indices")), "--indices")
    if file is not None:
        return _named([r for where, line in _lines(Path(file)) for r in _ranges(line, where)], str(file))
    return Selection(limit=limit)


def named(rows: Sequence[int], source: str) -> Selection:
    """Select samples by number.

    Raises:
        InputError: a number is repeated, or there are none.
    """
    return _named([range(row, row + 1) for row in rows], source)


def text_of(path: Path) -> str:
    """Read a small text file.

    Raises:
        InputError: the file is missing, a folder, a pipe, too large, or not text.
    """
    return read_text(path, "a list", LARGEST_LIST, "utf-8-sig")


def _named(ranges: list[range], source: str) -> Selection:
    if not ranges:
        raise InputError(f"{source} names no sample: write indices and ranges like 3,17,40-99")
    for before, after in pairwise(sorted(ranges, key=lambda r: r.start)):
        if after.start < before.stop:
            raise InputError(f"{source} names sample {after.start} twice: each sample once")
    return Selection(tuple(ranges), source=source)


def _ranges(text: str, where: str) -> Iterator[range]:
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            among = "" if item == text else f" in {_short(text)}"
            raise InputError(f"{where}: {_short(item.strip())}{among} is not an index or a range like 40-99")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"{where}: the range {item.strip()} runs backwards: write {last}-{first}")
        yield range(first, last + 1)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines that are not blank, each with a name for messages; a comma may end a line."""
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        text = line.partition("#")[0].strip().removesuffix(",")
        if text:
            yield f"{path} line {number}", text


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
