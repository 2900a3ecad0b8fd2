"""How text from outside is repeated in messages, and the boundary of files from outside."""

import struct
import time
import zipfile
import zlib
from pathlib import Path

import pytest

from verifiers.core.errors import (
    FEW,
    LONGEST_MESSAGE,
    LONGEST_QUOTE,
    InputError,
    Unsupported,
    loading,
    one_line,
    printable,
    quoted,
    shortened,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a plain é 𝕏 text…", "a plain é 𝕏 text…"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\u202eb\u200bc", r"a\u202eb\u200bc"),
        ("\x9b31m", r"\x9b31m"),
        ("\udcff", r"\udcff"),
        ("a\nb\rc\0", r"a\nb\rc\x00"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_the_middle_of_a_long_text_is_left_out() -> None:
    assert shortened("short", 10) == "short"
    long = shortened("x" * 500 + "the advice", 100)
    assert len(long) == 100 and long.startswith("xxx") and long.endswith("the advice") and "..." in long


def test_an_input_error_is_one_printable_line() -> None:
    assert str(InputError("a\x1b[1m\n  b")) == r"a\x1b[1m b"
    assert len(str(InputError("x" * 10**6))) == LONGEST_MESSAGE
    assert str(InputError()) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("a'b", '"a\'b"'),
        ([1, [2, [3, [4]]]], "[1, [2, [3, [...]]]]"),
        ({"a": (1, 2)}, "{'a': (1, 2)}"),
        (["a"] * 5 + list(range(9)), "['a', 'a', 'a', 'a', 'a', 0, 1, 2, 3, 4, 5, 6, 7, 8]"),
        (1 << 20000, "a number of 20001 bits"),
        (True, "True"),
        (b"\x1b", r"b'\x1b'"),
        (None, "None"),
        ([], "[]"),
    ],
    ids=range(10),
)
def test_a_value_is_quoted_as_python_writes_it(value: object, text: str) -> None:
    assert quoted(value) == text


def test_a_quote_is_bounded_in_length_and_time() -> None:
    bomb: object = "x"
    for _ in range(40):
        bomb = [bomb] * 9
    started = time.process_time()
    assert len(quoted(bomb)) <= LONGEST_QUOTE
    assert len(quoted("y" * 10**8)) <= LONGEST_QUOTE
    assert len(quoted({i: bomb for i in range(2000)})) <= LONGEST_QUOTE
    assert time.process_time() - started < 5, "9^40 entries are not written"
    assert quoted([1] * 50, 1000) == f"[{'1, ' * FEW}...]"
    itself: list[object] = []
    itself.append(itself)
    assert quoted(itself) == "[[[[...]]]]"


def test_errors_that_cannot_be_written_have_their_type_at_least() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert one_line(Broken()) == "Broken"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("a\x07\nb")) == r"a\x07 b"


@pytest.mark.parametrize(
    "error",
    [
        zipfile.BadZipFile("bad"),
        zlib.error("bad"),
        struct.error("bad"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        OverflowError("bad"),
        KeyError("bad"),
        AssertionError("bad"),
        RecursionError(),
        MemoryError(),
        PermissionError(13, "Permission denied"),
        EOFError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_failure_of_reading_is_a_refusal_that_names_the_file(error: Exception) -> None:
    with pytest.raises(InputError, match="some file") as refusal, loading("some file", "a list"):
        raise error
    assert refusal.value.__cause__ is error, "--debug shows where"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*gone"), loading(tmp_path / "gone", "a list"):
        (tmp_path / "gone").read_text()


@pytest.mark.parametrize("error", [InputError("clear"), Unsupported("a layer"), KeyboardInterrupt()])
def test_clear_errors_and_interrupts_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, loading("some.file", "a list"):
        raise error
    assert caught.value is error
