"""The command line: what people type, what they get, and that every mistake is one line and exit code 2."""

import csv
import io
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from certkd.cli import main
from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint, save
from certkd.report import plots, progress
from tests.cli import Interrupted, Result, certkd, process, refused, refused_after_clean, succeeds
from tests.paths import ROOT
from verifiers.core.status import Status
from verifiers.results.reader import read
from verifiers.results.schema import attributes_of, put_attributes

HEAVY = ("torch", "torchvision", "timm", "scipy", "matplotlib", "h5py", "pandas", "sklearn", "auto_LiRPA")


# --help


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom certkd.cli import main\ntry:\n    main()\nfinally:\n"
        f"    print('heavy:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    out, err = process(code, "--help").communicate()
    assert "heavy: []" in out, f"--help imports too much: {out} {err}"
    assert "certify" in out and "Exit codes" in out


def test_every_command_has_help_and_no_arguments_is_help() -> None:
    listing = succeeds("--help")
    assert succeeds() == listing
    commands = ("train", "certify", "show", "compare", "run", "methods", "objectives")
    for command in commands:
        assert command in listing
        assert f"Usage: certkd {command}" in succeeds(command, "--help"), command
    assert succeeds("certify", "-h") == succeeds("certify", "--help")


def test_version() -> None:
    from verifiers import __version__

    assert __version__ in succeeds("--version")


def test_methods_and_objectives_are_listed_whole() -> None:
    out = succeeds("methods")
    from verifiers.methods.registry import METHODS, settings_of

    for method in METHODS:
        name = str(method.model_fields["kind"].default)
        assert f"{name}: {method.claim}\n" in out and method.guarantee.value in out, f"{name} is cut"
        told = succeeds("methods", name)
        assert all(f"\n  {setting}: " in told for setting in settings_of(method)), told
        assert all(f"\n  {column.name}: {column.description}\n" in told for column in method.columns), told
        assert all(part in told for part in (method.claim, method.paper, method.cost)) and "…" not in told, told
    assert "…" not in out
    assert "  engine: auto   of auto, native, auto-lirpa\n" in succeeds("methods", "crown")
    assert "  sigma: (needed)" in succeeds("methods", "smoothing")
    assert "unknown method 'crwn'. Did you mean 'crown'?" in refused("methods", "crwn")
    out = succeeds("objectives")
    assert "kdiga: " in out and "arXiv 2110.12072" in out
    from certkd.objectives import OBJECTIVES

    for objective in OBJECTIVES:
        name = objective.model_fields["kind"].default
        told = succeeds("objectives", name)
        assert name in out and all(f"  {setting}: " in told for setting in set(objective.model_fields) - {"kind"})
    told = succeeds("objectives", "kdiga_certified")
    for part in ("lambda_deficit mean_i", "lambda_iga mean_i", "  eps: (needed)", "  point: clean   of clean, random"):
        assert part in told, part
    assert "  attack_norm: linf   of linf, l2, l1" in told and "unknown objective 'kdig'" in refused(
        "objectives", "kdig"
    )


# mistakes


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small untrained network for the digits."""
    torch.manual_seed(0)
    spec = ModelSpec(name="certkd:mlp", options={"hidden": [8]}, classes=10, shape=(1, 8, 8))
    path = tmp_path_factory.mktemp("a folder [with] blanks") / "net.pt"
    save(Checkpoint(build(spec).eval(), data={"name": "digits", "seed": 0, "image_size": 224}), path)
    return path


FAST = ("--methods", "ibp", "--limit", "5")


@pytest.mark.parametrize("eps", ["8/255", "0.03", "1e-3", " 1 / 10 "])
@pytest.mark.thin(2)
def test_eps_as_people_write_it(network: Path, tmp_path: Path, eps: str) -> None:
    out = tmp_path / "c.h5"
    succeeds("certify", "--model", network, "--eps", eps, "--out", out, *FAST)
    certificates = read(out)
    assert certificates.attributes["eps_text"] == "".join(eps.split()), "the text of eps is kept"
    assert certificates.eps == {"8/255": 8 / 255, "0.03": 0.03, "1e-3": 1e-3, " 1 / 10 ": 0.1}[eps]


@pytest.mark.parametrize("eps", ["2/0", "-1", "0", "nan", "inf", "abc", "", "0x10", "-8/255", "1e999"])
def test_a_wrong_eps_is_refused_and_repeated(network: Path, eps: str) -> None:
    message = refused("certify", "--model", network, "--eps", eps)
    assert repr(eps) in message and "8/255" in message, message


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("command", ["certify", "run"])
def test_an_absent_gpu_is_named(command: str, network: Path, tmp_path: Path) -> None:
    given = {
        "certify": ["certify", "--model", network, "--eps", "0.1"],
        "run": ["run", ROOT / "configs" / "digits.yaml", "--set", f"out={tmp_path / 'o'}"],
    }[command]
    message = refused(*given, "--device", "cuda")
    assert "'cuda'" in message and "--device cpu" in message, message


def test_debug_shows_the_traceback_of_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    from verifiers.core.errors import InputError

    for arguments in (["--debug", "show", "none.h5"], ["show", "none.h5", "--debug"]):
        monkeypatch.setattr(sys, "argv", ["certkd", *arguments])
        with pytest.raises(InputError, match=r"none\.h5"):
            main()


def test_debug_prints_a_traceback_in_a_terminal() -> None:
    running = process("from certkd.cli import main; main()", "compare", "--debug", "none.h5")
    _, err = running.communicate()
    assert running.returncode != 0 and "Traceback" in err and "compare needs a teacher" in err, err


def test_an_unforeseen_error_is_one_line_and_not_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("verifiers.results.reader.read", fail)
    result = certkd("show", "x.h5")
    assert result.code == 70, "a bug must not look like bad input"
    assert result.err.count("\n") == 1 and "bug in certkd (ZeroDivisionError: two lines)" in result.err


# certify


def test_a_file_of_another_configuration_is_refused(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.h5"
    succeeds("certify", "--model", network, "--eps", "0.1", "--out", out, *FAST)
    before = out.read_bytes()
    message = refused("certify", "--model", network, "--eps", "0.2", "--out", out, *FAST)
    assert "made with another eps" in message and "--overwrite" in message, "before the clean accuracy is computed"
    assert "another" in message and "0.1" in message and "0.2" in message and "output file" in message, message
    assert out.read_bytes() == before, "the old certificates were touched"


def test_a_place_that_cannot_be_written_is_named(network: Path) -> None:
    message = refused_after_clean("certify", "--model", network, "--eps", "0.1", "--out", "/dev/null/x.h5", *FAST)
    assert "cannot write /dev/null/x.h5" in message and "output folder" in message, message


def test_paths_with_brackets_and_blanks_are_printed_unharmed(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "a [bold] folder [/x] :smile:" / ("long " * 30 + "name") / "c.h5"
    result = certkd("certify", "--model", network, "--eps", "0.1", "--out", out, *FAST)
    assert result.code == 0, result.err
    assert f"written to {out}\n" in result.out, "the path must stand on one line as it is"
    assert f"{network}: clean accuracy" in result.err
    missing = tmp_path / "[red]none[/red].h5"
    assert str(missing) in refused("show", missing)


def test_progress_on_a_terminal_takes_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "stderr", lambda: Console(file=screen, force_terminal=True, width=300, markup=False, emoji=False)
    )
    shown = progress.CertifyProgress("runs/[x] [bold]:smile:")
    shown.clean(0.5, 10)
    shown.start("crown", 10, 2)
    shown.advance(8)
    shown.finish("crown")
    assert "[x] [bold]:smile:: crown" in screen.getvalue(), "a name was read as markup"
    training = progress.TrainProgress("[/kd]")
    training.start(1, 0, 3)
    training.step()
    training.epoch({"epoch": 0, "terms": {"loss": 1.0}, "validation": {"clean": 0.5, "pgd": 0.25}})
    assert "[/kd]: training" in screen.getvalue()


def test_the_default_file_lies_beside_the_checkpoint(network: Path) -> None:
    succeeds("certify", "--model", network, "--eps", "2/255", *FAST)
    out = network.with_name("net-linf-2_255-first5-ibp.h5")
    assert out.is_file(), "the file is named after network, norm, eps and methods"
    assert "eps 2/255" in succeeds("show", out)


def test_a_network_is_named_bare_and_its_file_made_anew(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.h5"
    first = certkd("certify", network, "--eps", "0.1", "--out", out, *FAST)
    assert first.code == 0 and "clean accuracy" in first.err, first.err
    other = certkd("certify", network, "--eps", "0.2", "--out", out, "--overwrite", "--quiet", "--json", *FAST)
    assert other.code == 0 and not other.err, other.err
    document = json.loads(other.out)
    assert document["exit_code"] == 0 and document["lines"][-1] == f"written to {out}"
    (file,) = document["files"]
    assert (file["role"], file["eps"], file["samples"], list(file["methods"])) == ("student", "0.2", 5, ["ibp"])
    assert file["methods"]["ibp"]["at_eps"] == read(out)["ibp"].at_eps
    assert sum(file["methods"]["ibp"]["statuses"].values()) == 5


@pytest.mark.slow
def test_an_interrupted_certification_goes_on(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def arguments(name: str) -> list[str | Path]:
        given = ["--eps", "0.02", "--methods", "ibp,crown", "--limit", "40", "--batch-size", "8"]
        return ["certify", "--model", network, "--out", tmp_path / name, *given]

    monkeypatch.setattr(progress.CertifyProgress, "advance", Interrupted())
    result = certkd(*arguments("a.h5"))
    assert result.code == 130 and "interrupted" in result.err.splitlines()[-1], result.err
    monkeypatch.undo()
    unfinished = read(tmp_path / "a.h5")
    kept = 40 - unfinished["ibp"].count(Status.PENDING)
    assert 0 < kept < 40, "finished rows are kept, the others are pending"
    shown = succeeds("show", tmp_path / "a.h5")
    assert "pending" in shown and "nan" not in shown
    shutil.copy(tmp_path / "a.h5", tmp_path / "copy.h5")
    assert "is not finished" in refused("compare", tmp_path / "a.h5", tmp_path / "copy.h5")
    result = certkd(*arguments("a.h5"))
    assert result.code == 0 and f"ibp ({kept} rows already done)" in result.err, result.err
    succeeds(*arguments("b.h5"))
    ours, whole = read(tmp_path / "a.h5").to_dict(), read(tmp_path / "b.h5").to_dict()
    for method, columns in whole.items():
        for name in columns.keys() - {"seconds"}:
            assert np.array_equal(ours[method][name], columns[name], equal_nan=True), (
                f"{method} {name} differs after a resume"
            )


#: ``certkd``, which waits after each batch until its standard input closes.
WAITING = """
import sys
from certkd.cli import main
from certkd.report import progress
def wait(*_):
    print("a batch", flush=True)
    sys.stdin.read()
progress.CertifyProgress.advance = wait
main()
"""


@pytest.mark.slow
def test_control_c_in_a_terminal(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.h5"
    given = ["--eps", "0.02", "--methods", "ibp", "--limit", "12", "--batch-size", "4", "--out", out]
    running = process(WAITING, "certify", "--model", network, *given)
    assert running.stdout and running.stdout.readline() == "a batch\n"
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert running.returncode == 130, err
    assert "Traceback" not in err and "interrupted" in err.splitlines()[-1], err
    assert read(out).pending == 8, "the finished rows are kept"


# the whole flow


EXPERIMENT: dict[str, Any] = {
    "teacher": {"model": {"name": "certkd:mlp", "options": {"hidden": [16]}}, "objective": {"kind": "standard"}},
    "students": {
        "model": {"name": "certkd:mlp", "options": {"hidden": [12]}},
        "objectives": {"plain": {"kind": "standard"}, "kdiga": {"kind": "kdiga", "lambda_iga": 0.3}},
    },
    "certify": {"eps": "2/255", "limit": 20, "options": {"steps": 3}},
    "selection": {"eps": "2/255", "steps": 2},
}
SHORT = ("--set", "teacher.epochs=3", "--set", "students.epochs=3", "--set", "teacher.batch_size=32")


@dataclass(frozen=True)
class Ran:
    """A finished tiny experiment."""

    folder: Path
    arguments: tuple[str | Path, ...]
    result: Result


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """``certkd run`` on a tiny experiment, in a folder with brackets and blanks."""
    place = tmp_path_factory.mktemp("an [experiment]")
    (place / "tiny.yaml").write_text(json.dumps({**EXPERIMENT, "out": str(place / "out")}))
    arguments = ("run", place / "tiny.yaml", *SHORT, "--set", "students.batch_size=32", "--device", "cpu")
    yield Ran(place / "out", arguments, certkd(*arguments))


def stamps(folder: Path) -> dict[str, int]:
    """When each checkpoint was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.pt"))}


@pytest.mark.slow
def test_a_run_prints_the_table_and_writes_everything(ran: Ran) -> None:
    assert ran.result.code == 0, ran.result.err
    for word in ("teacher", "plain", "kdiga", "retention", "certified", "PGD", str(ran.folder / "report")):
        assert word in ran.result.out, f"{word} is not in the report"
    assert "…" not in ran.result.out, "a piped table was cut"
    for name in ("teacher", "students/plain", "students/kdiga"):
        assert (ran.folder / name / "best.pt").is_file() and (ran.folder / name / "last.pt").is_file()
        records = [json.loads(line) for line in (ran.folder / name / "log.jsonl").read_text().splitlines()]
        assert [record["epoch"] for record in records] == [0, 1, 2], "--set students.epochs=3 counts"
    summary = json.loads((ran.folder / "report" / "summary.json").read_text())
    assert summary["config"]["teacher"]["epochs"] == 3, "the resolved configuration lies beside the result"
    assert set(summary["networks"]) == {"teacher", "plain", "kdiga"} and set(summary["comparisons"]) == {
        "plain",
        "kdiga",
    }


@pytest.mark.slow
def test_the_plots_are_images(ran: Ran) -> None:
    names = ("radius", "training", "plain-against-teacher", "kdiga-against-teacher")
    for name in names:
        path = ran.folder / "report" / f"{name}.png"
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width >= 600 and image.height >= 450, f"{name}: {image.size}"
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10, f"{name} is empty"
        assert 5_000 < path.stat().st_size < 500_000, f"{name} has {path.stat().st_size} bytes"


@pytest.mark.slow
def test_the_same_run_again_does_nothing_new(ran: Ran) -> None:
    before = stamps(ran.folder)
    rows = {name: read(ran.folder / "certificates" / f"{name}.h5").to_dict() for name in ("teacher", "kdiga")}
    again = certkd(*ran.arguments)
    assert again.code == 0, again.err
    assert stamps(ran.folder) == before, "a finished network was trained again"
    assert again.out == ran.result.out, "the same run reports something else"
    for name, methods in rows.items():
        there = read(ran.folder / "certificates" / f"{name}.h5").to_dict()
        for method, columns in methods.items():
            for column, values in columns.items():
                assert np.array_equal(values, there[method][column], equal_nan=True), f"{name} {method} {column}"


@pytest.mark.slow
def test_a_run_with_other_settings_is_refused(ran: Ran) -> None:
    before = stamps(ran.folder)
    result = certkd(*ran.arguments, "--set", "teacher.epochs=4")
    assert result.code == 2 and "other settings (epochs)" in result.err and "--overwrite" in result.err, result.err
    result = certkd(*ran.arguments, "--set", "certify.eps=3/255")
    assert result.code == 2 and "2/255" in result.err and "3/255" in result.err, result.err
    assert stamps(ran.folder) == before


@pytest.mark.slow
def test_show_prints_the_methods_and_where_they_come_from(ran: Ran) -> None:
    out = succeeds("show", ran.folder / "certificates" / "kdiga.h5")
    for word in ("pgd", "ibp", "crown", "deterministic", "estimate", "eps 2/255", "20 samples", "digits", "sha256"):
        assert word in out, f"{word} is missing"
    assert "…" not in out


@pytest.mark.slow
def test_show_as_csv_is_the_rows(ran: Ran) -> None:
    path = ran.folder / "certificates" / "teacher.h5"
    rows = list(csv.DictReader(io.StringIO(succeeds("show", path, "--csv", "crown"))))
    columns = read(path)["crown"]
    assert len(rows) == len(columns) == 20
    for name in ("index", "label", "predicted", "status", "radius"):
        assert [float(row[name]) for row in rows] == columns[name].tolist(), name
    assert "Did you mean 'crown'?" in refused("show", path, "--csv", "crwn")


def renamed(file: Path, copy: Path) -> Path:
    """A copy of a certificate file that is about another network with the same rows."""
    shutil.copy(file, copy)
    with h5py.File(copy, "r+") as opened:
        identity = {**json.loads(attributes_of(opened, copy)["identity"]), "model_sha256": "another"}
        put_attributes(opened, {"identity": identity, "model_sha256": "another"})
    return copy


@pytest.mark.slow
def test_compare_as_tables_and_as_json(ran: Ran, tmp_path: Path) -> None:
    files = [ran.folder / "certificates" / f"{name}.h5" for name in ("teacher", "kdiga")]
    out = succeeds("compare", *files, "--plot", tmp_path / "p [x].png")
    assert "of the teacher's" in out and "standard error" in out and "…" not in out
    assert out.endswith(f"written to {tmp_path / 'p [x].png'}\n")
    assert Image.open(tmp_path / "p [x].png").format == "PNG"
    content = json.loads(succeeds("compare", *files, "--json"))
    assert content["samples"] == 20 and content["eps"] == "2/255"
    assert content["metrics"]["retention"] == content["retention"]["value"]
    assert content["metrics"]["gains"] == len(content["gains"])
    same = json.loads(succeeds("compare", files[0], renamed(files[0], tmp_path / "same.h5"), "--json"))
    assert same["metrics"]["retention"] == 1 and not same["losses"]
    assert "they are one file; give those of two networks" in refused("compare", files[0], files[0])


@pytest.mark.slow
def test_require_decides_the_exit_code(ran: Ran, tmp_path: Path) -> None:
    teacher = ran.folder / "certificates" / "teacher.h5"
    files = [teacher, renamed(teacher, tmp_path / "same.h5")]
    succeeds("compare", *files, "--require", "retention>=1", "--require", "losses<=0")
    result = certkd("compare", *files, "--require", "retention>=0.5", "--require", "gains>=1")
    assert result.code == 1, "a requirement that is not met is exit code 1"
    assert result.err == "not met: gains>=1 (it is 0.0000)\n" and result.out
    assert "Did you mean 'retention'?" in refused("compare", *files, "--require", "retenton>=1")
    assert "Did you mean 'crown'?" in refused("compare", *files, "--method", "crwn")
    assert "cannot write" in certkd("compare", *files, "--plot", "/dev/null/x.png").err


@pytest.mark.slow
def test_certify_with_a_teacher_prints_the_comparison(ran: Ran, tmp_path: Path) -> None:
    arguments = ["--eps", "2/255", "--methods", "ibp", "--limit", "10", "--out", tmp_path / "s.h5"]
    student, teacher = ran.folder / "students" / "kdiga" / "best.pt", ran.folder / "teacher" / "best.pt"
    given = ["certify", "--model", student, "--teacher", teacher, "--teacher-out", tmp_path / "t.h5", *arguments]
    out = succeeds(*given)
    assert "the student keeps" in out or "there is nothing to keep" in out
    assert f"written to {tmp_path / 's.h5'}" in out and f"written to {tmp_path / 't.h5'}" in out
    assert read(tmp_path / "s.h5").attributes["teacher_sha256"] == read(tmp_path / "t.h5").attributes["model_sha256"]


@pytest.mark.slow
def test_train_refuses_to_repeat_and_goes_on_when_asked(ran: Ran, tmp_path: Path) -> None:
    role = {**EXPERIMENT["students"], "objective": {"kind": "kd"}, "epochs": 2, "batch_size": 32}
    del role["objectives"]
    out, config = tmp_path / "kd", tmp_path / "kd.yaml"
    config.write_text(json.dumps({**role, "out": str(out), "teacher": str(ran.folder / "teacher" / "best.pt")}))
    printed = succeeds("train", "--config", config)
    assert "validation clean" in printed and f"{out}/best.pt\n" in printed
    before = stamps(out)
    message = refused("train", "--config", config)
    assert "already holds a training (2 of 2 epochs)" in message and "--resume" in message, message
    assert "other settings (epochs)" in refused("train", "--config", config, "--resume", "--set", "epochs=3")
    assert stamps(out) == before
    succeeds("train", "--config", config, "--resume")
    assert stamps(out) == before, "a finished training has nothing to resume"
    succeeds("train", "--config", config, "--overwrite", "--set", "epochs=1")
    assert len((out / "log.jsonl").read_text().splitlines()) == 1, "--overwrite starts again"


@pytest.mark.parametrize("command", ["train", "run"])
def test_overwrite_deletes_nothing_but_outputs(command: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    role = {**EXPERIMENT["teacher"], "out": str(tmp_path)}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(role if command == "train" else {**EXPERIMENT, "out": str(tmp_path)}))
    given = ["train", "--config", config] if command == "train" else ["run", config]
    assert "is no output of certkd" in refused(*given, "--overwrite")
    assert (tmp_path / "thesis.tex").is_file() and config.is_file(), "--overwrite deleted a folder that is not certkd's"


def test_the_data_root_is_a_path_and_not_yaml(tmp_path: Path) -> None:
    root = tmp_path / "[a]: #b"
    given = ["--set", "data.name=mnist", "--set", f"out={tmp_path / 'o'}", "--data-root", root]
    assert f"no such data folder: {root}" in refused("run", ROOT / "configs" / "digits.yaml", *given)


# tables and plots


@pytest.mark.slow
def test_the_radius_curve_is_certified_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    values = np.array([0.0, 0.1, 0.1, 0.3, 0.0, 0.25])
    plots.radius_curves(tmp_path / "x.png", {"net": [values]}, plots.Caption("linf", 0.1, 6, ("crown",)))
    line = next(line for line in drawn[0].axes[0].lines if line.get_label() == "net")
    x, y = (np.asarray(axis) for axis in line.get_data())
    at: dict[str, Callable[[float], float]] = {
        "steps-post": lambda r: y[np.searchsorted(x, r, side="right") - 1],
        "steps-pre": lambda r: y[np.searchsorted(x, r, side="left")],
    }
    for r in (0.01, 0.05, 0.099, 0.11, 0.2, 0.26, 0.29):
        assert at[line.get_drawstyle()](r) == pytest.approx((values >= r).mean()), f"certified accuracy at {r}"


def test_all_radii_zero_can_be_drawn(tmp_path: Path) -> None:
    zero = np.zeros(4)
    about = plots.Caption("l2", 0.1, 4, ("crown",))
    plots.radius_curves(tmp_path / "a.png", {"net": [zero]}, about)
    plots.paired_radii(tmp_path / "b.png", zero, zero, about, ("teacher", "net"))
    assert all(Image.open(tmp_path / f"{name}.png").format == "PNG" for name in "ab")
