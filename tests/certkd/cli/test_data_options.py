"""Data, units and class orders on the command line: read right, said, or refused with the likely meaning."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from certkd.cli.networks import network as named_network
from certkd.config.reading import read
from certkd.config.settings import DataConfig, Recipe, SelectionConfig, Threat, TrainJob
from certkd.data import folders
from certkd.data.sources import load as load_data
from certkd.data.splits import DataSet
from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint, save
from certkd.networks.onnx.export import export
from certkd.networks.resolve import data_of, load
from certkd.objectives import Adversarial, Ibp, Kd, Kdiga, SmoothAdv
from tests.certkd.training.test_training import Listener, plain, samples
from tests.cli import certkd, refused, succeeds
from tests.training import train
from verifiers.certify.config import CertifyConfig
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon, Norm, beyond_images
from verifiers.results.reader import read as read_certificates

SIDES = (6, 4)


def network(channels: int = 3, classes: int = 3) -> Checkpoint:
    """A small network for images of 6x4 pixels, without data of its own."""
    torch.manual_seed(0)
    spec = ModelSpec(name="certkd:mlp", options={"hidden": [8]}, classes=classes, shape=(channels, *SIDES))
    return Checkpoint(build(spec).eval())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks, and images of 6x4 pixels in folders and in an archive with channels last."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    save(network(), folder / "net.pt")
    save(network(1), folder / "grey.pt")
    export(network().model, folder / "net.onnx")
    torch.save(network().model.network.state_dict(), folder / "bare.pt")
    images = random.integers(0, 256, (12, *SIDES, 3), dtype=np.uint8)
    for part in ("train", "val"):
        for k, image in enumerate(images):
            place = folder / "images" / part / str(k % 3)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{k // 3}.png")
    for k, image in enumerate(images):
        place = folder / "greys" / str(k % 3)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(place / f"{k // 3}.png")
    np.savez(folder / "last.npz", x_test=images, y_test=np.arange(12)[:, None] % 3)
    first = images.transpose(0, 3, 1, 2)
    np.savez(folder / "from1.npz", x_test=first, y_test=np.arange(12) % 3 + 1)
    np.savez(folder / "floats.npz", x_test=first.astype(np.float32), y_test=np.arange(12) % 3)
    np.savez(folder / "shares.npz", x_test=first, y_test=np.full((12, 3), 1 / 3))
    np.savez(folder / "names.npz", pictures=first, answers=np.arange(12) % 3)
    np.savez(folder / "rows.npz", x_test=first.reshape(12, -1), y_test=np.arange(12) % 3)
    np.save(folder / "fog.npy", images)
    Image.fromarray(images[0]).save(folder / "flat.png")
    (folder / "flat").mkdir()
    (folder / "flat.png").rename(folder / "flat" / "0.png")
    return folder


def certify(folder: Path, out: Path, *arguments: str | Path) -> str:
    """Certify by IBP, and return all that is printed."""
    result = certkd("certify", "--eps", "1/255", "--methods", "ibp", "--out", out, *arguments)
    assert result.code == 0, result.err
    return result.out + result.err


def in_class_order(folder: Path) -> np.ndarray:
    """The archive's images in the order of the class folders."""
    images = np.load(folder / "last.npz")["x_test"]
    return np.concatenate([images[k::3] for k in range(3)])


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (("--model", "net.pt"), "images"),
        (("--model", "net.onnx"), "images"),
        (("--model", "bare.pt", "--arch", "certkd:mlp,hidden=[8]", "--image-size", "as-is"), "images"),
        (("--model", "bare.pt", "--arch", "certkd:mlp,hidden=[8]", "--image-size", "6,4"), "images"),
        (("--model", "grey.pt"), "greys"),
    ],
    ids=str,
)
@pytest.mark.slow
def test_folders_have_the_size_of_the_network_and_keep_their_pixels(
    given: tuple[str, ...], name: str, places: Path, tmp_path: Path
) -> None:
    words = [str(places / word) if word.endswith((".pt", ".onnx")) else word for word in given]
    said = certify(places, tmp_path / "a.h5", *words, "--data", str(places / name))
    assert "resized" not in said
    pixels = in_class_order(places).transpose(0, 3, 1, 2)[:, : 1 if name == "greys" else 3]
    np.savez(tmp_path / "same.npz", x_test=pixels, y_test=np.repeat([0, 1, 2], 4))
    model = [word for word in words if word not in ("--image-size", "as-is", "6,4")]
    certify(places, tmp_path / "b.h5", *model, "--data", tmp_path / "same.npz")
    found, expected = (read_certificates(tmp_path / file) for file in ("a.h5", "b.h5"))
    assert found.attributes["data_sha256"] == expected.attributes["data_sha256"], "bit for bit the same images"
    assert np.array_equal(found["ibp"]["radius"], expected["ibp"]["radius"])


def test_a_certificate_of_folders_verifies_without_other_words(places: Path, tmp_path: Path) -> None:
    certify(places, tmp_path / "a.h5", "--model", places / "net.pt", "--data", places / "images")
    succeeds("verify", tmp_path / "a.h5", "--model", places / "net.pt", "--sample", "1")


def test_odd_readings_are_said_once(places: Path, tmp_path: Path) -> None:
    said = certify(places, tmp_path / "a.h5", "--model", places / "net.pt", "--data", places / "last.npz")
    line = "last.npz: x_test of shape (6, 4, 3) is read as (height, width, channels)"
    assert said.count(line) == 1
    said = certify(
        places, tmp_path / "b.h5", "--model", places / "net.pt", "--data", "folder", "--data-root", places / "images",
        "--image-size", "6,4",
    )  # fmt: skip
    assert "resized" not in said
    message = refused(
        "certify", "--model", places / "net.pt", "--eps", "1/255", "--data", places / "last.npz", "--image-size", "big"
    )
    assert "an image size is a side, H,W or as-is, like 224 or 32,48, got 'big'" in message


def test_the_size_of_a_checkpoints_own_folders_is_kept(places: Path) -> None:
    known = Checkpoint(network().model, data={"name": "folder", "image_size": "6,4"})
    assert data_of(known, DataConfig(root="x")).image_size == "6,4"
    config = data_of(known, DataConfig(name="folder", image_size="as-is"))
    assert (config.image_size, config.channels, config.root, config.download) == ("as-is", 3, None, False)
    assert data_of(known, DataConfig(name="digits")).channels is None
    wicked = Checkpoint(network().model, data={"name": "digits", "download": True, "root": "/"})
    assert data_of(wicked, DataConfig()).model_dump(include={"download", "root"}) == {"download": False, "root": None}
    with pytest.raises(InputError, match="does not name its data set"):
        data_of(network(), DataConfig())


@pytest.mark.parametrize(
    ("option", "expected"), [(",img_size=32", 32), (",img_size=[32,48]", "32,48"), ("", DataConfig().image_size)]
)
def test_images_have_the_size_that_the_architecture_names(places: Path, option: str, expected: object) -> None:
    seen: list[DataConfig] = []

    def read(config: DataConfig) -> DataSet:
        seen.append(config)
        raise InputError("the data are not needed")

    given = {"data": "folder", "data_root": str(places / "images"), "arch": f"timm:vit_tiny_patch16_224{option}"}
    options = dict.fromkeys("download image_size layout output mean std weights_key".split()) | given
    with pytest.raises(InputError, match="not needed"):
        named_network("weights.pth", {**options, "kinds": {False}}, read)
    assert [config.image_size for config in seen] == [expected]


def test_folders_below_the_root_get_the_size_of_the_network(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    below = data_of(network(), DataConfig(name="images", root=str(places)))
    assert below.in_folders and (below.image_size, below.channels) == ("6,4", 3)
    assert load_data(below).shape == (3, *SIDES)
    assert not DataConfig(name="images").in_folders and not DataConfig(name="last.npz", root=str(places)).in_folders
    assert DataConfig(name="fog.npy:1", root=str(places)).place == places / "fog.npy:1"
    assert DataConfig(name=str(places / "fog.npy:1"), root="elsewhere").place == places / "fog.npy:1"
    (tmp_path / "digits").mkdir()
    assert not DataConfig(name="digits").in_folders, "a folder of the same name is not the data set"
    assert not DataConfig(name="digits", root=str(tmp_path)).in_folders


@pytest.mark.parametrize("name", ["images", "greys"])
def test_each_folder_is_listed_once(name: str, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Path] = []
    below = folders.images_below

    def counted(folder: Path) -> list[Path]:
        listed.append(folder)
        return below(folder)

    monkeypatch.setattr(folders, "images_below", counted)
    found = folders.find(places / name)
    assert sorted(listed) == sorted({path.parent for one in found.splits.values() for path in one.paths})
    assert len(listed) == len(set(listed)), f"listed twice: {listed}"


def test_training_on_grey_folders_at_their_own_size(places: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / part).symlink_to(places / "greys")
    (tmp_path / "c.yaml").write_text(
        f"out: {tmp_path / 'out'}\nepochs: 1\nobjective: {{kind: standard}}\n"
        f"data: {{name: folder, root: {tmp_path / 'data'}}}\n"
    )
    certkd("train", "--config", tmp_path / "c.yaml", "--image-size", "as-is")
    assert load(tmp_path / "out" / "best.pt").model.spec.shape == (1, *SIDES)
    assert load(tmp_path / "out" / "best.pt").data["image_size"] == "as-is"


# units


BYTES: dict[str, tuple[str, str]] = {
    "eps": ("--model NET --eps 8", "eps 8 covers the whole image box [0, 1]: did you mean 8/255?"),
    "means": (
        "--model BARE --arch certkd:mlp,hidden=[8] --data ARRAYS --eps 1/255 "
        "--mean 123.7,116.8,103.9 --std 58.4,57.1,57.4",
        "did you mean --mean 123.7/255,116.8/255,103.9/255 --std 58.4/255,57.1/255,57.4/255?",
    ),
}


MISTAKES: list[tuple[str, str]] = [
    ("from1.npz", "of 4: do the labels count from 1? Subtract 1"),
    (
        "floats.npz",
        "x_test must be bytes, or floats in [0, 1]; got float32 from 0 to 255: divide by 255, or save them as",
    ),
    ("shares.npz", "y_test must be 12 class numbers, one per image; got shape (12, 3) with rows that are not one-hot"),
    ("names.npz", "must hold x_test and y_test, and x_train and y_train to train with; it has pictures, answers"),
    ("fog.npy", "fog.npy has images, and their labels are missing: save them in"),
    ("fog.npy:9", "their labels are missing"),
    ("flat", "has no class folders: put its images into one folder per class, or list their labels in"),
    ("images --image-size 7,7,7", "an image size is a side, H,W or as-is, like 224 or 32,48, got '7,7,7'"),
    ("images --image-size 5", "the network takes images (3, 6, 4) of 3 classes, "),
    ("rows.npz", "save its images as images.reshape(-1, 3, 6, 4), if that is their order"),
    ("none", "no such folder or file of data"),
    ("last.npz --split train", "unknown split 'train'"),
]


@pytest.mark.parametrize(("words", "expected"), MISTAKES)
def test_data_that_do_not_fit_are_one_line(words: str, expected: str, places: Path) -> None:
    name, *others = words.split()
    result = certkd("certify", "--model", places / "net.pt", "--eps", "1/255", "--data", places / name, *others)
    lines = [line for line in result.err.splitlines() if not line.startswith(name.split(":")[0])]
    assert result.code == 2 and len(lines) == 1 and expected in lines[0], result.err


@pytest.mark.parametrize("case", BYTES)
def test_bytes_for_pixels_are_refused_with_the_likely_meaning(case: str, places: Path) -> None:
    words, expected = BYTES[case]
    names = {"NET": "net.pt", "BARE": "bare.pt", "ARRAYS": "last.npz"}
    message = refused("certify", *(str(places / names[word]) if word in names else word for word in words.split()))
    assert expected in message, message


def test_fractions_are_taken_for_means(places: Path, tmp_path: Path) -> None:
    words = ["--arch", "certkd:mlp,hidden=[8]", "--mean", "124/255,117/255,104/255", "--std", "58/255,57/255,57/255"]
    certify(places, tmp_path / "a.h5", "--model", places / "bare.pt", "--data", places / "last.npz", *words)
    images = torch.from_numpy(np.load(places / "last.npz")["x_test"]).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in ((124.0, 117.0, 104.0), (58.0, 57.0, 57.0)))
    with torch.no_grad():
        expected = network().model.network((images - mean) / std).argmax(1)
    assert read_certificates(tmp_path / "a.h5")["ibp"]["predicted"].tolist() == expected.tolist()


def test_a_ball_in_bytes_is_warned_of_in_other_norms(places: Path, tmp_path: Path) -> None:
    arguments = ["--model", places / "net.pt", "--data", places / "last.npz", "--norm", "l2", "--methods", "ibp"]
    result = certkd("certify", *arguments, "--eps", "64", "--out", tmp_path / "a.h5")
    assert "warning: eps 64 covers the whole image box [0, 1]: did you mean 64/255?" in result.err


@pytest.mark.parametrize(
    ("eps", "norm", "entries", "words"),
    [
        ("8", Norm.LINF, None, "covers the whole image box [0, 1]: did you mean 8/255?"),
        ("1.5", Norm.LINF, None, "did you mean 1.5/255?"),
        ("300", Norm.LINF, None, "write it like 8/255"),
        ("3/2", Norm.LINF, None, "write it like 8/255"),
        ("1", Norm.LINF, None, None),
        ("8/255", Norm.LINF, 3072, None),
        ("64", Norm.L2, None, None),
        ("64", Norm.L2, 3072, "covers the whole image box"),
        ("64", Norm.L2, 150528, "is large for pixels in [0, 1]: did you mean 64/255?"),
        ("3", Norm.L2, 3072, None),
        ("2", Norm.L2, 3, "covers"),
        ("100", Norm.L1, 64, "covers"),
        ("12", Norm.L1, 784, None),
    ],
)
def test_radii_that_are_too_large(eps: str, norm: Norm, entries: int | None, words: str | None) -> None:
    said = beyond_images(Epsilon.parse(eps), norm, entries)
    assert said is None if words is None else words in str(said)


def test_an_eps_in_bytes_is_refused_in_every_setting(tmp_path: Path) -> None:
    for kind in (Adversarial, Ibp, Threat, SelectionConfig, CertifyConfig):
        with pytest.raises(InputError, match=r"eps 8(\.0)? covers the whole image box"):
            kind(eps=8)
    with pytest.raises(InputError, match="did you mean 8/255"):
        Kdiga(point="adversarial", eps=8)
    assert Adversarial(eps=8, norm=Norm.L2).eps == 8 and SmoothAdv(eps=3).eps == 3
    with pytest.raises(InputError, match="covers the whole image box"):
        CertifyConfig(eps="1/255").at(Epsilon.parse("8"))
    (tmp_path / "c.yaml").write_text("out: x\nobjective: {kind: adversarial, eps: 8}\n")
    with pytest.raises(InputError, match=r"c.yaml: .*did you mean 8/255"):
        read(tmp_path / "c.yaml", TrainJob)


# a teacher whose classes are in another order


def rolled(model: nn.Module) -> nn.Module:
    """A network with its classes moved by one."""
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    order = torch.arange(last.out_features).roll(1)
    last.weight.data, last.bias.data = last.weight.data[order], last.bias.data[order]
    return model


def spread(model: nn.Module) -> torch.Tensor:
    """Images of which the network gives about as many to each class: its biases are moved."""
    x, _ = samples(200)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.bias -= model(x).mean(0)
    return x


def test_a_teacher_with_classes_in_another_order_is_warned_of_and_logged(tmp_path: Path) -> None:
    teacher = plain(3)
    x = spread(teacher)
    y = teacher(x).argmax(1)
    for changed, expected in ((teacher, 0), (rolled(copy.deepcopy(teacher)), 1)):
        listener, out = Listener(), tmp_path / str(expected)
        settings = {"validation": (x, y), "out": out, "reporter": listener, "recipe": Recipe(epochs=1)}
        train(plain(1), (x, y), Kd(), teacher=changed, **settings)
        said = [text for text in listener.warnings if "the teacher's clean accuracy 0.0% is near chance" in text]
        assert len(said) == expected, listener.warnings
        record = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
        assert record["validation"]["teacher_clean"] == (0.0 if expected else 1.0)
        assert not said or "In the network's own order 100.0% are right: class 0 of the data is its class 1" in said[0]
