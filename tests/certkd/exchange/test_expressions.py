"""S-expressions: words, brackets, comments, lines, and texts that are none."""

import gzip
from pathlib import Path

import pytest

from certkd.exchange.expressions import DEEPEST, expressions, text_of, words, written
from verifiers.core.errors import InputError


def read(text: str) -> list:
    return list(expressions(text))


@pytest.mark.parametrize(
    ("text", "trees"),
    [
        ("", []),
        (" \n ; nothing but a comment", []),
        ("()", [([], 1)]),
        ("(a)", [(["a"], 1)]),
        ("(a (b c) d)", [(["a", ["b", "c"], "d"], 1)]),
        ("(a)\n\n(b)(c)", [(["a"], 1), (["b"], 3), (["c"], 3)]),
        ("; (x\n(a ; (y\nb)\n(c)", [(["a", "b"], 2), (["c"], 4)]),
        ("(X[0,1])", [(["X", "[0,1]"], 1)]),
        ("(X [0, 1] Y[2])", [(["X", "[0, 1]", "Y", "[2]"], 1)]),
        ('(a "b c; (d" e)', [(["a", '"b c; (d"', "e"], 1)]),
        ("(<= -1.5e-3 X_0)", [(["<=", "-1.5e-3", "X_0"], 1)]),
        ("(v <2.0>)", [(["v", "<2.0>"], 1)]),
        ("(a)\r\n(b)", [(["a"], 1), (["b"], 2)]),
    ],
)
def test_texts_and_their_trees(text: str, trees: list) -> None:
    assert read(text) == trees


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", "line 1: 'a' stands outside"),
        ("(a)\nb", "line 2: 'b' stands outside"),
        (")", "line 1: ')' stands outside"),
        ("(a))", "line 1: ')' stands outside"),
        ("\n(a\n(b)", "line 2: a bracket is never closed"),
        ('(a "b)', "is no word"),
        ("(a]", "line 1: ']' is no word"),
        ("(a\n[1,2)", "line 2: '[1,2)' is no word"),
    ],
)
def test_texts_without_a_tree(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    assert said in str(caught.value)


def test_the_deepest_nesting() -> None:
    assert len(read("(" * DEEPEST + ")" * DEEPEST)) == 1
    with pytest.raises(InputError, match=f"more than {DEEPEST} deep"):
        read("(" * (DEEPEST + 1) + ")" * (DEEPEST + 1))


def test_words_have_their_places() -> None:
    text = " (ab ; c\n [1])"
    assert [(word, text[place : place + len(word)]) for word, place in words(text)] == [
        ("(", "("),
        ("ab", "ab"),
        ("[1]", "[1]"),
        (")", ")"),
    ]


def test_trees_are_written_again() -> None:
    text = "(a (b [0,1]) -2.0)"
    assert written(read(text)[0][0]) == text and written("a") == "a"


def test_files_plain_and_packed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "a.gz"
    plain.write_text("(a)")
    packed.write_bytes(gzip.compress(b"(a)"))
    assert text_of(plain, "text") == text_of(packed, "text") == "(a)"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00", "is not a text: it is damaged or not text"),
        (gzip.compress(b"(a)", mtime=0)[:-4], "is not a text: it is damaged or not text"),
        (b"\x1f\x8bnothing", "is not a text"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    ],
)
def test_files_that_are_none(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=said):
        text_of(tmp_path / "a", "text")


def test_files_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from certkd.exchange import expressions as module

    monkeypatch.setattr(module, "LARGEST", 1000)
    (tmp_path / "bomb").write_bytes(gzip.compress(b" " * 1001))
    with pytest.raises(InputError, match="more than 1000 bytes"):
        text_of(tmp_path / "bomb", "text")
