"""The one exception for input that a person can correct, and how text from outside is repeated in messages."""

import os
from collections.abc import ItemsView, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

#: The longest message of an ``InputError``, in characters; the middle of a longer one is left out.
LONGEST_MESSAGE = 700
#: The longest text from outside that a message repeats.
LONGEST_QUOTE = 120
#: The entries of a list that a message repeats.
FEW = 40


class InputError(ValueError):
    """Something given from outside cannot be used.

    The message is one line: it repeats what was given and says what to do. The command line prints it as it is and
    exits with code 2.

    Example:
        >>> try:
        ...     certkd.load_checkpoint("missing.pt")
        ... except certkd.InputError as error:
        ...     print(error)
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(printable(" ".join(message.split())), LONGEST_MESSAGE))


def printable(text: str) -> str:
    """Escape every character that a terminal would obey instead of showing: control codes, bidirectional marks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, limit: int) -> str:
    """Leave out the middle of a text that is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    last = limit // 4
    return f"{text[: limit - last - 3]}...{text[-last:]}"


def one_line(error: BaseException, limit: int | None = 200) -> str:
    """Return the message of a library's error in one line, without control characters, cut off where it gets long."""
    try:
        text = " ".join(str(error).split())[:limit]
    except Exception:  # noqa: BLE001 - the message is a number too large to write, or broken text
        text = ""
    return printable(text or type(error).__name__)


def quoted(value: object, limit: int = LONGEST_QUOTE) -> str:
    """Write a value as Python does, in a bounded time and length, whatever it holds."""
    text = " ".join(_written(value, 3).split())
    return printable(text if len(text) <= limit else f"{text[: limit - 3]}...")


def _written(value: object, depth: int) -> str:
    """Write the beginning of a value: no more than a few entries a level, and no number of thousands of digits."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 1000:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str | bytes):
        return repr(value[: 2 * LONGEST_MESSAGE])
    if isinstance(value, dict):
        return f"{{{_few(value.items(), len(value), depth)}}}"
    if isinstance(value, list | tuple | set):
        pair = {list: "[]", tuple: "()"}.get(type(value), "{}")
        return f"{pair[0]}{_few(value, len(value), depth)}{pair[1]}"
    return repr(value)


def _few(entries: Iterable[Any], count: int, depth: int) -> str:
    """Write the first entries of a list, or of a dictionary's pairs."""
    if depth == 0:
        return "..."
    shown = [
        ": ".join(_written(part, depth - 1) for part in entry)
        if isinstance(entries, ItemsView)
        else _written(entry, depth - 1)
        for entry in islice(entries, FEW)
    ]
    return ", ".join([*shown, *(["..."] if count > FEW else [])])


@contextmanager
def loading(path: str | os.PathLike[str], what: str, hint: str = "", why: str = "") -> Iterator[None]:
    """Turn every failure of reading a file from outside into one ``InputError``: the one boundary for such files.

    Libraries raise any exception on a damaged or hostile file: decoding, unpacking, recursion, memory, lookup errors.

    Args:
        path: of the file, for the message.
        what: the kind of file that is expected, like "a .npz archive".
        hint: what to do, after the reason.
        why: the reason, in place of a library's own words.
    """
    try:
        yield
    except (InputError, Unsupported, Contradiction):
        raise
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except MemoryError as error:
        raise InputError(f"{path} cannot be read: it needs more memory than there is") from error
    except RecursionError as error:
        raise InputError(f"{path} is not {what}: it is nested too deeply") from error
    except Exception as error:  # whatever a library raises about a file is about the file
        known = error.strerror if isinstance(error, OSError) and error.errno is not None else None
        said = f"cannot read {path}: {known}" if known else f"{path} is not {what}: {why or one_line(error)}"
        raise InputError(f"{said}{hint}") from error


#: Words of the errors by which torch, CUDA and the C++ library say that memory ran out.
_MEMORY = ("t allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED", "bad_alloc")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, as Python, torch, CUDA or the C++ library says so."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY)


def did_you_mean(given: str, known: list[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest known name, or the list of all of them when none is near."""
    import difflib

    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), list(names), n=1, cutoff=0.6)
    return f" Did you mean {names[near[0]]!r}?" if near else f" Known: {', '.join(known)}."


class Unsupported(Exception):
    """A method cannot handle a network or a norm; the message names the layer or what is missing."""


class Contradiction(Exception):
    """Two facts about a network exclude each other: a bound is broken by an attack, or a graph is another network."""
