"""Mistakes on the command line: each is one line that repeats the input and says what to do, with exit code 2."""

import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from onnx import helper

from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint, load, save
from tests.certificate_files import write_file
from tests.certkd.exchange.models import head
from tests.certkd.exchange.models import save as write_onnx
from tests.cli import refused
from tests.paths import ROOT
from verifiers.core.status import Status
from verifiers.results import reader
from verifiers.results.hdf5 import FORMAT_VERSION


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The words in capitals that stand for files and folders in the commands below."""
    folder = tmp_path_factory.mktemp("mistakes")
    torch.manual_seed(0)
    spec = ModelSpec(name="certkd:mlp", options={"hidden": [8]}, classes=10, shape=(1, 8, 8))
    save(Checkpoint(build(spec).eval(), data={"name": "digits", "seed": 0, "image_size": 224}), folder / "net.pt")
    teacher = build(spec).eval()
    known = {"data": {"name": "digits", "seed": 0, "image_size": 224}}
    sha256 = load(folder / "net.pt").sha256
    save(Checkpoint(teacher, teacher_sha256=sha256, **known), folder / "student.pt")
    (folder / "certificates").mkdir()
    file = folder / "certificates" / "student.h5"
    rows = {"status": np.full(3, Status.NOT_CERTIFIED.value, "uint8"), "radius": np.zeros(3)}
    write_file(file, {"ibp": rows}, eps=0.1)
    old = shutil.copy(file, folder / "old.h5")
    with h5py.File(old, "r+") as opened:
        opened.attrs["format_version"] = 1
    (folder / "text.h5").write_text("not HDF5")
    (folder / "training.yaml").write_text("out: x\nobjective: {kind: kd}\n")
    (folder / "typo.yaml").write_text("objectiv: {kind: kd}\n")
    (folder / "experiment.yaml").write_text(
        "out: x\nteacher: {objective: {kind: standard}}\n"
        "students: {objectives: {kd: {kind: kd}}}\ncertify: {eps: 0.1}\n"
    )
    nodes, weights = head(72)
    onnx = write_onnx(folder / "soft.onnx", [helper.make_node("Relu", ["x"], ["h"]), *nodes], weights, shape=("N", 72))
    (folder / "net.py").write_text("import torch\n")
    bounds = "(assert (>= X_0 0))\n(assert (<= X_0 1))\n"
    (folder / "p.vnnlib").write_text(
        f"(declare-const X_0 Real)\n(declare-const Y_0 Real)\n{bounds}(assert (>= Y_0 0))\n"
    )
    (folder / "open.vnnlib").write_text("(declare-const X_0 Real)\n(assert (>= X_0 0)\n")
    (folder / "list.csv").write_text("soft.onnx\n")
    return {
        "CODE": str(folder / "net.py"),
        "PROPERTY": str(folder / "p.vnnlib"),
        "UNCLOSED": str(folder / "open.vnnlib"),
        "LIST": str(folder / "list.csv"),
        "SOFT": str(onnx),
        "FOLDER/x.txt": str(folder / "certificates" / "x.txt"),
        "NET": str(folder / "net.pt"),
        "STUDENT": str(folder / "student.pt"),
        "TYPO": str(folder / "typo.yaml"),
        "GOOD": str(file),
        "OLD": str(old),
        "TEXT": str(folder / "text.h5"),
        "FOLDER": str(folder / "certificates"),
        "EMPTY": str(tmp_path_factory.mktemp("empty")),
        "TRAINING": str(folder / "training.yaml"),
        "EXPERIMENT": str(folder / "experiment.yaml"),
    }


MISTAKES: list[tuple[str, str]] = [
    ("certfy", "certfy"),
    ("certify --epss 1", "--eps"),
    ("certify", "--model"),
    ("certify --model NET", "--eps"),
    ("CERTIFY extra", "extra and --model NET say the same: give one of them"),
    ("certify NET", "which radius? Give --eps, like --eps 8/255"),
    ("certify NET extra --eps 0.1", "extra"),
    ("certify none.pt --eps 0.1 --data digits", "no such checkpoint: none.pt"),
    ("certify none.onnx --eps 0.1 --data digits", "no such ONNX file: none.onnx"),
    ("certify SOFT --eps 0.1", "'onnx:soft' does not name its data set: name it with --data, as digits, cifar10"),
    ("certify FOLDER --eps 0.1", "FOLDER is a folder"),
    ("certify GOOD --eps 0.1", "GOOD is an HDF5 file, as certificates are, not a network: 'certkd show' prints those"),
    ("CERTIFY --teacher none.pt", "no such checkpoint: none.pt"),
    ("CERTIFY --out x.csv", "x.csv: the name of a certificate file ends in .h5 or .hdf5"),
    ("CERTIFY --out TEXT --overwrite", "TEXT is not a certificate file and is not deleted"),
    ("CERTIFY --out FOLDER/x.txt --overwrite", "the name of a certificate file ends in .h5 or"),
    ("CERTIFY --indices-file none.txt --data cifar10", "none.txt"),
    ("certify NET --instances none.csv --data cifar10", "none.csv"),
    ("CERTIFY --device cuda:x", "unknown device 'cuda:x': use auto, cpu or cuda"),
    ("CERTIFY --teacher NET --out c.h5 --teacher-out c.h5", "c.h5 would be the file of both networks"),
    ("certify timm:resnet18 --data cifar10 --eps 0.1", "timm:resnet18 are not on this machine: add --download"),
    ("certify torchvision:resnet18 --data cifar10 --eps 0.1", "torchvision:resnet18 are not on this machine: add"),
    ("train TRAINING --config TRAINING", "say the same: give one of them"),
    ("verify GOOD", "nothing to work on: give a file, like certkd verify GOOD student.pt (or --model)"),
    ("verify GOOD none.pt", "no such checkpoint: none.pt"),
    ("verify GOOD NET --model NET", "NET and --model NET say the same: give one of them"),
    ("transfer --teacher NET --eps 0.1", "like certkd transfer student.pt --teacher teacher.pt --eps 8/255 (or --stud"),
    ("export NET --model NET --out x", "NET is not a certificate file"),
    ("show GOOD --csv ibp --json", "--csv ibp and --json are two formats: give one of them"),
    ("CERTIFY --norm linff", "must be 'linf', 'l2' or 'l1', got 'linff'"),
    ("CERTIFY --methods crwn", "Did you mean 'crown'?"),
    ("CERTIFY --methods ''", "unknown method ''"),
    ("CERTIFY --methods ibp,ibp", "each method once"),
    ("CERTIFY --split tset", "unknown split 'tset'. Did you mean 'test'?"),
    ("CERTIFY --limit 0", "--limit must be a whole number of at least 1, got '0'"),
    ("CERTIFY --limit 1.5", "--limit must be a whole number of at least 1, got '1.5'"),
    ("CERTIFY --batch-size many", "--batch-size must be a whole number of at least 1, got 'many'"),
    ("import-log none.tsv --n 1e10 --alpha 0.1 --sigma 1", "at least 1 and at most 1000000000, got '1e10'"),
    ("CERTIFY --seed -1", "seed"),
    ("CERTIFY --seed x", "--seed"),
    ("CERTIFY --option steps", "must look like steps=50"),
    ("CERTIFY --option steps=many", "'many'"),
    ("CERTIFY --option stps=5", "'stps'"),
    ("CERTIFY --data digit", "Did you mean 'digits'?"),
    ("CERTIFY --device gpu", "unknown device 'gpu'"),
    ("certify --model none.pt --eps 0.1", "no such checkpoint: none.pt"),
    ("certify --model mlp --eps 0.1", "'mlp' is neither a checkpoint's path nor a network's name"),
    ("certify --model certkd-mlp --eps 0.1", "Did you mean 'certkd:mlp'?"),
    ("certify --model configs --eps 0.1", "configs is a folder"),
    ("certify --model configs/digits.yaml --eps 0.1", "configs/digits.yaml is not a checkpoint"),
    ("certify --model certkd:mpl --data digits --eps 0.1", "Did you mean 'certkd:mlp'?"),
    ("certify --model timm:resnt18 --data digits --eps 0.1", "Did you mean 'timm:resnet18'?"),
    ("certify --model timm:resnt18 --data no/such/folder --eps 0.1", "Did you mean 'timm:resnet18'?"),
    ("certify --model certkd:mlpp --data no/such/folder --eps 0.1", "Did you mean 'certkd:mlp'?"),
    ("certify --model NET --arch certkd:mlpp --data no/such/folder --eps 0.1", "Did you mean 'certkd:mlp'?"),
    ("certify --model NET --data no/such/folder --eps 0.1", "no such folder or file of data: 'no/such/folder'"),
    ("certify --model NET --data no-such-name --eps 0.1", "unknown data set 'no-such-name'"),
    ("certify --model timm:resnet18 --eps 0.1", "needs --data"),
    ("certify --model certkd:mlp --data digits --eps 0.1", "no pre-trained weights"),
    ("CERTIFY --mean 0.5", "--std"),
    ("CERTIFY --mean a --std b", "'a'"),
    ("CERTIFY --mean 0.5 --std 0", "--std"),
    ("CERTIFY --out text.txt", "text.txt: the name of a certificate file ends"),
    ("CERTIFY --out FOLDER", "the name of a certificate file ends in .h5 or"),
    ("CERTIFY --out OLD", f"reads {FORMAT_VERSION}: certify again; choose another output file, or delete this one"),
    ("CERTIFY --out TEXT", "TEXT is not a certificate file: "),
    ("CERTIFY --out /dev/null/c.h5", "choose an output folder that can be"),
    ("CERTIFY --teacher-out t.h5", "add --teacher"),
    ("CERTIFY --teacher NET --teacher-out t.txt", "ends in .h5 or .hdf5"),
    ("CERTIFY --complete --time-limit 1e400", "'1e400' is too large a number"),
    ("CERTIFY --complete --time-limit nan", "'nan' is not a number"),
    ("CERTIFY --complete --time-limit .inf", "'.inf' is not a number"),
    ("CERTIFY --complete --time-limit -1", "must be greater than 0, got -1"),
    ("CERTIFY --option tolerance=1e400", "'1e400' is too large a number"),
    ("CERTIFY --methods crown,joint", "the method joint needs --teacher"),
    ("transfer --student NET --eps 0.1", "transfer compares a student with its teacher: give --teacher"),
    ("verify GOOD --model NET --time-limit 1e400", "verify: time_limit: '1e400' is too large a number"),
    ("verify GOOD --model NET --time-limit -1", "verify: time_limit must be greater than 0, got -1"),
    ("verify GOOD --model NET", "GOOD does not say what data it is about"),
    ("verify FOLDER --model NET", "FOLDER is a folder: give a certificate file in it, like GOOD"),
    ("show none.h5", "no certificate file at none.h5"),
    ("show FOLDER", "FOLDER is a folder: give a certificate file in it, like GOOD"),
    ("show EMPTY", "EMPTY is a folder: give a certificate file\n"),
    ("show OLD", f"OLD has format version 1, this certkd reads {FORMAT_VERSION}: certify again\n"),
    ("cite FOLDER", "FOLDER is a folder: give a certificate file"),
    ("match --student NET --teacher STUDENT", "Missing option '--eps': radius in pixel units, like 8/255"),
    ("gate GOOD", "Missing option '--shipped': "),
    ("report", "Missing argument 'EXPERIMENT|FILES...': certkd report [OPTIONS] EXPERIMENT|FILES..."),
    ("show GOOD --method ibp", "No such option '--method': 'certkd show --help' lists them"),
    ("quantise NET", "No such command 'quantise': 'certkd --help' lists them"),
    ("solve PROPERTY", "which network is PROPERTY about? Give it first: certkd solve NET.onnx PROPERTY"),
    ("export FOLDER --out OUT", "FOLDER is a folder: give a network, like student.pt, or a certificate file"),
    ("export none --out OUT", "none is not there: give a network, like student.pt, or a certificate file"),
    ("inspect NET --shape 1,8,8", "--shape 1,8,8 is for source:name: NET says that itself, or with --data; drop it"),
    ("inspect certkd:mlp --arch certkd:mlp", "certkd:mlp names its own network: drop --arch"),
    ("inspect certkd:mlp --shape 8x8", "--shape '8x8' must be whole numbers like 3,224,224"),
    ("certify NET --arch CODE:Net(width=8) --data digits --eps 0.1", "Options follow commas, as in 'CODE:Net,width=8'"),
    ("export FOLDER --out rows.csv", "FOLDER is a folder: give a certificate file"),
    ("export GOOD --out rows.txt", "--out rows.txt: give a name that ends in .csv, .json or .npz"),
    ("import-log FOLDER --n 100 --alpha 0.1 --sigma 1", "no log at FOLDER"),
    ("compare FOLDER GOOD", "FOLDER is a folder: give a certificate file in it, like GOOD"),
    ("compare GOOD GOOD --plot radii.xyz", "--plot radii.xyz: give a name that ends in .png, .pdf or .svg"),
    ("run TRAINING", "TRAINING: this is one training, not an experiment: use 'certkd train --config FILE'"),
    ("train --config EXPERIMENT", "EXPERIMENT: this is an experiment, with a teacher and students, not one train"),
    ("train --config TRAINING --set objective.temperature=0", "objective.temperature must be greater than 0"),
    ("train --config TRAINING --set objective=kd", "must be settings by name, like {kind: kd}, got 'kd'"),
    ("train TYPO", "TYPO: unknown setting 'objectiv'. Did you mean 'objective'? (and 2 more)"),
    ("train TRAINING --set objective.kind=kdig", "objective: unknown kind 'kdig'. Did you mean 'kdiga'?"),
    ("train TRAINING --set optimizer.kind=adm", "optimizer.kind: unknown optimizer 'adm'. Did you mean 'adam'?"),
    ("train TRAINING --set objective.knd=kd", "unknown setting 'objective.knd'. Did you mean 'kind'?"),
    ("run configs/digits.yaml --set certify.ep=1 --print-config", "unknown setting 'certify.ep'. Did you mean 'eps'?"),
    ("certify NET --teacher STUDENT --eps 0.1", "STUDENT is a student of NET: give the student as the network, and"),
    ("show configs/digits.yaml", "configs/digits.yaml is not a certificate file"),
    ("compare none.h5", "compare needs a teacher's file and a student's, like teacher.h5 student.h5; got none.h5"),
    ("compare none.h5 none.h5", "none.h5"),
    ("compare none.h5 none.h5 --require retention", "'retention' must look like"),
    ("train", "--config"),
    ("train --config none.yaml", "no such configuration: none.yaml"),
    ("train --config configs", "configs"),
    ("run none.yaml", "none.yaml"),
    ("run configs/digits.yaml --set epochs", "must look like key=value"),
    ("run configs/digits.yaml --set epochs=3", "unknown setting 'epochs'"),
    ("run configs/digits.yaml --set teacher.epoch=3", "Did you mean 'epochs'?"),
    ("run configs/digits.yaml --set teacher.epochs=many", "'many'"),
    ("run configs/digits.yaml --set certify.eps=2/0", "'2/0'"),
    ("run configs/digits.yaml --set 'certify.methods=[crwn]' --set out=OUT", "Did you mean 'crown'?"),
    ("run configs/digits.yaml --set 'certify.methods=[pgd]' --set out=OUT", "proves nothing"),
    ("run configs/digits.yaml --set data.name=digit --set out=OUT", "Did you mean 'digits'?"),
    ("run configs/digits.yaml --set teacher.model.name=certkd:cn --set out=OUT", "'certkd:cnn'?"),
    ("run configs/digits.yaml --set out=/dev/null/x", "/dev/null/x"),
    ("run configs/digits.yaml --set data.name=mnist --data-root /none --set out=OUT", "/none"),
    ("certify NET --eps 0,03", "'0,03' is not a number; write it like 8/255, 0.03 or 1e-3"),
    ("certify NET --eps 3%", "'3%' is not a number; write it like 8/255"),
    ("certify NET --eps 8 / 255", "extra arguments (/ 255): numbers and lists have no blanks, like 8/255"),
    ("certify NET --eps=-0.1", "eps must be positive and finite, got '-0.1'"),
    ("certify NET --eps 8 --data digits", "eps 8 covers the whole image box [0, 1]: did you mean 8/255?"),
    ("CERTIFY --methods crown ibp", "lists have no blanks, like --methods ibp,crown"),
    ("CERTIFY --indices 5-2", "the range 5-2 runs backwards: write 2-5"),
    ("CERTIFY --image-size 8x8", "like 224 or 32,48, got '8x8'"),
    ("CERTIFY --output 3", "--output 3 is for .onnx files and for --arch: NET has one output"),
    ("CERTIFY --time-limit 60s", "'60s' is not a number"),
    ("CERTIFY --option eps=0.2", "none of the methods pgd, ibp, crown has a setting 'eps'"),
    (
        "certify CODE --eps 0.1 --data digits",
        "CODE is Python code, not a checkpoint: give its weights, and name its cl",
    ),
    ("certify SOFT --data digits --eps 0.1 --layout nchv", "Did you mean 'nchw'?"),
    ("solve NET PROPERTY", "NET is a checkpoint, not an ONNX file: 'certkd export' writes an ONNX file"),
    ("solve SOFT GOOD", "GOOD is an HDF5 file, as certificates are, not a VNN-LIB property"),
    ("solve PROPERTY SOFT", "SOFT is an ONNX file, not a VNN-LIB property: files of networks come first"),
    ("solve SOFT none.vnnlib", "no such property: none.vnnlib"),
    ("solve SOFT PROPERTY --timeout 0", "--timeout 0 is not a positive number of seconds"),
    ("solve SOFT PROPERTY --out OUT", "PROPERTY: the property is about 1 inputs, the network has 72"),
    ("solve SOFT UNCLOSED --out OUT", "UNCLOSED line 2: a bracket is never closed"),
    ("solve LIST --out OUT", "LIST line 1 must be onnx,vnnlib,timeout, got 'soft.onnx'"),
    ("export NET --eps 8 --out OUT", "--eps: eps 8 covers the whole image box [0, 1]: did you mean 8/255?"),
    ("compare NET STUDENT", "NET is not a certificate file: it is a checkpoint or"),
    ("verify NET GOOD", "NET is not a certificate file: it is a checkpoint or another archive"),
    ("inspect GOOD", "GOOD is an HDF5 file, as certificates are, not a network"),
    ("match --student NET --eps 0.1", "match relates a student to its teacher: give --teacher"),
    ("match --student STUDENT --teacher NET --eps 0.1 --property same", "unknown property 'same'. Known: same-class"),
    ("CERTIFY --teacher GOOD", "GOOD is an HDF5 file, as certificates are, not a network"),
    ("certify . --eps 0.1", ". is a folder, not a checkpoint: give a file in it"),
    ("CERTIFY --indices 99999", "--indices: no sample 99999: the test split of digits has 360, numbered 0 to 359"),
    ("CERTIFY --methods CROWN", "unknown method 'CROWN'. Did you mean 'crown'?"),
    ("certify NET STUDENT --eps 0.1", "(STUDENT): a second network is named by --teacher STUDENT"),
    ("show GOOD OLD", "(OLD): give one file at a time"),
    ("train TRAINING --resume --overwrite", "--resume continues the training that --overwrite deletes: give one of"),
    ("train NET", "cannot read NET: it is not UTF-8 text: give a configuration"),
    ("CERTIFY --eps 0.2", "--eps or --radius is given 2 times: give it once"),
    ("match STUDENT --teacher NET --eps 0.1 --teacher NET", "--teacher is given 2 times: give it once"),
    ("verify GOOD NET --adversarial GOOD", "GOOD does not say what data it is about"),
    ("solve NET", "NET is a checkpoint, not a list of instances: 'certkd export' writes an ONNX file"),
    ("solve SOFT NET", "NET is a checkpoint, not a VNN-LIB property: 'certkd export' writes an ONNX file"),
    ("train TRAINING --set rate=0.1", "Did you mean 'optimizer.rate'?"),
    ("certify NET --eps 255 --data digits", "eps 255 covers the whole image box [0, 1]: write it like 8/255 or 0.03"),
    ("CERTIFY --methods smoothing --norm l2", "the setting sigma is missing: give one, like sigma=0.25"),
    ("CERTIFY --sigma 0.25", "has a setting 'sigma'. It belongs to smoothing."),
    ("CERTIFY --instances LIST", "--instances lists its own samples and radii: drop --eps"),
    ("CERTIFY --cluster local:0", "must be local, local:4, tcp://host:8786 or slurm:FILE.yaml, got 'local:0'"),
    ("CERTIFY --indices 1 --limit 4", "--indices and --limit both select samples: give one of them"),
    ("CERTIFY --complete --methods crown", "--complete means --methods complete, not crown: give one of them"),
    ("match STUDENT --teacher NET --eps 0.1 --property close", "close needs a tolerance above 0, in logits"),
    ("match STUDENT --teacher STUDENT --eps 0.1", "are the same network: give a student and its teacher"),
]


@pytest.mark.parametrize(("command", "words"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_line_that_names_it(
    command: str, words: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command.replace("CERTIFY", "certify --model NET --eps 0.1"))
    arguments = [argument.replace("CODE:", f"{places['CODE']}:") for argument in arguments]
    given = [places.get(argument, argument).replace("OUT", str(tmp_path / "out")) for argument in arguments]
    if "certify" in given and "--out" not in given:
        given += ["--out", str(tmp_path / "c.h5")]
    line = refused(*given)
    for name, place in places.items():
        line = line.replace(place, name)
    assert words in line, line
    assert "pydantic" not in line and "Input should" not in line, "the words of a library"


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 9 GiB"), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_a_lack_of_memory_is_no_bug(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> None:
        raise error

    monkeypatch.setattr(reader, "read", fail)
    line = refused("show", "a.h5")
    assert line.startswith(f"certkd: memory ran out ({error})") and "fewer samples at a time" in line
