"""How commands print: as text or as one JSON document, and with progress or without."""

import json
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from certkd.cli import cli
from certkd.cli.options import bare_or_named
from certkd.cli.output import Command
from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint, save
from tests.certificate_files import write_file
from tests.cli import certkd, refused, succeeds
from verifiers.core.errors import InputError
from verifiers.core.status import Status


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate file with one of three samples certified at eps."""
    rows = {
        "status": np.array([Status.CERTIFIED, Status.NOT_CERTIFIED, Status.MISCLASSIFIED], "uint8"),
        "radius": np.array([0.2, 0.0, 0.0]),
        "correct": np.array([1, 1, 0], "uint8"),
        "certified": np.array([1, 0, 0], "uint8"),
    }
    path = tmp_path_factory.mktemp("output") / "c.h5"
    facts = {name: "x" for name in ("model_sha256", "architecture", "certkd_version", "torch_version", "device")}
    facts |= {name: "x" for name in ("auto_lirpa_version", "started", "command")}
    write_file(path, {"ibp": rows}, eps=0.1, **facts)
    return path


def test_every_command_has_both_options() -> None:
    for name, command in cli.commands.items():
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {"--json", "--quiet"} <= flags, name


def test_show_as_a_document(file: Path) -> None:
    document = json.loads(succeeds("show", file, "--json"))
    assert document["exit_code"] == 0
    assert document["files"] == [
        {
            "path": str(file),
            "norm": "linf",
            "eps": "0.1",
            "samples": 3,
            "methods": {
                "ibp": {
                    "guarantee": "deterministic",
                    "at_eps": 1,
                    "accuracy": 1 / 3,
                    "mean_radius": 0.2 / 3,
                    "statuses": {"CERTIFIED": 1, "NOT_CERTIFIED": 1, "MISCLASSIFIED": 1},
                }
            },
        }
    ]
    assert [table["columns"][:2] for table in document["tables"]] == [["method", "at eps"], ["method", "radius > 0"]]


def test_the_next_command_prints_text_again(file: Path) -> None:
    succeeds("show", file, "--json")
    assert succeeds("show", file).startswith("At eps 0.1 (linf) 1 of 3 samples are correct and certified (33.3%, ")


def test_a_refusal_prints_no_document() -> None:
    assert refused("show", "none.h5", "--json", "--quiet").endswith("no certificate file at none.h5\n")


def test_lists_are_documents_too() -> None:
    for command in ("methods", "objectives"):
        document = json.loads(succeeds(command, "--json"))
        assert document["lines"][-1].startswith(f"'certkd {command} KIND' describes one")
        assert certkd(command, "--quiet").out == succeeds(command)


def test_an_option_of_the_command_itself_is_left_alone() -> None:
    command = Command("x", params=[click.Option(["--json", "own"], is_flag=True)])
    assert [parameter.name for parameter in command.params] == ["own", "quiet"]


def test_an_option_is_given_once_unless_it_lists() -> None:
    taken: list[object] = []
    options = [click.Option(["--a"]), click.Option(["--b"], multiple=True), click.Option(["-v"], is_flag=True)]
    command = Command("x", params=options, callback=lambda **given: taken.append(given))
    command(["--a", "1", "--b", "2", "--b", "3", "-v", "-v"], standalone_mode=False)
    assert taken == [{"a": "1", "b": ("2", "3"), "v": True}]
    with pytest.raises(click.UsageError, match=r"^--a is given 3 times: give it once$"):
        command(["--a", "1", "--a=2", "--a", "1"], standalone_mode=False)


def test_a_file_is_given_bare_or_by_its_option() -> None:
    assert bare_or_named("a.pt", None, "--model", "x") == "a.pt" == bare_or_named(None, "a.pt", "--model", "x")
    with pytest.raises(InputError, match=r"^a and --model b say the same: give one of them; lists have no blanks"):
        bare_or_named("a", "b", "--model", "x")
    with pytest.raises(InputError, match=r"^nothing to work on: give a file, like certkd x a\.pt \(or --model\)$"):
        bare_or_named(None, None, "--model", "certkd x a.pt")


def test_a_finished_file_answers_a_smaller_question(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = ModelSpec(name="certkd:mlp", options={"hidden": [4]}, classes=10, shape=(1, 8, 8))
    save(Checkpoint(build(spec).eval(), data={"name": "digits", "seed": 0, "image_size": 224}), tmp_path / "net.pt")
    out = tmp_path / "c.h5"
    given = ("certify", tmp_path / "net.pt", "--eps", "1/255", "--option", "cross_check=0", "--out", out)
    first = certkd(*given, "--limit", "4", "--methods", "ibp,crown")
    assert first.code == 0 and "ibp ..." in first.err
    before = out.read_bytes()
    second = certkd(*given, "--indices", "3,1", "--methods", "ibp", "--json")
    assert second.code == 0 and f"{out} is finished and holds the answer" in second.err and "ibp ..." not in second.err
    (file,) = json.loads(second.out)["files"]
    assert (file["samples"], list(file["methods"]), file["path"]) == (2, ["ibp"], str(out))
    assert out.read_bytes() == before
    message = certkd(*given, "--indices", "3,5", "--methods", "ibp").err.splitlines()[-1]
    assert "choose another output file" in message


@pytest.mark.slow
def test_a_finished_file_with_a_default_name_answers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    spec = ModelSpec(name="certkd:mlp", options={"hidden": [4]}, classes=10, shape=(1, 8, 8))
    save(Checkpoint(build(spec).eval(), data={"name": "digits", "seed": 0, "image_size": 224}), tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    given = ("certify", "net.pt", "--eps", "1/255", "--option", "cross_check=0", "--limit", "3")
    assert certkd(*given).code == 0
    found = certkd(*given, "--methods", "ibp")
    assert found.code == 0 and "net-linf-1_255-first3.h5 is finished and holds the answer" in found.err
    changed = certkd(*given, "--methods", "ibp", "--seed", "5")  # another question: its own file
    assert changed.code == 0 and "is finished" not in changed.err
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == [
        "net-linf-1_255-first3-ibp.h5",
        "net-linf-1_255-first3.h5",
    ]
