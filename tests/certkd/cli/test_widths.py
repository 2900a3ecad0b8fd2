"""What commands print at 80 and 120 columns and into a pipe: the answer first, no line too wide, no word cut."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from certkd.cli import main
from certkd.report.console import display
from certkd.report.tables import verification
from tests.certkd.comparison.test_compare import attack, file, proofs
from tests.certkd.report.test_contents import file as file_of
from verifiers.certify.audit.findings import Audit, Finding
from verifiers.methods.registry import BY_KIND

COUNT = 300


class Terminal(io.StringIO):
    """A terminal that keeps what is printed."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a teacher and of two students with two seeds each, a file of every method, and one of pairs."""
    place = tmp_path_factory.mktemp("widths")
    correct = np.arange(COUNT) % 10 != 9
    about = {"certkd_version": "1.0", "torch_version": "2.15.0+cu132", "auto_lirpa_version": "0.3", "device": "cpu"}
    about |= {
        "started": "2030-01-01T00:00:00+00:00",
        "architecture": 'certkd:cnn {"width": 16}',
        "arithmetic": "float32",
    }
    about |= {"command": f"certkd certify --model {'a-' * 8}net.pt --eps 0.1 --methods pgd,crown --data digits"}
    for i, name in enumerate(("teacher", "kd-seed0", "kd-seed1", "kdiga-seed0", "kdiga-seed1")):
        radius = np.where(np.arange(COUNT) < (0.6 - 0.05 * i) * COUNT, 0.2, 0.05) * correct
        content = {"pgd": attack(correct, np.zeros(COUNT, bool)), "crown": proofs(correct, radius)}
        file(place / f"{name}.h5", content, model_sha256=f"{i}" * 64, **about)
    file_of(place / "every.h5", *(kind for kind in BY_KIND if kind != "joint"))  # its rows need the programs
    file_of(place / "pair.h5", "match")
    return place


STUDENTS = "kd-seed0.h5 kd-seed1.h5 kdiga-seed0.h5 kdiga-seed1.h5"
GATE = "gate kd-seed0.h5 --shipped teacher.h5 --require certified>=0.5*shipped --require clean>=shipped-0.05"
#: A command, and how its output begins.
COMMANDS = [
    ("show teacher.h5", "At eps 0.1 (linf) 162 of 300 samples are correct and certified (54.0%, "),
    ("show every.h5", "At eps 0.1 (linf) 12 of 12 samples are correct and certified (100.0%, "),
    ("show pair.h5", "The student gives the teacher's class everywhere in the ball for all 12 samples;"),
    ("compare teacher.h5 kd-seed0.h5", "At eps 0.1 (linf) the student keeps 149 of the teacher's 162 certificates:"),
    (f"compare teacher.h5 {STUDENTS}", "At eps 0.1 (linf) kd certifies 47.3% of 300 samples, the most of 2 networks"),
    (GATE, "The gate passes: 2 of 2 requirements met"),
    ("card kd-seed0.h5", "---\nmodel-index:\n"),
    ("report teacher.h5 kd-seed0.h5 --overwrite", "written to report.html"),
    ("verify", "The file is wrong: 1 contradiction.\n"),
]
SLOW = ("report", "show every", f"compare teacher.h5 {STUDENTS}")
CASES = [pytest.param(*case, marks=pytest.mark.slow if case[0].startswith(SLOW) else ()) for case in COMMANDS]


def printed(command: str, monkeypatch: pytest.MonkeyPatch, columns: int | None) -> str:
    """What a command prints on a terminal, or into a pipe."""
    screen = io.StringIO() if columns is None else Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "argv", ["certkd", *command.split()])
    monkeypatch.setenv("COLUMNS", str(columns or 10))
    monkeypatch.setenv("TERM", "dumb")  # without colours
    if command == "verify":
        remark = "proved again by the other engine, at the radius that the file claims, and attacked within it"
        finding = Finding("local-linearity", 1000, 1000, 990, contradictions=["row 3"], remark=remark)
        display(*verification(Audit([finding], ["joint compares with a teacher that is not given"], ["versions"], 7)))
    else:
        with pytest.raises(SystemExit) as caught:
            main()
        assert not caught.value.code, command
    return screen.getvalue()


def words(text: str) -> set[str]:
    for line in "┏┓┗┛┡┩┢┪┳┻╇┴┃│━─└┘├┤┼╋":
        text = text.replace(line, " ")
    return set(text.split())


@pytest.mark.parametrize(("command", "start"), CASES, ids=[case[0][:40] for case in COMMANDS])
def test_a_terminal_gets_whole_words_within_its_width(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, start: str
) -> None:
    monkeypatch.chdir(folder)
    whole = printed(command, monkeypatch, None)
    assert whole.startswith(start), whole[:200]
    for columns in (80, 120):
        shown = printed(command, monkeypatch, columns)
        wide = [line for line in shown.splitlines() if len(line) > columns]
        assert not wide, f"wider than {columns}: {wide}"
        assert words(whole) <= words(shown), f"cut at {columns}: {words(whole) - words(shown)}"
        assert " ".join(shown.split()).startswith(" ".join(start.split())), "the answer is not first"


def test_a_pipe_gets_each_sentence_as_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    lines = printed("compare teacher.h5 kd-seed0.h5", monkeypatch, None).splitlines()
    assert lines[0].endswith("at least the teacher's.") and len(lines[0]) > 150
    shown = printed("show teacher.h5", monkeypatch, 80).splitlines()
    after = shown[next(i for i, line in enumerate(shown) if line.startswith("command")) + 1]
    assert after.startswith(" " * 11) and after[11] != " ", "a long fact does not go on below itself"


def test_a_word_that_is_wider_than_the_terminal_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    display(f"written to {'x' * 100}.h5")
    assert sys.stdout.getvalue() == f"written to\n{'x' * 100}.h5\n"  # type: ignore[attr-defined]
