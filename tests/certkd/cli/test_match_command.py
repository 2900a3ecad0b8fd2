"""``certkd match``: the table, the sentence, the sheet of points, and what it refuses."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint, load, save
from tests.cli import certkd, refused, refused_after_clean, succeeds
from verifiers.core.status import Status
from verifiers.core.table import counted
from verifiers.results.reader import read
from verifiers.results.rows import MethodRows

EPS, COUNT = "0.02", 12
QUICK = ("--time-limit", "5", "--limit", str(COUNT))


def network(shape: tuple[int, ...], classes: int = 3, noise: float = 0.0) -> torch.nn.Module:
    """A network with fixed weights, and noise on them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build(ModelSpec(name="certkd:mlp", options={"hidden": [6]}, classes=classes, shape=shape)).eval()
        with torch.no_grad():
            for weight in made.parameters():
                weight.mul_(2.0).add_(noise * torch.randn(weight.shape))
    return made


def write_pair(folder: Path, images: int) -> Path:
    """Write a student, a teacher and a few images for both."""
    x, y = np.random.default_rng(0).random((images, 4, 4)).astype("f4"), np.arange(images) % 3
    np.savez(folder / "data.npz", x_test=x, y_test=y)
    for name, noise in (("student", 0.0), ("teacher", 0.1)):
        save(Checkpoint(network((1, 4, 4), noise=noise), data={"name": "data.npz", "seed": 0}), folder / f"{name}.pt")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Students and teachers of small images and of vectors, with their data."""
    folder = tmp_path_factory.mktemp("pairs")
    random = np.random.default_rng(0)
    for name, shape in (("images", (1, 4, 4)), ("vectors", (5,))):
        x, y = random.random((COUNT, *shape)).astype("f4"), np.arange(COUNT) % 3
        np.savez(folder / f"{name}.npz", x_test=x[:, 0] if len(shape) == 3 else x, y_test=y)
        data = {"name": str(folder / f"{name}.npz"), "seed": 0}
        for role, noise in (("student", 0.0), ("teacher", 0.15 if name == "images" else 0.5)):
            save(Checkpoint(network(shape, noise=noise), data=data), folder / f"{name}-{role}.pt")
    save(Checkpoint(network((1, 4, 4), classes=4), data={"name": str(folder / "images.npz")}), folder / "four.pt")
    return folder


@dataclass(frozen=True)
class Run:
    """What a command printed and wrote."""

    out: str
    rows: MethodRows
    path: Path

    @property
    def sheet(self) -> Path:
        return self.path.with_name(f"{self.path.stem}-points.png")


@pytest.fixture(scope="module")
def images(places: Path) -> Run:
    """The command about images."""
    path = places / "images.h5"
    return Run(succeeds(*command(places, "images"), "--out", path), read(path)["match"], path)


def command(places: Path, kind: str, *more: str) -> tuple[str | Path, ...]:
    pair = "--student", places / f"{kind}-student.pt", "--teacher", places / f"{kind}-teacher.pt"
    usual = ("--eps", EPS, *QUICK)
    kept = [word for pair in zip(usual[::2], usual[1::2], strict=True) if pair[0] not in more for word in pair]
    return "match", *pair, "--data", places / f"{kind}.npz", *kept, *more


def test_the_screen_is_a_table_a_sentence_and_the_places(images: Run) -> None:
    proved, refuted = (images.rows.count(status) for status in (Status.CERTIFIED, Status.FALSIFIED))
    assert proved and refuted and (images.rows["correct"] == 0).any(), "the pair tests nothing"
    lines = images.out.splitlines()
    assert lines[0].startswith("The student gives the teacher's class everywhere in the ball for ")
    assert lines[1] == f"Student and teacher on the linf ball of eps {EPS}, {COUNT} samples"
    assert any(line.split()[1:8:2] == ["same-class", str(proved), str(refuted), "0"] for line in lines if "│" in line)
    assert f"everywhere in the ball for {proved} of {COUNT} samples; on {refuted} it does not" in images.out
    assert f"written to {images.path}" in lines and lines[-1] == f"points drawn in {images.sheet}"
    assert "accuracy" not in images.out and "certified" not in images.out


@pytest.mark.parametrize(
    ("share", "code", "words"),
    [
        (0.01, 0, "The gate passes: 1 of 1 requirement met (each answer is wrong with probability 0.05 at most)."),
        (0.999, 1, "The gate fails: 1 of 1 requirement failed"),
        (0.5, 2, "The gate is not decided: 1 of 1 requirement needs more samples"),
    ],
)
def test_a_requirement_sets_the_exit_code(places: Path, images: Run, share: float, code: int, words: str) -> None:
    """The finished file answers; a sample counts if it is proved, whatever its own label."""
    proved = images.rows.count(Status.CERTIFIED)
    result = certkd(*command(places, "images"), "--out", images.path, "--require", f"same-class>={share}")
    assert result.code == code and words in result.out, result
    assert f": same-class>={share} (same-class {proved / COUNT:.1%}, n = {COUNT}" in result.out
    assert (f"certkd: {COUNT} samples cannot decide at alpha 0.05" in result.err) == (code == 2)


@pytest.mark.slow
def test_requirements_are_about_the_properties_asked(places: Path, tmp_path: Path) -> None:
    asked = "--property", "close=50", "--property", "transfer", "--out", tmp_path / "a.h5"
    given = *asked, "--require", "close>=0.5", "--require", "transfer>=0.01"
    document = json.loads(succeeds(*command(places, "images"), *given, "--json"))
    assert document["verdict"] == "met" and document["exit_code"] == 0
    proved = [file["methods"]["match"]["proved"] for file in document["files"]]
    assert proved[0] == COUNT, "logits of the pair differ by more than 50"
    assert [(one["requirement"], one["both"]) for one in document["decisions"]] == [
        ("close>=0.5", proved[0]),
        ("transfer>=0.01", proved[1]),
    ]


def test_the_sheet_has_a_row_for_each_point(images: Run) -> None:
    refuted = images.rows.count(Status.FALSIFIED)
    with Image.open(images.sheet) as picture:
        picture.load()
        width, height = picture.size
    assert 1000 < width < 1500 and height > 200 * refuted


def test_vectors_have_no_sheet(places: Path) -> None:
    path = places / "vectors.h5"
    out = succeeds(*command(places, "vectors", "--eps", "0.3"), "--out", path)
    assert read(path)["match"].count(Status.FALSIFIED), "nothing would be drawn anyway"
    assert "points drawn" not in out and not list(places.glob("vectors*.png"))


def test_json_has_counts_and_the_sentence(places: Path, images: Run) -> None:
    document = json.loads(succeeds(*command(places, "images"), "--out", images.path, "--json"))
    (file,) = document["files"]
    match = file["methods"]["match"]
    assert match["proved"] == match["at_eps"] == images.rows.count(Status.CERTIFIED) and match["accuracy"] is None
    assert match["sentence"] in images.out and match["kind"] == "same-class"
    assert document["sheets"] == [str(images.sheet)] and document["exit_code"] == 0


@pytest.mark.slow
def test_several_properties_are_one_table(places: Path, images: Run, tmp_path: Path) -> None:
    """Points of earlier properties, and of given files, are tried on later ones."""
    asked = "--property", "close=0.5", "--property", "same-class", "--property", "transfer", "--limit", "2"
    out = succeeds(*command(places, "images", *asked), "--out", tmp_path / "a.h5", "--points", images.path)
    names = ["close, tolerance 0.5", "same-class", "transfer"]
    files = [tmp_path / f"a-{label}.h5" for label in ("close0.5", "same-class", "transfer")]
    assert sorted(tmp_path.glob("*.h5")) == files
    table = out[out.index(f"All properties on the linf ball of eps {EPS}, 2 samples") :]
    lines = [[cell.strip() for cell in line.split("│")[1:5]] for line in table.splitlines() if "│" in line]
    counted_ = [
        [read(path)["match"].count(status) for status in (Status.CERTIFIED, Status.FALSIFIED)] for path in files
    ]
    assert lines == [[name, *map(str, count), "0"] for name, count in zip(names, counted_, strict=True)]
    settings = json.loads(str(read(files[1]).attributes["settings"]))["match"]
    assert settings["property"] == "same-class" and "points" not in settings


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--property", "close", "--tolerance", "0.5"), "close, tolerance 0.5"),
        (("--delta", "1/4"), "same-class, delta 0.25"),
        (("--property", "transfer", "--norm", "l2"), "transfer"),
        (("--property", "not-worse", "--tolerance", "0.25", "--bisect"), "not-worse, tolerance 0.25"),
    ],
)
@pytest.mark.slow
def test_each_property_has_a_file_of_its_own(places: Path, options: tuple[str, ...], name: str) -> None:
    before = set(places.glob("*.h5"))
    out = succeeds(*command(places, "images", *options, "--limit", "2", "--time-limit", "0.5"))
    (path,) = set(places.glob("*.h5")) - before
    assert f"│ {name} " in out and f"written to {path}" in out
    assert ("Least tolerance proved" in out) == ("--bisect" in options)


@pytest.mark.slow
def test_verify_needs_the_teacher(places: Path, images: Run) -> None:
    student, teacher = places / "images-student.pt", places / "images-teacher.pt"
    audit = certkd("verify", images.path, student, "--teacher", teacher, "--sample", "3")
    assert audit.code == 0 and "attacks on the property within each ball" in audit.out, audit.out + audit.err
    alone = certkd("verify", images.path, student, "--sample", "0")
    assert alone.code == 1 and "not looked at: match compares with a teacher that was not given" in alone.out


def test_show_repeats_it(places: Path, images: Run) -> None:
    sentence = next(line for line in images.out.splitlines() if line.startswith("The student gives"))
    out = succeeds("show", images.path)
    teacher = load(places / "images-teacher.pt").sha256
    assert sentence in out and " property=same-class " in out and f"teacher    sha256 {teacher}\n" in out
    assert counted(images.rows.count(Status.FALSIFIED), "counterexample") in succeeds(
        "export", images.path, "--out", images.path.with_name("points.npz")
    )


def test_a_smaller_question_draws_its_own_points(places: Path, images: Run) -> None:
    """The answer comes from the finished file; row numbers are those of the smaller question."""
    refuted = images.rows["index"][images.rows["status"] == Status.FALSIFIED].tolist()
    before = images.path.read_bytes(), images.sheet.read_bytes()
    pair = "--student", places / "images-student.pt", "--teacher", places / "images-teacher.pt"
    about = "--eps", EPS, "--data", places / "images.npz", "--time-limit", "5", "--indices", str(refuted[-1])
    out = succeeds("match", *pair, *about, "--out", images.path)
    assert "for 0 of 1 sample; on 1 it does not, here is a point; none is open." in out
    assert (images.path.read_bytes(), images.sheet.read_bytes()) == before, "the larger question lost its points"
    assert f"points drawn in {images.path.with_name(f'images-samples{refuted[-1]}-points.png')}" in out


@pytest.mark.slow
def test_certify_with_a_teacher_runs_it_beside_others(places: Path, tmp_path: Path) -> None:
    networks = "certify", places / "images-student.pt", "--teacher", places / "images-teacher.pt"
    about = "--eps", EPS, "--data", places / "images.npz", "--limit", "4"
    files = "--out", tmp_path / "s.h5", "--teacher-out", tmp_path / "t.h5"
    out = succeeds(*networks, *about, *files, "--methods", "crown,match")
    assert out.count("The student gives the teacher's class everywhere in the ball") == 1
    assert set(read(tmp_path / "t.h5").methods) == {"crown"}
    compared = succeeds("compare", tmp_path / "t.h5", tmp_path / "s.h5")
    assert "The student gives the teacher's class everywhere in the ball" in compared
    document = json.loads(succeeds("compare", tmp_path / "t.h5", tmp_path / "s.h5", "--json"))
    assert document["match"]["samples"] == 4 and "match" not in document["methods"]
    only = succeeds(*networks, *about, "--methods", "match", "--out", tmp_path / "only.h5")
    assert "The student gives" in only and not list(tmp_path.glob("*teacher*"))


@pytest.mark.slow
def test_a_list_of_instances_is_matched_at_each_radius(places: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image_index,label,eps\n0,0,0.01\n1,1,0.02\n")
    networks = "certify", places / "images-student.pt", "--teacher", places / "images-teacher.pt"
    more = "--data", places / "images.npz", "--methods", "match", "--out", tmp_path / "a.h5"
    out = succeeds(*networks, *more, "--instances", tmp_path / "list.csv")
    assert out.count("The student gives the teacher's class everywhere in the ball") == 2
    assert {path.name for path in tmp_path.glob("*.h5")} == {"a-0.01.h5", "a-0.02.h5"}


MISTAKES = [
    ("match STUDENT --eps 0.1", "match relates a student to its teacher: give --teacher, like --teacher teacher.pt"),
    ("match STUDENT --teacher TEACHER", "Missing option '--eps'"),
    (
        "match --teacher TEACHER --eps 0.1",
        "like certkd match student.pt --teacher teacher.pt --eps 8/255 (or --student)",
    ),
    ("MATCH --property clos", "method match: property: unknown property 'clos'. Did you mean 'close'?"),
    ("MATCH --property equal", "unknown property 'equal'. Known: same-class, close, not-worse, transfer."),
    ("MATCH --property close", "method match: close needs a tolerance above 0, in logits, like 0.05"),
    ("MATCH --property all", "method match: close needs a tolerance above 0, in logits, like 0.05"),
    ("MATCH --property transfer=0", "transfer has no threshold: drop =0"),
    ("MATCH --property close=1 --tolerance 2", "--tolerance is for none of close=1: drop it"),
    ("MATCH --property all --property close=wide", "'wide' is not a number"),
    ("MATCH --property close=wide", "'wide' is not a number"),
    ("MATCH --property close=1 --property close=1.0", "the property close1 is given twice: drop one of them"),
    (
        "MATCH --property transfer --property same-class --tolerance 1",
        "--tolerance is for none of transfer, same-class: drop it",
    ),
    ("MATCH DATA --points gone.h5", "no certificate file at gone.h5"),
    ("MATCH --tolerance 0.1", "method match: same-class has no tolerance: drop tolerance 0.1"),
    ("MATCH --property close --tolerance wide", "tolerance: 'wide' is not a number"),
    ("MATCH --property transfer --delta 0.1", "transfer has no delta: drop delta 0.1"),
    ("MATCH --property transfer --bisect", "transfer has neither tolerance nor delta: drop bisect"),
    ("MATCH --delta -1", "delta must be at least 0, got -1"),
    ("MATCH --time-limit 0", "time_limit must be greater than 0, got 0"),
    ("MATCH --out points.png", "points.png: the name of a certificate file ends in .h5 or .hdf5"),
    ("MATCH --require kept>=1", "unknown metric 'kept'. Known: same-class, close, not-worse, transfer."),
    ("MATCH --require same-clas>=0.9", "unknown metric 'same-clas'. Did you mean 'same-class'?"),
    ("MATCH --require same-class>=2", "asks for more than every sample"),
    ("MATCH --require same-class>=shipped", "same-class is about both networks already: write same-class>=0.9"),
    ("MATCH --require close>=0.9", "--require close>=0.9 is about close, asked 0 times: add --property close"),
    (
        "MATCH --property close=1 --property close=2 --require close>=0.9",
        "--require close>=0.9 is about close, asked 2 times: ask it with one threshold alone",
    ),
    ("match STUDENT --teacher gone.pt --eps 0.1", "no such checkpoint: gone.pt"),
    ("match STUDENT --teacher STUDENT --eps 0.1 DATA", "are the same network: give a student and its teacher"),
    ("match STUDENT --teacher FOUR --eps 0.1 DATA", "3 classes, FOUR 4: give networks of the same"),
    ("match STUDENT --teacher VECTORS --eps 0.1 DATA", "(5,)"),
    ("certify STUDENT --eps 0.1 --methods match", "the method match needs --teacher\n"),
    (
        "certify STUDENT --teacher TEACHER --eps 0.1 --methods joint",
        "another method for each network: --methods crown,",
    ),
    ("certify STUDENT --teacher TEACHER --eps 0.1 --methods match --option tolerance=1", "drop tolerance 1"),
    (
        "certify STUDENT --teacher TEACHER --eps 0.1 --methods match --require clean>=0",
        "name a method that has some: crown,",
    ),
    ("certify STUDENT --teacher TEACHER --eps 0.1 --methods match --teacher-out t.h5", "are in one file, drop it"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_line(places: Path, words: str, said: str) -> None:
    names = {"MATCH": "match STUDENT --teacher TEACHER --eps 0.1", "DATA": f"--data {places / 'images.npz'}"}
    names |= {"STUDENT": str(places / "images-student.pt"), "TEACHER": str(places / "images-teacher.pt")}
    names |= {"FOUR": str(places / "four.pt"), "VECTORS": str(places / "vectors-teacher.pt")}
    for short, long in names.items():
        words, said = words.replace(short, long), said.replace(short, long)
    assert said in refused(*words.split())


def test_another_question_needs_another_file(places: Path, images: Run) -> None:
    line = refused_after_clean(*command(places, "images", "--delta", "0.5"), "--out", images.path)
    assert "was made with another settings match" in line and "choose another output file" in line
