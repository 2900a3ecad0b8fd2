"""Read lists of instances, as benchmarks publish them: for each image its label and the radius to certify it at."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from certkd.data.selection import Selection, named, text_of
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon
from verifiers.core.table import counted

#: Possible names of the column with an image's number; the first one present counts.
INDEX_COLUMNS = ("image_index", "index", "image")


@dataclass(frozen=True)
class Instance:
    """One line of a list.

    Attributes:
        line: its number in the file.
        index: number of the image in its split.
        label: its true class.
        eps: radius, pixel units.
    """

    line: int
    index: int
    label: int
    eps: Epsilon


def read(path: Path, net: str) -> list[Instance]:
    """Read a CSV file with the columns image_index (or index, image), label and eps.

    Other columns are ignored, except ``net``: if several networks are listed, only the lines of ``net`` are taken.

    Raises:
        InputError: the file has another form, a line is malformed or repeated, or no line is about ``net``.
    """
    lines = list(_lines(path))
    nets = list(dict.fromkeys(cells["net"] for _, cells in lines if "net" in cells))
    if len(nets) > 1:
        lines = [(number, cells) for number, cells in lines if cells["net"] == net]
    if not lines:
        about = f" of the network {net!r}: it has {', '.join(nets)}" if nets else ""
        raise InputError(f"{path} lists no instance{about}")
    found = [_instance(f"{path} line {number}", number, cells) for number, cells in lines]
    _check_distinct(path, found)
    return found


def by_eps(
    instances: Sequence[Instance], path: Path, labels: Sequence[int], split: str
) -> list[tuple[Epsilon, Selection]]:
    """Group the samples by radius, in the order of the list.

    Args:
        instances: from ``read``.
        path: of the list, for messages.
        labels: of the whole split.
        split: its name in messages.

    Raises:
        InputError: an image that the split does not have, or one with another label.
    """
    groups: dict[float, list[Instance]] = {}
    for instance in instances:
        _check_label(instance, path, labels, split)
        groups.setdefault(instance.eps.value, []).append(instance)
    return [(group[0].eps, named([instance.index for instance in group], str(path))) for group in groups.values()]


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield the number and the cells by column of each line below the header that is not blank."""
    reader = csv.reader(io.StringIO(text_of(path), newline=""), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        _check_header(path, header)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                found = f"{counted(len(cells), 'cell')}, its header {len(header)}"
                raise InputError(f"{path} line {reader.line_num} has {found}")
            yield reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not CSV: {error}") from None


def _check_header(path: Path, header: Sequence[str]) -> None:
    wanted = {"image_index": INDEX_COLUMNS, "label": ("label",), "eps": ("eps",)}
    missing = [name for name, names in wanted.items() if not set(names) & set(header)]
    if missing:
        has = ", ".join(header)[:200] or "nothing"
        raise InputError(f"{path} has no column {missing[0]!r}: its header must name {', '.join(wanted)}; it has {has}")


def _instance(where: str, number: int, cells: Mapping[str, str]) -> Instance:
    index = next(name for name in INDEX_COLUMNS if name in cells)
    try:
        eps = Epsilon.parse(cells.get("eps", ""))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Instance(number, _whole(where, index, cells), _whole(where, "label", cells), eps)


def _whole(where: str, column: str, cells: Mapping[str, str]) -> int:
    text = cells.get(column, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InputError(f"{where}: {column} {text[:60]!r} is not a whole number of 0 or more")
    return int(text)


def _check_distinct(path: Path, instances: Sequence[Instance]) -> None:
    lines: dict[tuple[int, float], int] = {}
    for instance in instances:
        first = lines.setdefault((instance.index, instance.eps.value), instance.line)
        if first != instance.line:
            raise InputError(
                f"{path} line {instance.line}: image {instance.index} at eps {instance.eps} is on line {first} already"
            )


def _check_label(instance: Instance, path: Path, labels: Sequence[int], split: str) -> None:
    where = f"{path} line {instance.line}: image {instance.index}"
    if instance.index >= len(labels):
        raise InputError(f"{where} does not exist: {split} has {len(labels)}, numbered 0 to {len(labels) - 1}")
    label = int(labels[instance.index])
    if instance.label != label:
        raise InputError(f"{where} has label {instance.label} there and {label} in {split}: is it another data set?")
