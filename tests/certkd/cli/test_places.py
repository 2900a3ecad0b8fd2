"""Every command that writes a file refuses to replace one unasked, and says how."""

from pathlib import Path

import numpy as np
import pytest

from certkd.cli.places import new_file
from tests.certkd.comparison.test_compare import file, proofs
from tests.cli import refused, succeeds
from verifiers.core.errors import InputError

WRITING = {
    "card a.h5 --out x.md": "--out",
    "card a.h5 --out x.json": "--out",
    "report a.h5 --out x.html": "--out",
    "figure curve a.h5 --out x.svg": "--out",
    "compare a.h5 b.h5 --plot x.svg": "--plot",
    "gate a.h5 --shipped b.h5 --require certified>=0.01 --alpha 0.9 --junit x.xml": "--junit",
    "gate a.h5 --shipped b.h5 --require certified>=0.01 --alpha 0.9 --summary x.md": "--summary",
    "export a.h5 --out x.csv": "--out",
    "export a.h5 --out x.json": "--out",
}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write two certificate files, and work in their folder."""
    monkeypatch.chdir(tmp_path)
    rows = {"crown": proofs(np.ones(30, bool), np.full(30, 0.2))}
    names = ("architecture", "certkd_version", "torch_version", "auto_lirpa_version", "device", "started", "command")
    about = {**dict.fromkeys(names, "x"), "arithmetic": "float32"}
    for name in "ab":
        file(tmp_path / f"{name}.h5", rows, model_sha256=name, **about)


@pytest.mark.parametrize(("command", "option"), WRITING.items())
def test_a_file_that_is_there_is_kept(command: str, option: str) -> None:
    (place,) = (Path(word) for word in command.split() if word.startswith("x."))
    place.write_text("mine")
    words = command.split()
    assert (
        refused(*words) == f"certkd: {place} is there already: add --overwrite, or name another place with {option}\n"
    )
    assert place.read_text() == "mine"
    succeeds(*words, "--overwrite")
    assert place.read_text() != "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.txt", "--out a.txt: give a name that ends in .png, .pdf or .svg"),
        ("a", "--out a: give a name that ends in .png, .pdf or .svg"),
        ("there.png", "there.png is there already: add --overwrite, or name another place with --out"),
    ],
)
def test_a_place_is_refused_in_one_line(name: str, message: str) -> None:
    Path("there.png").touch()
    with pytest.raises(InputError) as caught:
        new_file(name, (".png", ".pdf", ".svg"), overwrite=False)
    assert str(caught.value) == message


def test_a_place_may_be_new_or_replaced_and_its_ending_in_capitals() -> None:
    Path("there.PNG").touch()
    assert new_file("there.PNG", (".png",), overwrite=True) == Path("there.PNG")
    assert new_file("new.png", (".png",), overwrite=False) == Path("new.png")
