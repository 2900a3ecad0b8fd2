"""Published networks: the module is the file, and no bound is broken by a known counterexample or an attack."""

import csv
import os

import numpy as np
import pytest
import torch

from certkd.config.settings import DataConfig
from certkd.data import sources as data
from certkd.data.splits import DataSet
from certkd.networks.builders import Classifier
from certkd.networks.onnx.classifier import classifier
from certkd.networks.onnx.file import read
from certkd.networks.onnx.reference import Reference
from tests.paths import GOLDEN
from verifiers.bound_propagation.checks import attack_bounds, check_sandwich
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import InputError
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls

FOLDER = GOLDEN / "nets"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the published networks are not beside the repository")


def rows(name: str) -> list[dict[str, str]]:
    path = GOLDEN / name
    return list(csv.DictReader(path.open())) if path.is_file() else []


NETS = {row["net"]: row for row in rows("nets.csv")}


def samples(name: str) -> DataSet:
    try:
        return data.load(DataConfig(name=name, root=os.environ.get("CERTKD_DATA")))
    except InputError as missing:
        pytest.skip(str(missing))


def network(name: str) -> Classifier:
    mean, std = (tuple(map(float, NETS[name][key].split())) for key in ("mean", "std"))
    return classifier(FOLDER / NETS[name]["file"], mean=mean, std=std).model


@pytest.mark.parametrize("name", NETS)
def test_logits_and_accuracy_are_the_files(name: str) -> None:
    test, model = samples(NETS[name]["dataset"]).splits["test"], network(name)
    images, labels = test.batch(torch.arange(500), torch.device("cpu"))
    with torch.no_grad():
        logits = model(images)
        scaled = model.normalize(images[:200]).numpy()
    expected = Reference(read(FOLDER / NETS[name]["file"]))(scaled)
    np.testing.assert_allclose(logits[:200].numpy(), expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
    accuracy, told = float((logits.argmax(1) == labels).double().mean()), float(NETS[name]["clean_acc_measured"])
    assert abs(accuracy - told) < 4 * (told * (1 - told) / 500) ** 0.5, f"{accuracy} instead of {told}"
    assert sum(weight.numel() for weight in model.network.parameters()) >= 0.99 * int(NETS[name]["params"])


@pytest.mark.parametrize("name", sorted({row["dataset"] for row in NETS.values()}))
def test_instances_are_about_these_images(name: str) -> None:
    labels = samples(name).splits["test"].labels
    instances = [row for row in rows("instances.csv") if row["dataset"] == name]
    wrong = [row["id"] for row in instances if int(labels[int(row["image_index"])]) != int(row["label"])]
    assert instances and not wrong, wrong[:5]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if "cnn_a" in n else []) for n in NETS])
def test_the_native_engine_bounds_it(name: str) -> None:
    test, model = samples(NETS[name]["dataset"]).splits["test"], network(name)
    images = test.images[torch.arange(1)]
    engine = Native(model, images)  # holds its graph against the network
    check_sandwich(engine.model, engine, Balls.around(images.double(), 1 / 255, Norm.LINF), "ibp", points=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_crown_stands_attacks(name: str) -> None:
    test, model = samples(NETS[name]["dataset"]).splits["test"], network(name)
    images = test.images[torch.arange(2)]
    attack_bounds(Native(model, images), images, 1 / 255, norm=Norm.LINF, method="crown")
