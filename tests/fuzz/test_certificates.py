"""Damaged certificate files: read, shown, compared, cited, exported and resumed."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from certkd.comparison.compare import compare
from certkd.exchange.rows import export_rows
from certkd.report import tables
from certkd.report.citations import citations
from tests.certificate_files import write_file
from tests.fuzz.mutate import Mutation, mutants
from tests.fuzz.trial import Sandbox
from verifiers.core.errors import loading
from verifiers.core.status import Status
from verifiers.results.reader import read
from verifiers.results.schema import TABLES, put_attributes

FACTS = {
    **dict.fromkeys(("model_sha256", "structure_sha256", "joint_teacher_sha256", "teacher_sha256"), "ab" * 32),
    **dict.fromkeys(("certkd_version", "torch_version", "auto_lirpa_version", "numpy_version"), "1.0"),
    **{
        "architecture": "certkd:mlp",
        "device": "cpu",
        "command": "certkd certify",
        "started": "today",
        "data": "digits",
    },
}


def rows(method: str, random_: np.random.Generator, count: int = 12) -> dict[str, np.ndarray]:
    """Rows of a method with values in all of its columns of scalars."""
    own = {
        column.name: (random_.random(count) * 3).astype(column.dtype) for column in TABLES[method] if not column.axes
    }
    right = random_.random(count) < 0.8
    status = np.where(right, Status.NOT_CERTIFIED if method == "pgd" else Status.CERTIFIED, Status.MISCLASSIFIED)
    radius = np.where(status == Status.CERTIFIED, random_.random(count) * 0.2, 0.0)
    return {
        **own,
        "index": np.arange(count),
        "label": np.arange(count) % 2,
        "predicted": np.where(right, np.arange(count) % 2, 1 - np.arange(count) % 2),
        "correct": right.astype("u1"),
        "radius": radius,
        "margin": random_.random(count),
        "certified": (radius >= 0.1).astype("u1"),
        "seconds": random_.random(count),
        "status": status.astype("u1"),
    }


METHODS = (
    ("pgd", "ibp", "crown"),
    ("crown", "transfer", "diagnostics"),
    ("pgd", "match"),
    ("complete", "lipschitz", "local-linearity"),
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Certificate files of several methods."""
    folder, made = tmp_path_factory.mktemp("valid"), []
    for number, methods in enumerate(METHODS):
        content = {method: rows(method, np.random.default_rng(number)) for method in methods}
        write_file(folder / f"{number}.h5", content, eps="0.1", **FACTS)
        made.append((folder / f"{number}.h5").read_bytes())
    return made


def edited(content: bytes, change: Callable[[h5py.File], Any]) -> bytes:
    """The file after a change by HDF5 itself; as it is where the change is not possible any more."""
    path = Path("edited.h5")
    path.write_bytes(content)
    try:
        with h5py.File(path, "r+") as file:
            change(file)
    except Exception:  # noqa: BLE001 - an earlier mutation broke it
        return content
    return path.read_bytes()


def groups(file: h5py.File) -> list[h5py.Group]:
    """The file's groups: an earlier mutation may have put a column of a billion rows, too many to list, beside them."""
    return [member for member in file.values() if isinstance(member, h5py.Group)]


def value(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Another value in a column."""

    def change(file: h5py.File) -> None:
        group = chance.choice(groups(file))
        column = group[chance.choice(list(group))]
        if column.ndim == 1:
            column[chance.randrange(len(column))] = chance.choice((0, -1, 1, 7, 255, 2**31, np.nan, np.inf, -1e300))

    return edited(content, change)


def attribute(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Another attribute, or one less."""

    def change(file: h5py.File) -> None:
        member = chance.choice([file, *file.values()])
        name = chance.choice(list(member.attrs))
        if chance.random() < 0.3:
            del member.attrs[name]
        else:
            words = ("", "x", "\x1b[2J", "{}", "[]", "1e999", "crown", "nan", "l2", "A" * 5000, json.dumps({"a": [1]}))
            put_attributes(member, {name: chance.choice((*words, 0, -1, 2**60, 0.5, float("nan"), True))})

    return edited(content, change)


def member(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """A column that is gone, renamed, linked or of another shape or type."""

    def change(file: h5py.File) -> None:
        group = chance.choice([file, *groups(file)])
        name = chance.choice(list(group))
        kind = chance.randrange(6)
        old = group[name]
        shape = getattr(old, "shape", (12,))
        del group[name]
        if kind == 0:
            group[name] = h5py.ExternalLink("../outside/canary.txt", "/x")
        elif kind == 1:
            group.create_dataset(name, shape, "u1", external=[("../outside/canary.txt", 0, int(np.prod(shape)))])
        elif kind == 2:
            group[name] = h5py.SoftLink(f"/{name}")
        elif kind == 3:
            group[f"{name}x"] = old
        elif kind == 4:
            group.create_dataset(
                name, (chance.choice((0, 1, 11, 10**9)),), chance.choice(("f8", "u1", "S3")), chunks=(1,)
            )

    return edited(content, change)


STRUCTURE: tuple[Mutation, ...] = (value, attribute, member)


def use(path: Path, other: Path) -> None:
    """What the commands do with a file; errors of the rows end at one boundary, as in the commands."""
    certificates = read(path)
    with loading(path, "a certificate file"):
        [*tables.contents(certificates), *tables.summaries(certificates), tables.facts(certificates)]
        citations(certificates)
        compare(read(other), certificates)


@pytest.mark.parametrize(("seed", "count"), [(0, 60), pytest.param(1, 300, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_damaged_certificate_files(sandbox: Sandbox, valid: list[bytes], seed: int, count: int) -> None:
    path, other = Path("a.h5"), Path("other.h5")
    other.write_bytes(valid[0])
    refused = 0
    for name, content in mutants(valid, count, seed, STRUCTURE):
        path.write_bytes(content)
        refused += sandbox.call(name, lambda: use(path, other)) is not None
        assert path.read_bytes() == content, f"{name}: reading changed the file"
    assert refused > count / 3, "most damaged files are refused"


@pytest.mark.parametrize(("seed", "count"), [(10, 14), pytest.param(11, 100, marks=pytest.mark.slow)])
def test_damaged_certificate_files_by_command(sandbox: Sandbox, valid: list[bytes], seed: int, count: int) -> None:
    Path("other.h5").write_bytes(valid[0])
    commands: tuple[tuple[str, ...], ...] = (
        *(("show", "a.h5"), ("show", "a.h5", "--csv", "crown"), ("compare", "other.h5", "a.h5"), ("cite", "a.h5")),
        *(("export", "a.h5", "--out", "o.csv"), ("export", "a.h5", "--out", "o.json"), ("compare", "a.h5", "a.h5")),
    )
    refused = 0
    for number, (name, content) in enumerate(mutants(valid, count, seed, STRUCTURE)):
        Path("a.h5").write_bytes(content)
        refused += sandbox.command(name, *commands[number % len(commands)]).code == 2
    assert refused > count / 3, "most damaged files are refused"


def test_a_valid_file_passes_all_of_it(sandbox: Sandbox, valid: list[bytes]) -> None:
    Path("other.h5").write_bytes(valid[0])
    for content in valid:
        Path("a.h5").write_bytes(content)
        certificates = read("a.h5")
        assert tables.contents(certificates) and tables.facts(certificates).rows and citations(certificates)
        assert export_rows(Path("a.h5"), Path("o.json"))[0].startswith(f"{12 * len(certificates.methods)} rows")
