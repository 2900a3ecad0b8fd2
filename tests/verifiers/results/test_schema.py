"""A certificate file from a stranger: what is not as the writer makes it is refused before it is read or written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.verifiers.results.test_store import FACTS, IDENTITY, WAVE, open_file, write_all
from verifiers.core.errors import InputError
from verifiers.results import reader
from verifiers.results.schema import ATTRIBUTES, MEMBERS, TEXT_BYTES, put_attributes, text
from verifiers.results.writer import CertificateFile

Change = Callable[[h5py.File], Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "good.h5"
    write_all(path)
    return path


def changed(good: Path, folder: Path, change: Change) -> Path:
    path = Path(shutil.copy(good, folder / "a.h5"))
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def drop(place: str) -> Change:
    return lambda file: file.__delitem__(place)


def put(place: str, *arguments: Any, **more: Any) -> Change:
    """Another data set in the place of a column."""

    def change(file: h5py.File) -> None:
        if place in file:
            del file[place]
        file.create_dataset(place, *arguments, **more)

    return change


def link(place: str, target: Any) -> Change:
    def change(file: h5py.File) -> None:
        if place in file:
            del file[place]
        file[place] = target(file) if callable(target) else target

    return change


def attribute(place: str, name: str, value: Any, **more: Any) -> Change:
    return lambda file: file[place].attrs.create(name, value, **more)


def plain(place: str, name: str, value: Any) -> Change:
    return lambda file: put_attributes(file[place], {name: value})


def without(place: str, name: str) -> Change:
    return lambda file: file[place].attrs.__delitem__(name)


def values(place: str, row: int, value: Any) -> Change:
    return lambda file: file[place].__setitem__(row, value)


def many(file: h5py.File) -> None:
    for number in range(MEMBERS + 1):
        file["wave"].create_dataset(f"c{number}", data=np.zeros(40))


def many_attributes(file: h5py.File) -> None:
    for number in range(ATTRIBUTES + 1):
        file.attrs[f"a{number}"] = number


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((40,), "f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (40,))
    del file["wave/radius"]
    file["wave"].create_virtual_dataset("radius", layout)


def compact(file: h5py.File) -> None:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.COMPACT)
    del file["wave/radius"]
    space = h5py.h5s.create_simple((40,))
    h5py.h5d.create(file["wave"].id, b"radius", h5py.h5t.NATIVE_DOUBLE, space, dcpl=creation)


TYPE = np.dtype([("a", "f8"), ("b", "i4")])
STRANGE: dict[str, tuple[Change, str]] = {
    # other files, other places
    "external": (
        put("wave/label", (40,), "i8", external=[("/etc/passwd", 0, 320)]),
        "wave: label is not stored in one",
    ),
    "external-image": (
        put("wave/image", (40, 50), "f4", external=[("v", 0, 8000)]),
        "wave: image is not stored in one",
    ),
    "external-link": (link("wave/radius", h5py.ExternalLink("other.h5", "/x")), "'radius' is not a column of the file"),
    "external-group": (link("wave", h5py.ExternalLink("other.h5", "/x")), "'wave' is not a group of the file"),
    "soft-link": (link("wave/radius", h5py.SoftLink("/wave/margin")), "'radius' is not a column of the file"),
    "soft-loop": (link("wave/z", h5py.SoftLink("/wave/z")), "'z' is not a column of the file itself"),
    "hard-loop": (link("wave/z", lambda file: file["/"]), "'z' is not a column of the file itself"),
    "one-column-twice": (link("wave/margin", lambda file: file["wave/radius"]), "shares its place in the file"),
    "virtual": (virtual, "wave: radius is not stored in one piece inside the file"),
    "compact": (compact, "wave: radius is not stored in one piece"),
    "chunks": (put("wave/radius", (40,), "f8", chunks=(10,)), "wave: radius is not stored in one piece"),
    "filters": (put("wave/radius", (40,), "f8", compression="gzip"), "wave: radius is not stored in one piece"),
    "huge": (put("wave/margin", (5 * 10**9,), "f8", chunks=(10**6,)), "wave: margin is not stored in one piece"),
    # shapes and types
    "late": (put("wave/radius", (40,), "f8"), "wave: radius has no place in the file"),
    "short": (put("wave/radius", data=np.zeros(39)), r"wave: radius has shape \(39,\) for 40 samples"),
    "single": (put("wave/radius", data=1.0), r"wave: radius has shape \(\) for 40 samples"),
    "empty": (put("wave/radius", data=h5py.Empty("f8")), "wave: radius"),
    "wide": (put("wave/radius", data=np.zeros((40, 2))), r"wave: radius has shape \(40, 2\)"),
    "strings": (put("wave/status", data=np.array([b"a"] * 40)), "wave: status does not hold uint8"),
    "objects": (put("wave/radius", (40,), h5py.string_dtype()), "wave: radius does not hold float64"),
    "compound": (put("wave/radius", (40,), TYPE), "wave: radius does not hold float64"),
    "big-endian": (put("wave/radius", data=np.zeros(40, ">f8")), "wave: radius does not hold float64"),
    "float32": (put("wave/radius", data=np.zeros(40, "f4")), "wave: radius does not hold float64"),
    "missing": (drop("wave/status"), "wave lacks the column 'status'"),
    "no-own": (drop("wave/votes"), "wave lacks the column 'votes'"),
    "unknown": (put("wave/more", data=np.zeros(40)), "wave has an unknown column 'more'"),
    "many": (many, "members, more than"),
    "group-in-group": (lambda file: file.create_group("wave/more"), "'more' is not a column of the file itself"),
    "another-group": (lambda file: file.create_group("more"), "has the groups"),
    "root-column": (put("z", data=np.zeros(40)), "'z' is not a group of the file itself"),
    "named-type": (link("z", np.dtype("f8")), "'z' is not a group of the file itself"),
    # attributes
    "open-text": (attribute("/", "seed", "x" * 100), "the attribute 'seed' is neither a number nor a text of fixed"),
    "reference": (lambda file: file.attrs.create("r", file["wave"].ref, dtype=h5py.ref_dtype), "the attribute 'r'"),
    "array": (attribute("/", "seed", np.zeros(100)), "the attribute 'seed' is neither"),
    "nothing": (attribute("/", "seed", h5py.Empty("i8")), "the attribute 'seed' is neither"),
    "seed-text": (plain("/", "seed", "x"), "the attribute 'seed' is 'x', not int"),
    "samples-float": (plain("/", "samples", 40.0), "the attribute 'samples' is 40.0, not int"),
    "many-attributes": (many_attributes, "attributes, more than"),
    "column-attribute": (attribute("wave/radius", "units", np.zeros(9)), "wave: radius: the attribute 'units'"),
    "methods-number": (plain("/", "methods", 5), "methods is not a list of names"),
    "methods-open": (attribute("/", "methods", ["wave"]), "the attribute 'methods' is neither"),
    "methods-other": (attribute("/", "methods", np.array([b"crown"])), "has the groups"),
    "methods-control": (attribute("/", "methods", np.array([b"wave\x1b[2J"])), "methods is not a list of names"),
    "no-methods": (without("/", "methods"), "does not name its methods"),
    "no-settings": (without("/", "settings"), "lacks the attribute 'settings'"),
    "settings-text": (plain("/", "settings", "x"), "settings holds no JSON object, but 'x'"),
    "settings-list": (plain("/", "settings", "[1]"), "settings holds no JSON object"),
    "settings-deep": (plain("/", "settings", "[" * 20000), "settings holds no JSON object"),
    "settings-lack": (plain("/", "settings", "{}"), "settings lacks an entry for 'wave'"),
    "notes": (attribute("wave", "notes", np.bytes_(b"x" * 10)), "notes holds no JSON object"),
    "no-notes": (without("wave", "notes"), "lacks the attribute 'notes'"),
    "norm": (plain("wave", "norm", "l7"), "unknown norm 'l7'"),
    "eps": (plain("wave", "eps", 0.5), "eps is 0.5, its text '2/255'"),
    "eps-text": (plain("wave", "eps_text", "many"), "'many' is not a number"),
    "eps-nan": (plain("wave", "eps", float("nan")), "eps is nan, its text '2/255'"),
    "no-claim": (without("wave", "claim"), "lacks the attribute 'claim'"),
    "bytes": (attribute("wave", "claim", np.bytes_(b"\xff\xfe")), "is not a certificate file"),
    # values
    "status": (values("wave/status", 3, 11), "row 3 has the status 11, which no certificate has"),
    "nan": (values("wave/radius", 3, np.nan), "row 3 has the radius nan"),
    "negative": (values("wave/radius", 3, -1e-9), "row 3 has the radius -1e-09"),
    "absurd": (values("wave/radius", 3, 1.01), "row 3 has the radius 1.01"),
    "truth": (values("wave/certified", 3, 2), "row 3 has the certified 2"),
    "index": (values("wave/index", 3, -2), "row 3 has the index -2"),
    "time": (values("wave/seconds", 3, np.nan), "row 3 has the seconds nan"),
    "past": (values("wave/seconds", 3, -1.0), "row 3 has the seconds -1.0"),
}


@pytest.mark.parametrize(("change", "words"), STRANGE.values(), ids=STRANGE)
@pytest.mark.thin(2)
def test_a_strange_member_is_refused_and_nothing_is_written(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with h5py.File("other.h5", "w") as other:
        other["x"] = np.arange(40.0)
    Path("v").write_bytes(b"v" * 8000)
    path = changed(good, tmp_path, change)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    known = {"wave": WAVE.columns}
    for use in (lambda: read_known(path, known), lambda: open_file(path)):
        with pytest.raises(InputError, match=words) as refusal:
            use()
        assert str(path) in str(refusal.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def read_known(path: Path, tables: dict[str, Any]) -> object:
    with reader.opened(path, tables) as file:
        return reader.contents(file, path)


def test_a_file_as_it_is_written_passes(good: Path) -> None:
    assert len(read_known(good, {"wave": WAVE.columns})["wave"]) == 40  # type: ignore[index]


def test_columns_of_an_unknown_method_are_numbers_of_the_right_length(good: Path, tmp_path: Path) -> None:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    path = changed(good, tmp_path, put("wave/more", data=np.zeros(40, "i8")))
    assert reader.read(path)["wave"]["more"].tolist() == [0] * 40
    with pytest.raises(InputError, match="wave: more does not hold"):
        reader.read(changed(good, tmp_path, put("wave/more", data=np.array([b"a"] * 40))))


def test_a_file_that_is_cut_off_or_a_hole_is_refused(good: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(good, tmp_path / "a.h5"))
    for length in range(0, path.stat().st_size, 1500):
        shutil.copy(good, path)
        os.truncate(path, length)
        with pytest.raises(InputError, match="not a certificate file"):
            reader.read(path)


def test_more_rows_than_memory_should_hold_are_refused(tmp_path: Path) -> None:
    samples = 20_000_000
    with pytest.raises(InputError, match="has more rows than a certificate file takes"):
        CertificateFile(
            tmp_path / "a.h5",
            identity={**IDENTITY, "samples": samples},
            facts=FACTS,
            samples=samples,
            sizes={"image": (1,)},
            methods=(WAVE,),
        )


def test_the_box_bounds_a_radius_by_the_norm_and_the_pixels(tmp_path: Path, good: Path) -> None:
    for norm, largest in (("l2", 50**0.5), ("l1", 50.0)):

        def change(file: h5py.File, norm: str = norm, largest: float = largest) -> None:
            put_attributes(file["wave"], {"norm": norm})
            file["wave/radius"][3] = largest

        path = changed(good, tmp_path, change)
        assert reader.read(path)["wave"].radius[3] == largest
        with h5py.File(path, "r+") as file:
            file["wave/radius"][3] = largest * 1.001
        with pytest.raises(InputError, match="row 3 has the radius"):
            reader.read(path)


def test_texts_have_a_fixed_length_and_come_back(tmp_path: Path) -> None:
    words = {"a": "", "b": "é𝕏", "c": "x" * TEXT_BYTES, "d": "\udcff", "e": [1, "x"], "f": True, "g": 3, "h": 0.5}
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        put_attributes(file, words)
        assert all(not h5py.check_vlen_dtype(file.attrs.get_id(name).dtype) for name in words)
        found = reader.attributes_of(file, "a.h5")
    assert found == {**words, "d": "\\udcff", "e": json.dumps([1, "x"])}
    with pytest.raises(InputError, match=r"'xxx.* is too long for a certificate file"):
        text("x" * (TEXT_BYTES + 1))
