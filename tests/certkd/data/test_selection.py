"""Choosing samples: the lists that people write, what is refused, and that a sample's certificate is its own."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certkd.config.settings import DataConfig
from certkd.data.selection import EVERYTHING, Selection, chosen, named
from certkd.data.sources import load
from tests.cli import certkd, refused_after_clean, succeeds
from tests.paths import REFERENCE
from verifiers.core.errors import InputError
from verifiers.results.reader import read, read_images

STUDENT = REFERENCE / "kdiga.pt"
SIZE = 60


def literal(text: str) -> list[int] | None:
    """What a list of indices means, number by number; None where it is none, or names one twice."""
    rows: list[int] = []
    for item in text.split(","):
        ends = [end.strip(" \t") for end in item.split("-")]
        if len(ends) > 2 or not all(end and set(end) <= set("0123456789") for end in ends):
            return None
        first, last = int(ends[0]), int(ends[-1])
        if first > last:
            return None
        while first <= last:
            if first in rows:
                return None
            rows.append(first)
            first += 1
    return rows


def refusal(selection: Selection | tuple[str | None, Path | None, int | None]) -> str:
    """The one line that refuses a choice of samples."""
    with pytest.raises(InputError) as caught:
        (selection if isinstance(selection, Selection) else chosen(*selection)).rows(SIZE, "the split")
    assert "\n" not in str(caught.value)
    return str(caught.value)


_ITEMS = st.one_of(
    st.integers(0, 70).map(str),
    st.tuples(st.integers(0, 70), st.integers(0, 9)).map(lambda pair: f"{pair[0]} - {sum(pair)}"),
    st.text("0123456789- ", max_size=4),
)


@given(st.lists(_ITEMS, min_size=1, max_size=6).map(",".join))
@example("3,17,40-44")
@example("0-59")
@example("5-9,0-4")
@example("7-7, 8")
@example("7-9,8")
@example("60")
@example("9-7")
@example("1-2-3")
@example("")
@example("٣")
def test_a_list_means_what_it_says_or_is_refused(text: str) -> None:
    expected = literal(text)
    if expected is None or max(expected) >= SIZE:
        refusal((text, None, None))
    else:
        assert chosen(text, None, None).rows(SIZE, "the split") == expected, "the order given is kept"


@given(st.lists(st.integers(0, 69), min_size=1, max_size=8))
def test_numbers_by_themselves_are_the_same_as_their_text(rows: list[int]) -> None:
    text = ",".join(map(str, rows))
    if literal(text) is None or max(rows) >= SIZE:
        refusal((text, None, None))
        with pytest.raises(InputError):
            named(rows, "x").rows(SIZE, "the split")
    else:
        assert named(rows, "x").rows(SIZE, "the split") == rows


def test_all_the_first_so_many_and_more_than_there_are() -> None:
    assert EVERYTHING.rows(4, "it") == [0, 1, 2, 3] == chosen(None, None, 9).rows(4, "it")
    assert chosen(None, None, 3).rows(4, "it") == [0, 1, 2]


def test_a_range_that_no_memory_holds_is_refused_at_once() -> None:
    assert "no sample 60" in refusal(("0-999999999999999", None, None))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3,x", "--indices: 'x' in '3,x' is not an index or a range like 40-99"),
        ("3,,4", "--indices: '' in '3,,4' is not"),
        ("-3", "'-3' is not"),
        ("", "--indices: '' is not"),
        ("1.5", "'1.5' is not"),
        ("9-3", "the range 9-3 runs backwards: write 3-9"),
        ("3,17,1-5", "--indices names sample 3 twice"),
        ("3,60", "--indices: no sample 60: the split has 60, numbered 0 to 59"),
        ("50-70", "no sample 60"),
        ("x" * 5000, "..."),
    ],
)
def test_a_wrong_list_is_repeated(text: str, words: str) -> None:
    message = refusal((text, None, None))
    assert words in message and len(message) < 250, message


def test_a_file_of_indices(tmp_path: Path) -> None:
    place = tmp_path / "lost.txt"
    place.write_text("\ufeff# lost at eps\n3, 17,\n\n  40-42  # three\r\n5\n", encoding="utf-8")
    assert chosen(None, place, None).rows(SIZE, "the split") == [3, 17, 40, 41, 42, 5]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"3\n4 5\n", "lost.txt line 2: '4 5' is not"),
        (b"# x\n\n7-\n", "lost.txt line 3: '7-' is not"),
        (b"3\n4\n3\n", "lost.txt names sample 3 twice"),
        (b"# none\n", "lost.txt names no sample"),
        (b"", "lost.txt names no sample"),
        (b"99\n", "lost.txt: no sample 99: the split has 60"),
        (b"\xff\xfe3", "lost.txt: it is not UTF-8 text"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "lost.txt").write_bytes(content)
    assert words in refusal((None, tmp_path / "lost.txt", None))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert f"no such file: {tmp_path / 'none'}" in refusal((None, tmp_path / "none", None))
    assert f"cannot read {tmp_path}: it is a folder, not a file" in refusal((None, tmp_path, None))


@pytest.mark.parametrize(
    "given", [("1", Path("x"), None), ("1", None, 3), (None, Path("x"), 3)], ids=["both", "indices", "file"]
)
def test_two_ways_to_choose_are_one_too_many(given: tuple[str | None, Path | None, int | None]) -> None:
    assert "both select samples: give one of them" in refusal(given)


# the command


ATTACKED = ("--model", STUDENT, "--eps", "0.12", "--methods", "pgd,crown", "--option", "steps=5")
SMOOTHED = ("--model", STUDENT, "--norm", "l2", "--eps", "0.2", "--methods", "smoothing", "--sigma", "0.2")
FEW = ("--n", "200", "--n0", "20", "--full")
CHOSEN = "40-44,3,17"
ROWS = [40, 41, 42, 43, 44, 3, 17]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first sixty digits and a few of them, certified by the command."""
    folder = tmp_path_factory.mktemp("selection")
    for kind, arguments in (("attacked", ATTACKED), ("smoothed", (*SMOOTHED, *FEW))):
        succeeds("certify", *arguments, "--limit", str(SIZE), "--out", folder / f"{kind}-all.h5")
        succeeds("certify", *arguments, "--indices", CHOSEN, "--out", folder / f"{kind}.h5")
    return {path.stem: path for path in folder.glob("*.h5")}


@pytest.mark.slow
def test_rows_stand_in_the_order_given_under_the_index_of_the_data_set(files: dict[str, Path]) -> None:
    split = load(DataConfig(name="digits")).splits["test"]
    rows = read(files["attacked"])["crown"]
    assert rows["index"].tolist() == split.indices[ROWS].tolist()
    assert rows["label"].tolist() == split.labels[ROWS].tolist()


@pytest.mark.slow
def test_a_chosen_sample_has_the_certificate_that_it_has_among_all(files: dict[str, Path]) -> None:
    few, whole = read(files["attacked"]), read(files["attacked-all"])
    np.testing.assert_allclose(few["crown"]["radius"], whole["crown"]["radius"][ROWS], rtol=1e-6)
    for column in ("status", "predicted", "correct"):
        assert few["pgd"][column].tolist() == whole["pgd"][column][ROWS].tolist(), column
    np.testing.assert_allclose(few["pgd"]["margin"], whole["pgd"]["margin"][ROWS], atol=1e-4)
    assert np.isfinite(few["pgd"]["distance"]).any(), "no counterexample: nothing random was compared"


@pytest.mark.slow
def test_a_chosen_sample_sees_the_noise_that_it_sees_among_all(files: dict[str, Path]) -> None:
    few, whole = (read(files[name])["smoothing"] for name in ("smoothed", "smoothed-all"))
    assert few["radius"].tolist() == whole["radius"][ROWS].tolist()
    votes = read_images(files["smoothed"], "smoothing", "votes", range(len(ROWS)))
    assert np.array_equal(votes, read_images(files["smoothed-all"], "smoothing", "votes", ROWS))
    assert len(np.unique(votes, axis=0)) > 1


@pytest.mark.slow
def test_the_same_selection_goes_on_with_an_unfinished_file(files: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "c.h5"
    place.write_bytes(files["attacked"].read_bytes())
    with h5py.File(place, "r+") as file:
        file["crown/status"][2:5] = 0
        file["crown/radius"][2:5] = np.nan
    listed = tmp_path / "list.txt"
    listed.write_text("40-44\n3,17\n")
    result = certkd("certify", *ATTACKED, "--indices-file", listed, "--out", place)
    assert result.code == 0 and "crown (4 rows already done)" in result.err and "pgd" not in result.err, result.err
    before, after = read(files["attacked"])["crown"], read(place)["crown"]
    np.testing.assert_allclose(after["radius"], before["radius"], rtol=1e-6)
    kept = [0, 1, 5, 6]
    assert after["seconds"][kept].tolist() == before["seconds"][kept].tolist(), "finished rows were worked on again"


@pytest.mark.parametrize("other", ["40-45,3", "40-44,17,9", "0-6"])
@pytest.mark.thin(2)
def test_another_selection_on_the_same_file_is_refused(files: dict[str, Path], tmp_path: Path, other: str) -> None:
    place = tmp_path / "c.h5"
    place.write_bytes(files["attacked"].read_bytes())
    message = refused_after_clean("certify", *ATTACKED, "--indices", other, "--out", place)
    assert "c.h5 holds other samples (7 of them, now " in message and "another output file" in message, message
    assert place.read_bytes() == files["attacked"].read_bytes(), "the old certificates were touched"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--indices", "360"], "--indices: no sample 360: the test split of digits has 360, numbered 0 to 359"),
        (["--indices", "180", "--split", "validation"], "the validation split of digits has 180,"),
        (["--indices", "3", "--limit", "3"], "--indices and --limit both"),
        (["--indices-file", "no.txt"], "no such file: no.txt"),
    ],
)
def test_a_wrong_choice_is_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    message = refused_after_clean("certify", *ATTACKED, *arguments, "--out", tmp_path / "c.h5")
    assert words in message, message
    assert not (tmp_path / "c.h5").exists()
