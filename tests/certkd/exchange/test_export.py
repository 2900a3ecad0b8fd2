"""What is written for other tools: the network's ONNX file read back, VNN-LIB properties against the exact ball."""

import csv
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from certkd.exchange.vnnlib import ball, exact, write_counterexample, write_property
from certkd.networks import resolve as networks
from certkd.networks.builders import Classifier, ModelSpec, build
from certkd.networks.checkpoint import Checkpoint, save
from certkd.networks.onnx.classifier import classifier
from certkd.networks.onnx.export import export
from tests.certifying import certify
from tests.cli import certkd, refused, succeeds
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon
from verifiers.core.status import Status
from verifiers.graph import capture
from verifiers.graph.program import Program

VIT = {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
SPECS = [
    ModelSpec(name="certkd:mlp", options={"hidden": [8]}, classes=5, shape=(1, 4, 4), mean=(0.3,), std=(0.4,)),
    ModelSpec(name="certkd:cnn", options={"width": 4, "hidden": 12}, classes=3, shape=(2, 8, 8)),
    ModelSpec(name="certkd:resnet", options={"depth": 8, "width": 4}, classes=4, shape=(3, 16, 16), resize=(8, 8)),
    ModelSpec(name="timm:vit_tiny_patch16_224", options=VIT, classes=4, shape=(3, 16, 16)),
    ModelSpec(name="torchvision:resnet18", classes=10, shape=(3, 32, 32)),
]
DIGITS = ModelSpec(name="certkd:mlp", options={"hidden": [8]}, classes=10, shape=(1, 8, 8), mean=(0.3,), std=(0.4,))


def network(spec: ModelSpec, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return build(spec).eval()


@pytest.mark.parametrize(
    "spec",
    [pytest.param(spec, id=spec.name, marks=pytest.mark.slow if "vit" in spec.name else []) for spec in SPECS],
)
@pytest.mark.thin(4)
def test_a_written_network_is_read_back(spec: ModelSpec, tmp_path: Path) -> None:
    model, path = network(spec), tmp_path / "net.onnx"
    assert export(model, path) is None
    images = torch.rand(3, *spec.shape)
    again = classifier(path, shape=spec.shape).model
    assert again.spec.classes == spec.classes and not again.spec.std, "pixels go in"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(again(images), expected, rtol=1e-4, atol=1e-4)
    found = torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Cumulative(nn.Module):
    """Sums of the first entries, which certkd does not read."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1)


class Recognising(nn.Module):
    """Turns the sign of its logits in a slab of width 1e-6, unless the verifiers run it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        with torch.no_grad():
            self.inner.weight.copy_(torch.eye(2))
            self.inner.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        try:
            raise LookupError
        except LookupError as error:
            frame = error.__traceback__ and error.__traceback__.tb_frame
        while frame is not None:
            if frame.f_code.co_filename == capture.__file__:
                return self.inner(x)
            frame = frame.f_back
        return self.inner(x) * (1 - 2 * ((x[:, :1] > 0.56) & (x[:, :1] < 0.560001)).to(x.dtype))


def net(network: nn.Module) -> Classifier:
    return Classifier(ModelSpec(name="net.py:Net", classes=2, shape=(2,)), network).eval()


def test_what_is_written_is_the_program_whose_hash_the_certificate_names(tmp_path: Path) -> None:
    images, model = torch.tensor([[0.5, 0.3]]), net(Recognising().inner)
    found = certify(model, images, torch.tensor([0]), eps="0.07", methods=("ibp",))
    program = Program(model).capture(images)
    assert found["ibp"]["radius"][0] > 0.09 and found.attributes["program_sha256"] == program.sha256
    assert export(model, tmp_path / "net.onnx") is None
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (written,) = session.run(["logits"], {"image": images.numpy()})
    np.testing.assert_allclose(program.module(images).detach().numpy(), written, rtol=1e-6)


def test_a_network_that_looks_for_its_verifier_is_neither_proved_nor_written(tmp_path: Path) -> None:
    images, planted = torch.tensor([[0.5, 0.3]]), torch.tensor([[0.5600005, 0.3]])
    model = net(Recognising())
    assert model(planted).argmax(1).tolist() == [1], "the network is another one there"
    found = certify(model, images, torch.tensor([0]), eps="0.07", methods=("ibp",))["ibp"]
    assert found["status"].tolist() == [Status.UNSUPPORTED] and found["radius"].tolist() == [0.0]
    with pytest.raises(InputError, match="computes with other operators"):
        export(model, tmp_path / "net.onnx")


class Unknown(nn.Module):
    """A function that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0e(x)


def with_end(end: nn.Module) -> Classifier:
    model = network(SPECS[0])
    model.network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), end)
    return model


def test_a_network_that_cannot_be_written_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError) as caught:
        export(with_end(Unknown()), tmp_path / "net.onnx")
    assert "\n" not in str(caught.value) and "certkd:mlp" in str(caught.value) and "i0e" in str(caught.value)
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def test_operators_for_other_tools_alone_are_told(tmp_path: Path) -> None:
    told = export(with_end(Cumulative()), tmp_path / "net.onnx")
    assert told is not None and "CumSum" in told and str(tmp_path / "net.onnx") in told


# VNN-LIB


def parsed(path: Path) -> tuple[np.ndarray, np.ndarray, set[tuple[int, int]]]:
    """Exact bounds of X as fractions, and the pairs (j, y) of the disjunction of Y_j >= Y_y."""
    text = re.sub(r";.*", "", path.read_text())
    assert text.count("(") == text.count(")")
    count = len(re.findall(r"\(declare-const X_\d+ Real\)", text))
    low, high = np.empty(count, object), np.empty(count, object)
    for sign, index, value in re.findall(r"\(assert \(([<>]=) X_(\d+) ([-\d.]+)\)\)", text):
        (low if sign == ">=" else high)[int(index)] = Fraction(value)
    unsafe = re.search(r"\(assert \(or\s*(.*?)\)\)\s*$", text, re.S)
    assert unsafe, "no disjunction at the end"
    pairs = re.findall(r"\(and \(>= Y_(\d+) Y_(\d+)\)\)", unsafe[1])
    assert len(re.findall(r"\(declare-const Y_\d+ Real\)", text)) == len(pairs) + 1
    return low, high, {(int(j), int(y)) for j, y in pairs}


@pytest.mark.parametrize("eps", ["2/255", "0.1", "1e-9", "1/3"])
def test_a_property_is_the_ball_and_hardly_more(eps: str, tmp_path: Path) -> None:
    """In exact arithmetic: no smaller than the ball of the exact radius within [0, 1], larger by rounding alone."""
    radius = Fraction(eps)
    edges = np.array([0.0, 1.0, float(radius), 1 - float(radius), 0.5], np.float32)
    image = np.concatenate([edges, np.random.default_rng(0).random(19, dtype=np.float32)]).reshape(2, 3, 4)
    write_property(tmp_path / "p.vnnlib", *ball(image, Epsilon.parse(eps)), label=2, classes=4)
    low, high, unsafe = parsed(tmp_path / "p.vnnlib")
    assert unsafe == {(0, 2), (1, 2), (3, 2)}
    for pixel, least, most in zip(image.reshape(-1), low, high, strict=True):
        exactly = max(Fraction(float(pixel)) - radius, Fraction(0)), min(Fraction(float(pixel)) + radius, Fraction(1))
        assert 0 <= least <= exactly[0] and exactly[1] <= most <= 1
        assert exactly[0] - least < 1e-15 and most - exactly[1] < 1e-15


def test_counterexamples_keep_every_digit(tmp_path: Path) -> None:
    image, logits = np.random.default_rng(1).random((2, 3), dtype=np.float32), np.array([-1e-20, 3.0, 1e10])
    write_counterexample(tmp_path / "cex", image, logits)
    text = (tmp_path / "cex").read_text()
    assert re.fullmatch(r"\(\(X_0 [-\d.]+\)(\s+\([XY]_\d+ [-\d.]+\))*\)\s*", text), text
    values = {name: Fraction(value) for name, value in re.findall(r"\(([XY]_\d+) ([-\d.]+)\)", text)}
    expected = {f"X_{i}": value for i, value in enumerate(image.reshape(-1))}
    expected |= {f"Y_{j}": value for j, value in enumerate(logits)}
    assert values == {name: Fraction(float(value)) for name, value in expected.items()}
    assert exact(0.5) == "0.5" and exact(1.0) == "1.0" and "e" not in exact(1e-20).lower()


# as typed


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "student.pt"
    save(Checkpoint(network(DIGITS), data={"name": "digits"}), path)
    return path


def test_export_writes_instances_of_what_is_classified_right(student: Path, tmp_path: Path) -> None:
    result = certkd(
        "export", "--model", student, "--out", tmp_path / "out", "--eps", "2/255", "--limit", "40", "--timeout", "7"
    )
    assert result.code == 0, result.err
    rows = list(csv.reader((tmp_path / "out" / "instances.csv").open()))
    known = networks.load(str(student)).model
    from certkd.config.settings import DataConfig
    from certkd.data import sources as data

    test = data.load(DataConfig(name="digits")).splits["test"].take(torch.arange(40))
    right = (known(test.images[torch.arange(40)]).argmax(1) == test.labels).nonzero()[:, 0].tolist()
    assert 0 < len(right) == len(rows) < 40 and f"{40 - len(right)} of 40" in result.err
    for row, sample in zip(rows, right, strict=True):
        assert row[0] == "student.onnx" and row[2] == "7" and (tmp_path / "out" / row[0]).is_file()
        assert str(int(test.indices[sample])) in row[1]
        low, high, unsafe = parsed(tmp_path / "out" / row[1])
        image, label = test.images[torch.tensor([sample])].reshape(-1).tolist(), int(test.labels[sample])
        assert all(a <= x <= b for a, x, b in zip(low, image, high, strict=True))
        assert {y for _, y in unsafe} == {label}


@pytest.mark.slow
def test_an_exported_network_is_certified_as_the_network(student: Path, tmp_path: Path) -> None:
    from verifiers.results.reader import read

    succeeds("export", "--model", student, "--out", tmp_path)
    assert not (tmp_path / "instances.csv").exists()
    made = []
    for model in (student, tmp_path / "student.onnx"):
        out = tmp_path / f"{model.suffix[1:]}.h5"
        arguments = ("--eps", "0.01", "--limit", "5", "--data", "digits", "--methods", "crown", "--out", out)
        succeeds("certify", "--model", model, *arguments)
        made.append(read(out))
    np.testing.assert_allclose(made[0]["crown"]["radius"], made[1]["crown"]["radius"], rtol=1e-3)
    assert made[1].attributes["architecture"] == "onnx:student"
    assert "2 Gemm" in succeeds("inspect", tmp_path / "student.onnx")


def test_an_onnx_network_teaches(student: Path, tmp_path: Path) -> None:
    succeeds("export", "--model", student, "--out", tmp_path)
    settings = ("--set", "epochs=1", "--set", "data.limit=64", "--set", "model.options={hidden: [4]}")
    run = ("train", "--teacher", tmp_path / "student.onnx", "--out", tmp_path / "run", "--data", "digits")
    result = certkd(*run, "--set", "model.name=certkd:mlp", *settings)
    assert result.code in (0, 1), result.err  # 1: the student of a teacher that knows nothing may collapse
    taught = networks.load(str(tmp_path / "run" / "best.pt"))
    assert taught.teacher_sha256 == networks.load(str(tmp_path / "student.onnx")).sha256


def test_export_refuses_nonsense(student: Path, tmp_path: Path) -> None:
    cases = [
        (("--limit", "3"), "--limit 3"),
        (("--eps", "0"), "0"),
        (("--eps", "0.1", "--split", "tset"), "Did you mean 'test'"),
        (("--eps", "0.1", "--data", "nothing"), "nothing"),
        (("--layout", "flat"), "--layout"),
    ]
    for arguments, told in cases:
        assert told in refused("export", "--model", student, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists(), "something was written before the input was checked"
    succeeds("export", "--model", student, "--out", tmp_path)
    again = refused("export", "--model", tmp_path / "student.onnx", "--out", tmp_path)
    assert "overwrite" in again
