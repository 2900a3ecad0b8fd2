"""Data sets as they are published: each layout, made here of synthetic arrays, with the pixels and labels it means."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from certkd.config.settings import DataConfig
from certkd.data.named_arrays import ENOUGH
from certkd.data.sources import load
from certkd.data.splits import DataSet
from verifiers.core.errors import InputError

RANDOM = np.random.default_rng(0)
#: Images (n, height, width, channels) and their classes.
TRAIN, TEST = (RANDOM.integers(0, 256, (count, 8, 6, 3), dtype=np.uint8) for count in (40, 10))
Y_TRAIN, Y_TEST = np.arange(40) % 5, np.arange(10) % 5


def pixels(data: DataSet, split: str = "test") -> np.ndarray:
    """All images of a split, in the order of their source."""
    part = data.splits[split]
    return part.images[part.indices.argsort()].numpy()


def planes(images: np.ndarray) -> np.ndarray:
    """Bytes (n, height, width, channels) as float32 (n, channels, height, width) in [0, 1]."""
    return (images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)).astype(np.float32)


def named(*names: str) -> dict[str, np.ndarray]:
    """The four arrays under four names: images to train, their labels, images to test, their labels."""
    return dict(zip(names, (TRAIN, Y_TRAIN, TEST, Y_TEST), strict=True))


KERAS = named("x_train", "y_train", "x_test", "y_test")
ARCHIVES: dict[str, dict[str, np.ndarray]] = {
    "keras": KERAS,
    "keras, labels in a column": KERAS | {"y_train": Y_TRAIN[:, None].astype(np.uint8), "y_test": Y_TEST[:, None]},
    "keras, one-hot": KERAS | {"y_train": np.eye(5, dtype=np.float32)[Y_TRAIN], "y_test": np.eye(5)[Y_TEST]},
    "labels as floats": KERAS | {"y_train": Y_TRAIN.astype(float), "y_test": Y_TEST.astype(np.float32)},
    "medmnist": named("train_images", "train_labels", "test_images", "test_labels")
    | {"val_images": TEST, "val_labels": Y_TEST[:, None]},
    "capitals": named("X_train", "Y_train", "X_test", "Y_test"),
    "camel case": named("trainX", "trainY", "testX", "testY"),
    "long words": named("training-images", "training-labels", "testing-images", "testing-labels"),
    "data and targets": named("train_data", "train_targets", "test_data", "test_targets"),
    "channels first": {
        key: (value.transpose(0, 3, 1, 2) if value.ndim == 4 else value) for key, value in KERAS.items()
    },
    "floats": {key: (value.astype(np.float32) / 255 if value.ndim == 4 else value) for key, value in KERAS.items()},
    "doubles": {key: (value / 255.0 if value.ndim == 4 else value) for key, value in KERAS.items()},
    "16 bits": {key: (value.astype(np.uint16) * 257 if value.ndim == 4 else value) for key, value in KERAS.items()},
    "other arrays beside": KERAS | {"classes_of_x": np.array(["a"]), "mean": np.zeros(3)},
    "a test split alone": {"x_test": TEST, "y_test": Y_TEST},
    "x and y alone": {"x": TEST, "y": Y_TEST[:, None]},
    "images and labels alone": {"images": TEST, "labels": Y_TEST},
    "validation instead of test": {"x_train": TRAIN, "y_train": Y_TRAIN, "x_val": TEST, "y_val": Y_TEST},
    "fortran order": {key: np.asfortranarray(value) for key, value in KERAS.items()},
    "words run together": named("trainx", "trainy", "testx", "testy"),
    "short splits": named("Xtr", "Ytr", "Xte", "Yte"),
    "sets": named("train_set_x", "train_set_y", "test_set_x", "test_set_y"),
    "no names": {"arr_0": TEST, "arr_1": Y_TEST},
    "big endian labels": KERAS | {"y_test": Y_TEST.astype(">i4")},
}


def saved(path: Path, arrays: dict[str, np.ndarray]) -> DataConfig:
    """An archive of arrays."""
    np.savez(path, **arrays)
    return DataConfig(name=str(path))


@pytest.mark.parametrize("layout", ARCHIVES)
def test_arrays_under_published_names(layout: str, tmp_path: Path) -> None:
    arrays = ARCHIVES[layout]
    data = load(saved(tmp_path / "data.npz", arrays))
    assert (data.shape, data.classes) == ((3, 8, 6), 5), layout
    assert np.allclose(pixels(data), planes(TEST), rtol=0, atol=1e-7), f"{layout}: other pixels"
    assert data.splits["test"].labels.tolist() == Y_TEST.tolist(), layout
    told = any("(height, width, channels)" in remark for remark in data.remarks)
    assert told == (layout != "channels first"), f"{layout}: channels last must be said, and nothing else"
    if len(arrays) > 2:
        whole = torch.cat([data.splits[name].labels for name in ("train", "validation")])
        own = layout == "medmnist"
        assert len(whole) == (50 if own else 40) and len(data.splits["validation"]) == (10 if own else 4)
    else:
        assert list(data.splits) == ["test"]
    assert any("16-bit" in remark for remark in data.remarks) == (layout == "16 bits")


@pytest.mark.parametrize(
    ("sides", "expected", "told"),
    [
        ((2, 32), (2, 32), "read as signals (channels, length); pictures of these sides are saved as (1, 2, 32)"),
        ((1, 9), (1, 9), "read as signals (channels, length)"),
        ((100, 12), (12, 100), "read as signals (length, channels)"),
        ((8, 8), (1, 8, 8), ""),
        ((17, 99), (1, 17, 99), ""),
        ((7, 5), (1, 7, 5), ""),
    ],
    ids=str,
)
def test_two_axes_are_a_grey_picture_or_a_signal(
    sides: tuple[int, ...], expected: tuple[int, ...], told: str, tmp_path: Path
) -> None:
    given = RANDOM.random((6, *sides), dtype=np.float32)
    data = load(saved(tmp_path / "data.npz", {"x_test": given, "y_test": np.arange(6) % 3}))
    assert data.shape == expected and told in " ".join(data.remarks) and len(data.remarks) == bool(told)
    own = given.transpose(0, 2, 1) if expected == sides[::-1] else given
    assert np.array_equal(pixels(data).reshape(own.shape), own)


def test_four_channels_last_are_refused(tmp_path: Path) -> None:
    """(8, 6, 4) would be read as eight channels."""
    config = saved(tmp_path / "data.npz", {"x_test": np.concatenate([TEST, TEST[..., :1]], 3), "y_test": Y_TEST})
    with pytest.raises(InputError, match=r"looks like \(height, width, 4\): save the colours alone"):
        load(config)
    first = {"x_test": np.concatenate([TEST, TEST[..., :1]], 3).transpose(0, 3, 1, 2), "y_test": Y_TEST}
    assert load(saved(tmp_path / "first.npz", first)).shape == (4, 8, 6)


def test_classes_that_count_from_one_are_said(tmp_path: Path) -> None:
    labels = np.arange(ENOUGH * 3) % 2 + 1
    images = np.resize(TEST, (len(labels), *TEST.shape[1:]))
    data = load(saved(tmp_path / "data.npz", {"x_test": images, "y_test": labels}))
    assert any("y_test: no image is of class 0; if the labels count from 1" in remark for remark in data.remarks)
    few = load(saved(tmp_path / "few.npz", {"x_test": images[1:], "y_test": labels[1:]}))
    assert not any("count from 1" in remark for remark in few.remarks), "a class may be missing by chance"


@pytest.mark.parametrize("layout", ["keras", "capitals", "a test split alone"])
def test_a_folder_of_npy_files_is_read_like_an_archive(layout: str, tmp_path: Path) -> None:
    for key, array in ARCHIVES[layout].items():
        np.save(tmp_path / f"{key}.npy", array)
    data = load(DataConfig(name=str(tmp_path)))
    assert np.array_equal(pixels(data), planes(TEST)) and data.splits["test"].labels.tolist() == Y_TEST.tolist()


def test_the_official_validation_split_is_used(tmp_path: Path) -> None:
    data = load(saved(tmp_path / "data.npz", ARCHIVES["medmnist"]))
    assert np.array_equal(pixels(data, "validation"), planes(TEST)) and len(data.splits["train"]) == 40


def test_grey_images_and_flat_rows_keep_their_shape(tmp_path: Path) -> None:
    grey = TEST[..., 0]
    for images, shape in ((grey, (1, 8, 6)), (grey[..., None], (1, 8, 6)), (grey.reshape(10, 48), (48,))):
        data = load(saved(tmp_path / "data.npz", {"x_test": images, "y_test": Y_TEST}))
        assert data.shape == shape
        assert np.array_equal(pixels(data).reshape(10, -1), grey.reshape(10, -1).astype(np.float32) / np.float32(255))


# corrupted images: NAME.npy and labels.npy


@pytest.fixture
def corrupted(tmp_path: Path) -> Path:
    """Five severities of ten images each."""
    for name in ("fog", "jpeg_compression"):
        np.save(tmp_path / f"{name}.npy", np.concatenate([TEST // (severity + 1) for severity in range(5)]))
    np.save(tmp_path / "labels.npy", np.tile(Y_TEST, 5).astype(np.uint8))
    return tmp_path


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_severity_of_corrupted_images(corrupted: Path, severity: int) -> None:
    data = load(DataConfig(name=f"{corrupted}/fog.npy:{severity}"))
    split = data.splits["test"]
    assert np.array_equal(split.images[torch.arange(10)].numpy(), planes(TEST // severity))
    assert split.labels.tolist() == Y_TEST.tolist()
    assert split.indices.tolist() == list(range(10 * severity - 10, 10 * severity)), "an index is the one in the file"
    assert f"severity {severity} of fog: its images {10 * severity - 10} to {10 * severity - 1}" in data.remarks


def test_all_severities_and_data_below_the_root(corrupted: Path) -> None:
    data = load(DataConfig(name=f"{corrupted.name}/fog.npy", root=str(corrupted.parent)))
    assert len(data.splits["test"]) == 50 and data.classes == 5
    assert len(load(DataConfig(name=f"{corrupted.name}/fog.npy:2", root=str(corrupted.parent))).splits["test"]) == 10


# folders of images


def write(path: Path, image: np.ndarray) -> None:
    """An image file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def folders(root: Path, places: dict[str, int], names: list[str], image: Callable[[int], np.ndarray]) -> Path:
    """Images in class folders below places ("train", ""), so many a class, the k-th one made by ``image``."""
    for place, count in places.items():
        for name in names:
            for k in range(count):
                write(root / place / name / f"{k}.png", image(k))
    return root


def colour(k: int) -> np.ndarray:
    """The k-th test image."""
    return TEST[k]


@pytest.mark.parametrize("size", ["as-is", "8,6", [8, 6]], ids=str)
def test_images_of_the_right_size_keep_every_bit(tmp_path: Path, size: Any) -> None:
    root = folders(tmp_path, {"train": 3, "val": 2}, ["cat", "dog"], colour)
    data = load(DataConfig(name="folder", root=str(root), image_size=size))
    assert (data.shape, data.classes, data.remarks) == ((3, 8, 6), 2, ())
    assert np.array_equal(pixels(data), planes(TEST[[0, 1, 0, 1]])) and data.splits["test"].labels.tolist() == [
        0,
        0,
        1,
        1,
    ]


def test_images_of_another_size_are_resampled_as_they_always_were_and_it_is_said(tmp_path: Path) -> None:
    from torchvision import transforms

    root = folders(tmp_path, {"train": 3, "val": 1}, ["cat"], colour)
    usual = transforms.Compose([transforms.Resize(round(16 * 256 / 224)), transforms.CenterCrop(16)])
    expected = np.asarray(usual(Image.fromarray(TEST[0])))[None]
    data = load(DataConfig(name="folder", root=str(root), image_size=16))
    assert np.array_equal(pixels(data), planes(expected)), "certificates for such data must stay the same"
    assert data.remarks == ("images of other sizes than 16x16, like 8x6, are resized to cover 18x18 and cropped",)
    wide = load(DataConfig(name="folder", root=str(root), image_size="4,12"))
    assert wide.shape == (3, 4, 12) and pixels(wide).shape == (1, 3, 4, 12)


def test_grey_images_stay_grey_unless_colours_are_wanted(tmp_path: Path) -> None:
    root = folders(tmp_path, {"train": 3, "val": 2}, ["0", "1"], lambda k: TEST[k, :, :, 0])
    grey = load(DataConfig(name="folder", root=str(root), image_size="as-is"))
    assert grey.shape == (1, 8, 6) and np.array_equal(pixels(grey)[:2], planes(TEST[:2, :, :, :1]))
    repeated = load(DataConfig(name="folder", root=str(root), image_size="as-is", channels=3))
    assert repeated.shape == (3, 8, 6) and np.array_equal(pixels(repeated)[:2], planes(TEST[:2, :, :, [0, 0, 0]]))


def test_16_bit_images_are_divided_by_65535(tmp_path: Path) -> None:
    deep = TEST[..., 0].astype(np.uint16) * 257
    root = folders(tmp_path, {"train": 3, "val": 2}, ["a"], lambda k: deep[k])
    data = load(DataConfig(name="folder", root=str(root), image_size="as-is"))
    assert np.allclose(pixels(data), planes(TEST[:2, :, :, :1]), rtol=0, atol=1e-7)
    assert data.remarks == ("images of 16 bits: divided by 65535",)
    enlarged = pixels(load(DataConfig(name="folder", root=str(root), image_size=12)))
    assert enlarged.shape == (2, 1, 12, 12) and enlarged.min() >= 0 and 0.5 < enlarged.max() <= 1


def deep_png(path: Path) -> None:
    """A PNG file of 16 bits per colour, which PIL cuts off to 8."""
    rows = b"".join(b"\0" + np.full((6, 3), 1000, ">u2").tobytes() for _ in range(8))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 6, 8, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def test_deep_colours_and_colours_among_grey_images_are_refused(tmp_path: Path) -> None:
    root = folders(tmp_path, {"train": 3, "val": 2}, ["a"], colour)
    deep_png(root / "val" / "a" / "1.png")
    with pytest.raises(InputError, match=r"val/a/1.png: it has more than 8 bits per colour.*save it with 8 bits"):
        pixels(load(DataConfig(name="folder", root=str(root), image_size="as-is")))
    for depth in (np.zeros((8, 6), np.int32), np.zeros((8, 6), np.float32)):
        Image.fromarray(depth).save(root / "val" / "a" / "1.tif")
        (root / "val" / "a" / "1.png").unlink(missing_ok=True)
        with pytest.raises(InputError, match=r"1.tif: it has more than 8 bits"):
            pixels(load(DataConfig(name="folder", root=str(root), image_size="as-is")))
    with pytest.raises(InputError, match=r"0.png is in colour, and grey images \(1 channel\) are wanted: convert"):
        pixels(load(DataConfig(name="folder", root=str(root), image_size="as-is", channels=1)))


def test_other_modes_become_colours(tmp_path: Path) -> None:
    root = folders(tmp_path, {"train": 3, "val": 1}, ["a"], colour)
    whole = Image.fromarray(TEST[0])
    whole.convert("RGBA").save(root / "val" / "a" / "0.png")
    data = load(DataConfig(name="folder", root=str(root), image_size="as-is"))
    assert np.array_equal(pixels(data), planes(TEST[:1]))
    assert data.remarks == ("images with transparency are read without it",)
    palette = whole.quantize(8)
    palette.save(root / "val" / "a" / "0.png")
    expected = planes(np.asarray(palette.convert("RGB"))[None])
    assert np.array_equal(pixels(load(DataConfig(name="folder", root=str(root), image_size="as-is"))), expected)


@pytest.mark.parametrize(
    ("names", "order", "words"),
    [
        ([str(k) for k in range(11)], list(range(11)), "in the order of their numbers, not of their names"),
        ([f"{k:02d}" for k in range(11)], list(range(11)), ""),
        (["1", "2", "10"], [0, 1, 2], "numbered from 0 in the order of their numbers: '1' is class 0"),
        (["n01", "n02"], [0, 1], ""),
        (["c1", "c2", "c10"], [0, 2, 1], "in the order of their names: 'c10' is class 1"),
    ],
)
def test_numbers_of_classes(tmp_path: Path, names: list[str], order: list[int], words: str) -> None:
    shades = {name: 20 * k for k, name in enumerate(names)}
    for place in ("train", "val"):
        for name, shade in shades.items():
            for k in range(2):
                write(tmp_path / place / name / f"{k}.png", np.full((4, 4, 3), shade, np.uint8))
    data = load(DataConfig(name="folder", root=str(tmp_path), image_size="as-is"))
    split = data.splits["test"]
    shade = (255 * split.images[torch.arange(len(split))][:, 0, 0, 0]).round().int().tolist()
    assert dict(zip(shade, split.labels.tolist(), strict=True)) == {20 * k: label for k, label in enumerate(order)}
    assert [words in remark for remark in data.remarks] == ([True] if words else []), data.remarks


def test_a_test_split_alone_is_a_folder_of_class_folders(tmp_path: Path) -> None:
    root = folders(tmp_path, {"": 2}, ["cat", "dog"], colour)
    (root / ".hidden").mkdir()
    for config in (
        DataConfig(name="folder", root=str(root), image_size="as-is"),
        DataConfig(name=str(root), image_size=8),
    ):
        data = load(config)
        assert list(data.splits) == ["test"] and data.splits["test"].labels.tolist() == [0, 0, 1, 1]


def test_folders_in_class_folders_are_said_where_they_could_be_classes(tmp_path: Path) -> None:
    for name in ("fog", "snow"):
        folders(tmp_path / name, {"1": 2, "2": 2}, ["a", "b"], colour)
    data = load(DataConfig(name=str(tmp_path), image_size="as-is"))
    assert data.classes == 2 and len(data.remarks) == 1
    assert "hold folders, like fog/1, and each of their images is of class 'fog'" in data.remarks[0]
    one = load(DataConfig(name=str(tmp_path / "fog" / "1"), image_size="as-is"))
    assert one.classes == 2 and one.remarks == ()


def test_a_test_split_may_have_fewer_classes_than_the_training_images(tmp_path: Path) -> None:
    folders(tmp_path, {"train": 2}, ["a", "b", "c"], colour)
    folders(tmp_path, {"test": 2}, ["c"], colour)
    data = load(DataConfig(name="folder", root=str(tmp_path), image_size="as-is"))
    assert data.classes == 3 and data.splits["test"].labels.tolist() == [2, 2]


LISTS: dict[str, tuple[str, str, str]] = {
    "tiny imagenet": ("val", "val_annotations.txt", "{name}\t{label}\t0\t0\t62\t62\n"),
    "csv": ("val", "labels.csv", "{name},{label}\n"),
    "csv of paths": ("test", "labels.csv", "images/{name}, {label}\n"),
    "blanks": ("test", "labels.txt", "{name} {label}\n"),
    "other columns between": ("test", "annotations.csv", "{name},8,6,{label},0\n"),
    "semicolons": ("val", "labels.csv", "{name};0;0;{label};x\n"),
    "names without endings": ("test", "labels.csv", "{stem},{label}\n"),
}


@pytest.mark.parametrize("layout", LISTS)
@pytest.mark.parametrize("below", ["", "images"])
def test_images_without_class_folders_have_a_list_of_labels(tmp_path: Path, layout: str, below: str) -> None:
    place, file, line = LISTS[layout]
    folders(tmp_path, {"train": 2}, ["n01", "n02", "n03"], colour)
    labels = ["n03", "n01", "n02", "n01"]
    for k in range(4):
        write(tmp_path / place / below / f"val_{k}.png", TEST[k])
    header = "filename,label\n" if file.endswith(".csv") else ""
    if line.count(",") == 4 or ";" in line:
        header = "Filename,width,height,ClassId,rest\n".replace(",", ";" if ";" in line else ",")
    text = header + "".join(
        line.format(name=f"val_{k}.png", stem=f"val_{k}", label=label) for k, label in enumerate(labels)
    )
    (tmp_path / place / file).write_text(text)
    data = load(DataConfig(name="folder", root=str(tmp_path), image_size="as-is"))
    assert data.splits["test"].labels.tolist() == [2, 0, 1, 0] and np.array_equal(pixels(data), planes(TEST[:4]))


def test_a_list_of_numbers_means_class_numbers(tmp_path: Path) -> None:
    for k, _ in enumerate("abc"):
        write(tmp_path / "test" / f"{k}.png", TEST[k])
    (tmp_path / "test" / "labels.csv").write_text("0.png,7\n1.png,2\n2.png,10\n")
    data = load(DataConfig(name="folder", root=str(tmp_path), image_size="as-is"))
    assert data.splits["test"].labels.tolist() == [7, 2, 10] and data.classes == 11


def test_a_test_folder_without_labels_gives_way_to_the_validation_images(tmp_path: Path) -> None:
    folders(tmp_path, {"train": 2, "val": 2}, ["a", "b"], colour)
    write(tmp_path / "test" / "images" / "test_0.png", TEST[9])
    data = load(DataConfig(name="folder", root=str(tmp_path), image_size="as-is"))
    assert data.splits["test"].labels.tolist() == [0, 0, 1, 1] and np.array_equal(pixels(data)[:2], planes(TEST[:2]))
    assert data.remarks == ("test has no class folders and no list of labels: val is used",)


def test_train_val_and_test_are_used_as_they_are_called(tmp_path: Path) -> None:
    folders(tmp_path, {"train": 3, "val": 2, "test": 1}, ["a", "b"], colour)
    data = load(DataConfig(name="folder", root=str(tmp_path), image_size="as-is"))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "validation": 4, "test": 2}


def listed(text: str) -> Callable[[Path], None]:
    """A folder with two images and a list of labels."""

    def make(root: Path) -> None:
        for k in range(2):
            write(root / "val" / f"{k}.png", TEST[k])
        (root / "val" / "labels.csv").write_text(text)

    return make


def two_sizes(root: Path) -> None:
    """Images of two sizes."""
    folders(root, {"train": 2, "val": 2}, ["a"], lambda k: TEST[0, : 8 - k])


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no labels": (
        lambda root: write(root / "test" / "0.png", TEST[0]),
        "test has no class folders: put its images into",
    ),
    "images alone": (lambda root: write(root / "0.png", TEST[0]), "has no class folders: put its images into one"),
    "training alone": (lambda root: folders(root, {"train": 2}, ["a"], colour), "must hold folders train and val"),
    "a list with a strange name": (
        listed("0.png,a\n1.png,a\n7.png,b\n"),
        "labels.csv line 3: the image '7.png' is not",
    ),
    "a list with a name twice": (listed("0.png,a\n1.png,a\n1.png,b\n"), "line 3: the image '1.png' is listed twice"),
    "a list without classes": (listed("0.png\n1.png\n"), "line 1: the image '0.png' has no class"),
    "a list of many columns": (
        listed("file,a,b\n0.png,1,2\n1.png,1,2\n"),
        "which column is the class? Call one of them",
    ),
    "one level too high": (
        lambda root: folders(root / "images", {"": 2}, ["a", "b"], colour),
        "/images has class folders",
    ),
    "one class that holds folders": (
        lambda root: folders(root / "fog", {"1": 2, "2": 2}, ["a", "b"], colour),
        "like fog/1, and fog is the only class: give ",
    ),
    "a list of some": (listed("0.png,a\n"), "lists 1 of 2 images: '1.png' has no label"),
    "no text": (
        lambda root: listed("")(root) or (root / "val/labels.csv").write_bytes(b"\xff\xfe\x00"),
        "it is not UTF-8 text",
    ),
    "several sizes": (two_sizes, "images have several sizes (8x6, 7x6 in "),
    "no such data": (lambda root: None, "must hold folders train and val"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_folders_that_cannot_be_read_as_labelled_images(case: str, tmp_path: Path) -> None:
    make, words = MISTAKES[case]
    make(tmp_path)
    with pytest.raises(InputError) as caught:
        load(DataConfig(name="folder", root=str(tmp_path), image_size="as-is"))
    assert words in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


ARRAY_MISTAKES: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "no labels": (
        {"x_test": TEST},
        "must hold x_test and y_test, and x_train and y_train to train with; it has x_test",
    ),
    "other names": ({"first": TEST, "second": Y_TEST}, "it has first, second"),
    "one image": ({"x_test": TEST[0], "y_test": Y_TEST[:1]}, "(8, 6, 3) looks like one image: save array[None]"),
    "two images": (KERAS | {"test_images": TEST}, "x_test and test_images could both be the test images: keep one"),
    "several classes": ({"x_test": TEST, "y_test": np.ones((10, 14), int)}, "with several classes, or none"),
    "images last": (
        {"X": TEST.transpose(1, 2, 3, 0), "y": Y_TEST},
        "along the last axis: save np.moveaxis(array, -1, 0)",
    ),
    "bytes as floats": ({"x_test": TEST.astype(np.float32), "y_test": Y_TEST}, "float32 from 0 to 255: divide by 255"),
    "bytes as integers": ({"x_test": TEST.astype(int), "y_test": Y_TEST}, "int64 from 0 to 255: divide by 255"),
    "normalised": ({"x_test": TEST / 127.5 - 1, "y_test": Y_TEST}, "map them back with (x + 1) / 2"),
    "names of classes": (
        {"x_test": TEST, "y_test": np.array(["cat", "dog"] * 5)},
        "'y_test.npy' holds text: number the classes 0, 1, 2, ...",
    ),
}


@pytest.mark.parametrize("case", ARRAY_MISTAKES)
def test_archives_that_could_mean_several_things(case: str, tmp_path: Path) -> None:
    arrays, words = ARRAY_MISTAKES[case]
    with pytest.raises(InputError) as caught:
        load(saved(tmp_path / "data.npz", arrays))
    assert words in str(caught.value) and "data.npz" in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fog.npy:6", "a severity is 1 to 5, like "),
        ("fog.npy:x", "a severity is 1 to 5"),
        ("snow.npy:1", "no such file"),
        ("", "holds images in 2 files: name one, like "),
        ("notes.txt", "It is a file: images and labels are read from .npz and .npy files and from folders."),
        ("none.npz", "no such file"),
    ],
)
def test_wrong_names_of_arrays(corrupted: Path, name: str, words: str) -> None:
    (corrupted / "notes.txt").write_text("nothing")
    with pytest.raises(InputError) as caught:
        load(DataConfig(name=str(corrupted / name)))
    assert words in str(caught.value), str(caught.value)


def test_images_without_their_labels_are_refused(corrupted: Path) -> None:
    (corrupted / "labels.npy").unlink()
    with pytest.raises(
        InputError, match=r"fog.npy has images, and their labels are missing: save them in .*labels.npy"
    ):
        load(DataConfig(name=str(corrupted / "fog.npy")))


@pytest.mark.parametrize(
    ("given", "stored"),
    [(32, 32), ("32", 32), ("32,32", 32), ([32, 48], "32,48"), ("32, 48", "32,48"), ("as-is", "as-is")],
)
def test_sizes_as_people_write_them(given: Any, stored: Any) -> None:
    assert DataConfig(image_size=given).image_size == stored
    assert DataConfig(**DataConfig(image_size=given).model_dump()).image_size == stored


@pytest.mark.parametrize("given", [0, -3, "big", "3,4,5", True, 2.5, "as is", None, [0, 4], 10**9])
def test_other_sizes_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match="an image size is a side, H,W or as-is"):
        DataConfig(image_size=given)
