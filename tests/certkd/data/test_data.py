"""Data sets: ranges, splits, what is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from certkd.config.settings import DataConfig
from certkd.data.sources import load
from certkd.data.splits import SPLITS, STATISTICS, DataSet, Split
from verifiers.core.errors import InputError

Arrays = dict[str, np.ndarray]


def digits(seed: int = 0) -> DataSet:
    """The digits, cut by a seed."""
    return load(DataConfig(seed=seed))


def all_images(split: Split) -> torch.Tensor:
    """Every image of a split."""
    return split.images[torch.arange(len(split))]


def refusal(config: DataConfig) -> str:
    """The one line that refuses a data set."""
    with pytest.raises(InputError) as caught:
        load(config)
    assert "\n" not in str(caught.value), "a refusal must be one line"
    return str(caught.value)


def test_digits_are_1257_180_360_grey_8x8_images() -> None:
    data = digits()
    assert {name: len(split) for name, split in data.splits.items()} == dict(zip(SPLITS, (1257, 180, 360), strict=True))
    assert (data.classes, data.shape, data.statistics) == (10, (1, 8, 8), ((), ()))
    assert data.called(7) == "7"
    for split in data.splits.values():
        images = all_images(split)
        assert images.dtype == torch.float32 and images.shape == (len(split), 1, 8, 8)
        assert (float(images.min()), float(images.max())) == (0.0, 1.0), "pixels are in [0, 1] and reach both ends"
        assert set(split.labels.tolist()) == set(range(10)), "every split holds every class"


def test_digits_are_cut_without_overlap_and_without_loss() -> None:
    indices = torch.cat([split.indices for split in digits().splits.values()])
    assert sorted(indices.tolist()) == list(range(1797)), "each image belongs to exactly one split"


def test_digits_indices_and_labels_are_those_of_the_source() -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    for name, split in digits(3).splits.items():
        assert torch.equal(split.labels, torch.tensor(source.target)[split.indices]), name
        expected = torch.tensor(source.images / 16).float()[split.indices][:, None]
        assert torch.equal(all_images(split), expected), f"{name}: the index must name the image in the source"


def test_the_seed_alone_fixes_the_splits() -> None:
    torch.manual_seed(1)
    first = digits(5)
    torch.manual_seed(2)
    np.random.seed(3)
    again, other = digits(5), digits(6)
    for name in SPLITS:
        assert torch.equal(first.splits[name].indices, again.splits[name].indices), f"{name} differs with the same seed"
        assert not torch.equal(first.splits[name].indices, other.splits[name].indices), f"{name}: the seed is ignored"


def test_an_image_does_not_depend_on_its_batch() -> None:
    split = digits().splits["test"]
    rows = torch.tensor([7, 3, 3, 200])
    together = split.images[rows]
    for place, row in enumerate(rows.tolist()):
        assert torch.equal(together[place], split.images[torch.tensor([row])][0])
    images, labels = split.batch(rows, torch.device("cpu"))
    assert torch.equal(images, together) and torch.equal(labels, split.labels[rows])


def test_taking_rows_twice_keeps_images_labels_and_indices_together() -> None:
    split = digits().splits["train"]
    rows, again = torch.tensor([10, 4, 900, 17]), torch.tensor([3, 0])
    taken = split.take(rows).take(again)
    expected = rows[again]
    assert len(taken) == len(taken.images) == 2
    assert torch.equal(taken.indices, split.indices[expected]) and torch.equal(taken.labels, split.labels[expected])
    assert torch.equal(all_images(taken), split.images[expected])


@pytest.mark.parametrize(("typed", "near"), [("digit", "digits"), ("CIFAR10", "cifar10"), ("zzz", None)])
def test_an_unknown_name_suggests_a_known_one(typed: str, near: str | None) -> None:
    message = refusal(DataConfig(name=typed))
    assert repr(typed) in message
    assert (f"Did you mean {near!r}?" if near else "Known: digits, mnist,") in message, message


@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagenet", "folder"])
def test_absent_data_says_where_it_is_looked_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CERTKD_DATA", raising=False)
    message = refusal(DataConfig(name=name))
    assert name in message and "--data-root" in message and "CERTKD_DATA" in message, message
    assert str(tmp_path / "none") in refusal(DataConfig(name=name, root=str(tmp_path / "none")))
    monkeypatch.setenv("CERTKD_DATA", str(tmp_path))
    assert str(tmp_path) in refusal(DataConfig(name=name)), "an empty folder must be named"


def test_an_empty_folder_tells_how_to_get_mnist(tmp_path: Path) -> None:
    message = refusal(DataConfig(name="mnist", root=str(tmp_path)))
    assert "--data-root" in message and "--download" in message, message


def test_damaged_mnist_is_named(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x05abc")
    message = refusal(DataConfig(name="mnist", root=str(tmp_path)))
    assert "mnist" in message and str(tmp_path) in message, message


# .npz


def arrays(count: int = 20, **changes: np.ndarray | None) -> Arrays:
    """Arrays of a good archive, with some replaced or, for None, left out."""
    random = np.random.default_rng(0)
    good = {
        "x_train": random.integers(0, 256, (count, 1, 6, 6), dtype=np.uint8),
        "y_train": np.arange(count) % 3,
        "x_test": random.integers(0, 256, (8, 1, 6, 6), dtype=np.uint8),
        "y_test": np.arange(8) % 3,
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def saved(folder: Path, content: Arrays) -> DataConfig:
    """A .npz file with these arrays."""
    path = folder / "mine.npz"
    np.savez(path, **content)
    return DataConfig(name=str(path))


def test_bytes_in_an_npz_become_pixels(tmp_path: Path) -> None:
    content = arrays(30)
    data = load(saved(tmp_path, content))
    assert (data.classes, data.shape) == (3, (1, 6, 6))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 27, "validation": 3, "test": 8}
    for name, key in (("train", "train"), ("validation", "train"), ("test", "test")):
        split = data.splits[name]
        expected = torch.tensor(content[f"x_{key}"]).float()[split.indices] / 255
        assert torch.equal(all_images(split), expected), f"{name}: pixels are bytes / 255"
        assert torch.equal(split.labels, torch.tensor(content[f"y_{key}"])[split.indices])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_in_an_npz_stay_as_they_are(tmp_path: Path, kind: type) -> None:
    x = np.linspace(0, 1, 8 * 36).reshape(8, 6, 6).astype(kind)
    data = load(saved(tmp_path, arrays(x_train=x, y_train=np.arange(8) % 3, x_test=x)))
    assert data.shape == (1, 6, 6), "grey images without a channel axis get one"
    assert torch.equal(all_images(data.splits["test"]), torch.tensor(x.astype(np.float32))[:, None])


def test_an_npz_is_found_below_the_root(tmp_path: Path) -> None:
    saved(tmp_path, arrays())
    assert load(DataConfig(name="mine.npz", root=str(tmp_path))).classes == 3


WRONG: dict[str, tuple[dict[str, np.ndarray | None], str]] = {
    "an array is missing": ({"y_test": None}, "must hold x_test and y_test, and x_train and y_train to train with; it"),
    "signed integers": ({"x_train": np.zeros((20, 1, 6, 6), np.int64)}, "x_train must be bytes, or floats"),
    "pixels above one": ({"x_test": np.full((8, 1, 6, 6), 2.0)}, "got float64 from 2 to 2: divide by 255"),
    "pixels below zero": ({"x_test": np.full((8, 1, 6, 6), -0.1)}, "got float64 from -0.1"),
    "not a number": ({"x_test": np.full((8, 1, 6, 6), np.nan)}, "x_test must be bytes, or floats"),
    "too few labels": ({"y_test": np.zeros(7, int)}, "y_test must be 8 class numbers"),
    "labels as shares": ({"y_test": np.full(8, 0.5)}, "y_test must be 8 class numbers, one per image; got 0.5"),
    "no class at all": ({"y_test": np.zeros((8, 3), int)}, "y_test must be 8 class numbers"),
    "negative labels": ({"y_test": np.full(8, -1)}, "y_test must be 8 class numbers"),
    "other test shape": ({"x_test": np.zeros((8, 1, 5, 5))}, "training images have shape (1, 6, 6), test images (1, 5"),
    "no images": ({"x_test": np.zeros((0, 1, 6, 6)), "y_test": np.zeros(0, int)}, "x_test must hold images"),
    "a single image": ({"x_train": np.zeros((1, 1, 6, 6)), "y_train": np.zeros(1, int)}, "1 training and 8 test"),
    "numbers instead of images": ({"x_train": np.zeros(20)}, "x_train must hold images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_npz_is_refused(tmp_path: Path, case: str) -> None:
    changes, words = WRONG[case]
    message = refusal(saved(tmp_path, arrays(**changes)))
    assert words in message, f"{case}: {message}"
    assert "mine.npz" in message, "the file must be named"


def test_pickled_objects_in_an_npz_are_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(trace),)

    evil = np.empty(20, object)
    evil[:] = [Evil() for _ in range(20)]
    path = tmp_path / "mine.npz"
    np.savez(path, allow_pickle=True, **arrays(y_train=evil))
    assert "not a plain .npz file" in refusal(DataConfig(name=str(path)))
    assert not trace.exists(), "reading the archive ran its code"


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"PK\x03\x04 cut off", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    assert "not a plain .npz file" in refusal(DataConfig(name=str(path)))


def test_a_single_array_a_cut_archive_and_no_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    assert "File is not a zip file" in refusal(DataConfig(name=str(path)))
    saved(tmp_path, arrays())
    path.write_bytes(path.read_bytes()[:-200])
    assert "not a plain .npz file" in refusal(DataConfig(name=str(path)))
    assert "no such file" in refusal(DataConfig(name=str(tmp_path / "none.npz")))


@pytest.mark.parametrize("count", [2, 10, 55, 1000])
def test_validation_is_a_tenth_and_never_overlaps_train(tmp_path: Path, count: int) -> None:
    content = arrays(count, x_train=np.zeros((count, 2), np.float32), x_test=np.zeros((8, 2), np.float32))
    for seed in range(3):
        config = saved(tmp_path, content).model_copy(update={"seed": seed})
        splits = load(config).splits
        train, validation = set(splits["train"].indices.tolist()), set(splits["validation"].indices.tolist())
        assert not train & validation, f"seed {seed}: an image is used to train and to select"
        assert train | validation == set(range(count)), f"seed {seed}: an image was lost"
        assert len(validation) == max(1, count // 10)


# folders of images


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train and val with two classes; images of several sizes, one of them grey."""
    root, random = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                shape = (20 + 7 * i, 50 - 5 * i) if i == 0 else (20 + 7 * i, 50 - 5 * i, 3)
                pixels = random.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def test_folders_give_colour_images_of_one_size(folders: Path) -> None:
    data = load(DataConfig(name="folder", root=str(folders), image_size=24))
    assert (data.classes, data.shape) == (2, (3, 24, 24))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 11, "validation": 1, "test": 6}
    for name, split in data.splits.items():
        images = all_images(split)
        assert images.shape == (len(split), 3, 24, 24), f"{name}: greyscale and odd sizes must fit too"
        assert float(images.min()) >= 0 and float(images.max()) <= 1 and float(images.max()) > 0.5
    assert data.splits["test"].labels.tolist() == [0, 0, 0, 1, 1, 1], "classes are numbered by name"
    assert [data.called(number) for number in (0, 1, 2)] == ["cat", "dog", "2"], "a class without a name is its number"
    grey = data.splits["test"].images[torch.tensor([0])][0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2]), "a grey image has three equal channels"


def test_a_folder_image_does_not_depend_on_its_batch(folders: Path) -> None:
    images = load(DataConfig(name="folder", root=str(folders), image_size=16)).splits["test"].images
    together = images[torch.tensor([5, 0, 2])]
    for place, row in enumerate((5, 0, 2)):
        assert torch.equal(together[place], images[torch.tensor([row])][0])


def test_folders_without_parts_or_with_other_classes_are_refused(tmp_path: Path) -> None:
    config = DataConfig(name="folder", root=str(tmp_path))
    assert "must hold folders train and val" in refusal(config)
    for part, name in (("train", "cat"), ("val", "dog")):
        (tmp_path / part / name).mkdir(parents=True)
    assert "cannot read images" in refusal(config), "class folders without images"
    for part, name in (("train", "cat"), ("val", "dog")):
        Image.new("RGB", (4, 4)).save(tmp_path / part / name / "0.png")
    assert "different class folders" in refusal(config)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (4, 4)).save(tmp_path / part / "cat" / f"{i}.png")
    (tmp_path / "val" / "cat" / "1.png").write_bytes(b"no image")
    test = load(DataConfig(name="folder", root=str(tmp_path), image_size=8)).splits["test"]
    with pytest.raises(InputError, match=r"val/cat/1\.png is not an image: cannot identify"):
        all_images(test)


# published data sets, where they are


def published(name: str) -> DataSet:
    """A data set below CERTKD_DATA; the test is skipped where it is absent."""
    folder = {"mnist": "MNIST", "cifar10": "cifar-10-batches-py"}[name]
    if not (Path(os.environ.get("CERTKD_DATA", "none")) / folder).is_dir():
        pytest.skip(f"no {folder} below CERTKD_DATA")
    return load(DataConfig(name=name))


def train_images(data: DataSet) -> tuple[torch.Tensor, torch.Tensor]:
    """All training images and labels, train and validation together, in the order of the source."""
    parts = [data.splits[name] for name in ("train", "validation")]
    order = torch.cat([part.indices for part in parts]).argsort()
    images, labels = torch.cat([all_images(part) for part in parts]), torch.cat([part.labels for part in parts])
    return images[order], labels[order]


def test_mnist_is_the_published_one() -> None:
    data = published("mnist")
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 55000,
        "validation": 5000,
        "test": 10000,
    }
    assert (data.classes, data.shape) == (10, (1, 28, 28))
    images, labels = train_images(data)
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "first training labels"
    assert data.splits["test"].labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9], "first test labels"
    assert data.statistics == STATISTICS["mnist"]
    assert images.double().mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert images.double().std().item() == pytest.approx(0.3081, abs=1e-4)


@pytest.mark.slow
def test_cifar10_is_the_published_one() -> None:
    data = published("cifar10")
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 45000,
        "validation": 5000,
        "test": 10000,
    }
    assert (data.classes, data.shape) == (10, (3, 32, 32))
    assert data.splits["test"].labels.bincount().tolist() == [1000] * 10, "1000 test images a class"
    images, labels = train_images(data)
    assert labels.bincount().tolist() == [5000] * 10, "5000 training images a class"
    means, deviations = data.statistics
    for channel in range(3):
        pixels = images[:, channel].double()
        assert pixels.mean().item() == pytest.approx(means[channel], abs=1e-4), f"mean of channel {channel}"
        assert pixels.std().item() == pytest.approx(deviations[channel], abs=1e-4), f"deviation of channel {channel}"


def test_tiny_imagenet_folders_load() -> None:
    root = Path(os.environ.get("CERTKD_DATA", "none")) / "tiny-imagenet-10"
    if not root.is_dir():
        pytest.skip("no tiny-imagenet-10 below CERTKD_DATA")
    data = load(DataConfig(name="folder", root=str(root), image_size=32))
    assert (data.classes, data.shape, len(data.splits["test"])) == (10, (3, 32, 32), 500)
    images = all_images(data.splits["test"])
    assert images.shape == (500, 3, 32, 32) and float(images.min()) >= 0 and float(images.max()) <= 1
