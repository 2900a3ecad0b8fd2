"""Tables of VNN-COMP: lists of instances, and the results of tools."""

import ast
import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from certkd.exchange.expressions import text_of
from certkd.files import write_whole
from verifiers.core.errors import InputError, quoted

#: The list of properties in their folder.
LIST = "instances.csv"
#: The words that tools write for the four answers.
VERDICTS: Mapping[str, str] = {
    **dict.fromkeys(("sat", "violated", "unsafe", "falsified"), "sat"),
    **dict.fromkeys(("unsat", "holds", "safe", "verified"), "unsat"),
    **dict.fromkeys(("timeout", "timed-out", "run_instance_timeout"), "timeout"),
}
#: The columns of a table of results, with a header or without one.
COLUMNS = ("benchmark", "onnx", "vnnlib", "prepare", "result", "time")
#: Other names of columns in headers.
_ALIASES = {"category": "benchmark", "prepare_time": "prepare", "run_time": "time", "verdict": "result"}
#: The longest list of networks in a cell.
LONGEST = 10_000
HEADER = ("onnx", "vnnlib", "timeout", "result", "time", "counterexample", "reason")


@dataclass(frozen=True)
class Instance:
    """One instance of a list.

    Attributes:
        network, question: their files, as written in the list; several networks as ``[('f', 'a.onnx'), ...]``.
        timeout: seconds.
        folder: where relative paths start.
    """

    network: str
    question: str
    timeout: float
    folder: Path

    @property
    def networks(self) -> list[tuple[str, Path]]:
        """The files of the networks, with the names that a list of several gives; as written, or with ``.gz``.

        Raises:
            InputError: it is no list of networks.
        """
        return [(name, packed(self.folder / file)) for name, file in listed_networks(self.network)]

    @property
    def property_path(self) -> Path:
        """The file of the property: as written, or with ``.gz`` where only that exists."""
        return packed(self.folder / self.question)

    @property
    def name(self) -> str:
        """The names of all files, without folders and suffixes."""
        return f"{bare(self.network)}_{bare(self.question)}"


def listed_networks(text: str) -> list[tuple[str, str]]:
    """Read one file, or ``[('f', 'a.onnx'), ('g', 'b.onnx')]``, or such a list without names, as names and files.

    Raises:
        InputError: it starts like a list and is none.
    """
    if not text.startswith("["):
        return [("", text)]
    try:
        found = ast.literal_eval(text) if len(text) < LONGEST else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    pairs = [("", each) if isinstance(each, str) else each for each in found] if isinstance(found, list) else []
    words = [isinstance(p, tuple) and len(p) == 2 and all(isinstance(word, str) for word in p) for p in pairs]
    if not pairs or not all(words) or not all(file for _, file in pairs):
        raise InputError(f"{quoted(text)} must look like [('f', 'a.onnx'), ('g', 'b.onnx')]")
    return pairs


def packed(path: Path) -> Path:
    """Return the path of a file or, if only that exists, of the file packed by gzip."""
    other = path.with_name(f"{path.name}.gz")
    return other if not path.exists() and other.exists() else path


def _rows(path: Path, what: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text_of(path, what), newline=""), strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not CSV: {error}") from None


def read_instances(path: Path) -> list[Instance]:
    """Read rows ``onnx,vnnlib,timeout``; paths are relative to the list.

    Raises:
        InputError: a row has another form, or a file is missing; every row is checked before any is used.
    """
    found = []
    for line, cells in _rows(path, "list of instances"):
        if line == 1 and cells[0].lower() in ("onnx", "network", "model"):
            continue
        cells = _whole(cells)
        if len(cells) < 3:
            raise InputError(f"{path} line {line} must be onnx,vnnlib,timeout, got {quoted(','.join(cells))}")
        instance = Instance(cells[0], cells[1], seconds(cells[2], f"{path} line {line}"), path.parent)
        try:
            files = [*(file for _, file in instance.networks), instance.property_path]
        except InputError as error:
            raise InputError(f"{path} line {line}: {error}") from None
        missing = next((file for file in files if not file.is_file()), None)
        if missing is not None:
            raise InputError(f"{path} line {line}: no such file: {missing}")
        found.append(instance)
    if not found:
        raise InputError(f"{path} lists no instance: rows are onnx,vnnlib,timeout")
    return found


def _whole(cells: list[str]) -> list[str]:
    """Join the cells of a list of networks that was written without quotes."""
    if not cells[0].startswith("[") or cells[0].endswith("]"):
        return cells
    end = next((i for i, cell in enumerate(cells) if cell.endswith("]")), 0)
    return [", ".join(cells[: end + 1]), *cells[end + 1 :]]


def seconds(text: str, where: str) -> float:
    """Read a time limit.

    Raises:
        InputError: it is not a positive number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"{where}: the time limit {quoted(text)} is not a positive number of seconds")
    return value


@dataclass(frozen=True)
class Row:
    """The result of one instance.

    Attributes:
        instance: what was decided.
        result: sat, unsat, unknown or timeout.
        time: seconds.
        counterexample: name of its file; empty if there is none.
        reason: why it is unknown; empty otherwise.
    """

    instance: Instance
    result: str
    time: float
    counterexample: str = ""
    reason: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        one = self.instance
        limit, time = f"{one.timeout:g}", f"{self.time:.3f}"
        return one.network, one.question, limit, self.result, time, self.counterexample, self.reason


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Write the results so far, with a header.

    Raises:
        InputError: the file cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *(row.cells for row in rows)])
    write_whole(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


def read_results(path: Path) -> dict[tuple[str, str], str]:
    """Read another tool's verdicts by the names of network and property, without folders and suffixes.

    The columns are those of a header that names onnx, vnnlib and result, or VNN-COMP's: ``COLUMNS``. Words like
    ``verified`` are read as the four answers; errors and unknown words are ``unknown``.

    Raises:
        InputError: the file has another form, or lists an instance twice with different answers.
    """
    found: dict[tuple[str, str], str] = {}
    columns: Sequence[str] = COLUMNS
    for line, cells in _rows(path, "table of results"):
        names = [_ALIASES.get(cell.lower(), cell.lower()) for cell in cells]
        if line == 1 and {"onnx", "vnnlib", "result"} <= set(names):
            columns = names
            continue
        row = dict(zip(columns, cells, strict=False))
        if not all(row.get(name) for name in ("onnx", "vnnlib", "result")):
            raise InputError(
                f"{path} line {line} must be {','.join(COLUMNS)}, or its first line must name these columns: got "
                f"{quoted(','.join(cells))}"
            )
        key, verdict = (bare(row["onnx"]), bare(row["vnnlib"])), VERDICTS.get(row["result"].lower(), "unknown")
        if found.setdefault(key, verdict) != verdict:
            raise InputError(f"{path} line {line}: {' with '.join(key)} is listed already, with another result")
    if not found:
        raise InputError(f"{path} lists no result")
    return found


def bare(name: str) -> str:
    """Return the name of a file without its folder and its known suffixes; of a list of files, their names."""
    if name.startswith("["):
        with suppress(InputError):
            return "_".join(bare(file) for _, file in listed_networks(name))
    last = name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".gz")
    return last.removesuffix(".onnx").removesuffix(".vnnlib")


@dataclass(frozen=True)
class Comparison:
    """Our verdicts and another tool's.

    Attributes:
        both: instances in both tables.
        same: instances with one answer that is sat or unsat.
        ours, theirs: instances that only one of the two decided.
        contradictions: instances with opposite answers.
    """

    both: int
    same: int
    ours: int
    theirs: int
    contradictions: tuple[str, ...]


def compare(rows: Sequence[Row], other: Mapping[tuple[str, str], str]) -> Comparison:
    """Compare instance by instance."""
    decided = ("sat", "unsat")
    pairs = []
    for row in rows:
        key = bare(row.instance.network), bare(row.instance.question)
        if key in other:
            pairs.append((" with ".join(key), row.result, other[key]))
    return Comparison(
        len(pairs),
        sum(one == two and one in decided for _, one, two in pairs),
        sum(one in decided and two not in decided for _, one, two in pairs),
        sum(two in decided and one not in decided for _, one, two in pairs),
        tuple(
            f"{name}: certkd says {one}, the other tool {two}" for name, one, two in pairs if {one, two} == {*decided}
        ),
    )
