"""Exports: every value reads back as it is stored, and every counterexample still is one."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from certkd.certification import data_for
from certkd.config.settings import DataConfig
from certkd.data.selection import Selection
from certkd.data.sources import load as load_data
from certkd.exchange import rows as exchange
from certkd.exchange.counterexamples import export_counterexamples
from certkd.exchange.rows import export_rows, is_folder
from certkd.networks.builders import Classifier
from certkd.networks.checkpoint import Checkpoint, load
from tests.certifying import certify
from tests.cli import certkd
from tests.paths import REFERENCE
from verifiers.core.errors import InputError
from verifiers.core.status import Status
from verifiers.results.reader import read, read_images
from verifiers.results.rows import Certificates

SAMPLES = 40


@pytest.fixture(scope="module")
def student() -> Classifier:
    """The network that the file is about."""
    return load(REFERENCE / "kdiga.pt").model


def export(path: Path, out: Path | str, model: Classifier | None = None) -> list[str]:
    """As the command does."""
    if not is_folder(out):
        return export_rows(path, Path(out))
    assert model is not None
    return export_counterexamples(path, Path(out), model)


def certified(student: Classifier, place: Path, **settings: Any) -> Path:
    """A certificate file about the first digits."""
    config = DataConfig(name="digits")
    data = data_for(Checkpoint(student), load_data(config), config, selection=Selection(limit=SAMPLES))
    certify(student, data.images, data.labels, indices=data.indices, about=data.about, out=place, **settings)
    return place


@pytest.fixture(scope="module")
def attacked(student: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of pgd, ibp and crown."""
    return certified(student, tmp_path_factory.mktemp("a") / "a.h5", eps="1/8", options={"steps": 5, "restarts": 2})


@pytest.fixture(scope="module")
def smoothed(student: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of smoothing, which has arrays of ten and of fifty entries."""
    options = {"sigma": 0.25, "n": 200, "n0": 20}
    place = tmp_path_factory.mktemp("s") / "s.h5"
    return certified(student, place, eps="0.2", norm="l2", methods=["smoothing"], options=options)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of seven rows, so that there are several."""
    monkeypatch.setattr(exchange, "BLOCK", 7)


def refusal(path: Path, out: str | Path, model: Classifier | None = None) -> str:
    """The one line that refuses an export."""
    with pytest.raises(InputError) as caught:
        export(path, out, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stored(certificates: Certificates) -> list[dict[str, Any]]:
    """All rows of all methods, read straight from the columns."""
    return [
        {"method": name, **{key: rows.attributes[key] for key in ("guarantee", "norm", "eps")}}
        | {column: values[i].item() for column, values in rows.columns.items()}
        | {"status": Status(int(rows["status"][i])).name}
        for name, rows in certificates.methods.items()
        for i in range(len(rows))
    ]


def same(text: str, value: Any) -> bool:
    """Whether a cell reads back as the value, to the last bit."""
    if isinstance(value, float):
        return float(text) == value or (np.isnan(value) and text == "nan")
    return type(value)(text) == value


def test_csv_reads_back_exactly(attacked: Path, tmp_path: Path) -> None:
    assert export(attacked, tmp_path / "r.csv") == [f"{3 * SAMPLES} rows written to {tmp_path / 'r.csv'}"]
    with open(tmp_path / "r.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = stored(read(attacked))
    assert len(rows) == len(expected)
    for row, values in zip(rows, expected, strict=True):
        assert {name for name, cell in row.items() if cell != ""} == values.keys()
        assert all(same(row[name], value) for name, value in values.items()), (row, values)


def test_json_is_strict_and_reads_back_exactly(attacked: Path, tmp_path: Path) -> None:
    export(attacked, tmp_path / "r.json")

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    content = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"), parse_constant=refuse)
    certificates = read(attacked)
    expected = [
        {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in row.items()}
        for row in stored(certificates)
    ]
    assert content["rows"] == expected
    assert any(row["margin"] is None for row in expected), "no nan: nothing was tested"
    assert content["attributes"]["model_sha256"] == certificates.attributes["model_sha256"]
    assert content["attributes"]["eps_text"] == "1/8" and content["attributes"]["methods"] == ["pgd", "ibp", "crown"]
    assert content["methods"]["pgd"]["steps"] == 5 and content["methods"]["crown"]["engine"]


def test_arrays_are_lists_in_json_and_columns_in_csv(smoothed: Path, tmp_path: Path) -> None:
    lines = export(smoothed, tmp_path / "r.csv")
    assert lines[1:] == ["votes of smoothing is left out: 120 entries a row, CSV takes 20 (.json has it)"]
    export(smoothed, tmp_path / "r.json")
    arrays = {
        column: read_images(smoothed, "smoothing", column, range(SAMPLES))
        for column in ("votes", "teacher_votes", "same_votes")
    }
    assert arrays["votes"].any()
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    for column, values in arrays.items():
        assert [row[column] for row in rows] == values.tolist(), column
    with open(tmp_path / "r.csv", newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    entries = [[int(row[f"teacher_votes_{i}"]) for i in range(10)] for row in cells]
    assert entries == arrays["teacher_votes"].tolist() and not any(name.startswith("votes") for name in cells[0])


def test_entries_of_an_array_are_named_by_their_place(smoothed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(exchange, "WIDEST", 120)
    assert len(export(smoothed, tmp_path / "r.csv")) == 1
    votes = read_images(smoothed, "smoothing", "votes", range(SAMPLES))
    with open(tmp_path / "r.csv", newline="", encoding="utf-8") as file:
        for row, expected in zip(csv.DictReader(file), votes, strict=True):
            assert [[int(row[f"votes_{i}_{j}"]) for j in range(10)] for i in range(12)] == expected.tolist()


def test_npz_holds_the_stored_counterexamples(attacked: Path, tmp_path: Path) -> None:
    pgd = read(attacked)["pgd"]
    rows = np.flatnonzero(pgd["status"] == Status.FALSIFIED)
    assert len(rows) > 7, "too few counterexamples for two blocks"
    assert export(attacked, tmp_path / "r.npz") == [f"{len(rows)} counterexamples written to {tmp_path / 'r.npz'}"]
    with np.load(tmp_path / "r.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"image", "method", "index", "label", "predicted", "distance"}
        assert np.array_equal(arrays["image"], read_images(attacked, "pgd", "counterexample", rows))
        assert arrays["image"].dtype == np.float32 and set(arrays["method"].tolist()) == {"pgd"}
        for column in ("index", "label", "predicted", "distance"):
            assert np.array_equal(arrays[column], pgd[column][rows]), column


def parsed(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image and logits of a counterexample file, every character of it accounted for."""
    text = path.read_text()
    pairs = re.findall(r"\(([XY])_(\d+) (-?\d+(?:\.\d+)?)\)", text)
    assert re.sub(r"\s", "", text) == "(" + "".join(f"({v}_{i}{x})" for v, i, x in pairs) + ")"
    values = {v: [float(x) for w, _, x in pairs if w == v] for v in "XY"}
    assert [int(i) for _, i, _ in pairs] == [*range(len(values["X"])), *range(len(values["Y"]))]
    return np.array(values["X"]), np.array(values["Y"])


def test_a_folder_holds_counterexamples_that_hold(attacked: Path, tmp_path: Path, student: Classifier) -> None:
    folder, pgd = tmp_path / "new" / "found", read(attacked)["pgd"]
    rows = np.flatnonzero(pgd["status"] == Status.FALSIFIED)
    assert export(attacked, f"{folder}/", student) == [f"{len(rows)} counterexamples written to {folder}"]
    assert {p.name for p in folder.iterdir()} == {f"pgd-{i}.counterexample" for i in pgd["index"][rows]}
    images = read_images(attacked, "pgd", "counterexample", rows)
    for row, stored_image in zip(rows, images, strict=True):
        pixels, logits = parsed(folder / f"pgd-{pgd['index'][row]}.counterexample")
        image = pixels.astype(np.float32).reshape(stored_image.shape)
        assert np.array_equal(image, stored_image), "pixels do not read back"
        with torch.no_grad():
            outputs = student(torch.from_numpy(image)[None])[0].numpy()
        assert int(outputs.argmax()) != pgd["predicted"][row], "it is no counterexample"
        np.testing.assert_allclose(logits, outputs, atol=1e-4)
    assert [p.name for p in folder.parent.iterdir()] == ["found"], "temporary files are left"


def damaged(path: Path, place: Path, column: str, value: float) -> Path:
    """The same file with one value of the last falsified row of pgd changed."""
    place.write_bytes(path.read_bytes())
    row = int(np.flatnonzero(read(path)["pgd"]["status"] == Status.FALSIFIED)[-1])
    with h5py.File(place, "r+") as file:
        file["pgd"][column][row] = value
    return place


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("counterexample", 0.0, "it is not given another class"),
        ("counterexample", float("nan"), "it is not given another class"),
        ("distance", 0.126, "it is outside the ball"),
    ],
)
def test_a_counterexample_that_does_not_hold_is_refused(
    attacked: Path, tmp_path: Path, student: Classifier, column: str, value: float, words: str
) -> None:
    pgd = read(attacked)["pgd"]
    row = int(np.flatnonzero(pgd["status"] == Status.FALSIFIED)[-1])
    changed = damaged(attacked, tmp_path / "d.h5", column, value)
    if value == 0.0:  # a black image may be given any class: say that it is the clean one's
        with torch.no_grad(), h5py.File(changed, "r+") as file:
            file["pgd"]["predicted"][row] = int(student(torch.zeros(1, 1, 8, 8)).argmax())
    message = refusal(changed, tmp_path / "found", student)
    assert words in message and f"of pgd to sample {pgd['index'][row]} does not hold" in message, message
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5"], "half a folder is left"


def test_rows_without_an_answer_are_left_out(attacked: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.h5"
    part.write_bytes(attacked.read_bytes())
    with h5py.File(part, "r+") as file:
        file["crown/status"][3:] = 0
        file["pgd/status"][:] = 0
    lines = export(part, tmp_path / "r.csv")
    assert lines[0].startswith(f"{SAMPLES + 3} rows written")
    left_out = [f"{name}: {count} rows without an answer yet, left out" for name, count in (("pgd", 40), ("crown", 37))]
    assert lines[1:] == left_out
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 1 + SAMPLES + 3
    assert export(part, tmp_path / "r.npz")[0].startswith("0 counterexamples")
    with np.load(tmp_path / "r.npz") as arrays:
        assert arrays["image"].shape == (0, 1, 8, 8)


def test_what_cannot_be_exported_is_refused(
    attacked: Path, smoothed: Path, tmp_path: Path, student: Classifier
) -> None:
    assert "r.txt: name a file that ends in .csv, .json, .npz" in refusal(attacked, tmp_path / "r.txt")
    without = certkd("export", attacked, "--out", tmp_path / "found")
    assert without.code == 2 and "needs the network (--model)" in without.err
    assert "no certificate file at" in refusal(tmp_path / "none.h5", tmp_path / "r.csv")
    assert "is not a certificate file" in refusal(REFERENCE / "kdiga.pt", tmp_path / "r.csv")
    for out in (tmp_path / "r.npz", tmp_path / "found"):
        assert "s.h5 has no method that stores counterexamples, such as pgd: smoothing" in refusal(
            smoothed, out, student
        )
    assert "cannot write /dev/null/r.csv" in refusal(attacked, "/dev/null/r.csv")
    assert "cannot write /dev/null/found" in refusal(attacked, "/dev/null/found", student)
    other = load(REFERENCE / "kd.pt").model
    assert "a.h5 is about another network (sha256 " in refusal(attacked, tmp_path / "found", other)
    assert not list(tmp_path.iterdir()), "a refused export left something"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "full is not an empty folder" in refusal(attacked, tmp_path / "full", student)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["x"]


def test_an_old_export_stays_when_a_new_one_fails(attacked: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "r.csv"
    out.write_text("old")

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerow", broken)
    assert "cannot write" in refusal(attacked, out) and "No space left" in refusal(attacked, out)
    assert out.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["r.csv"]
