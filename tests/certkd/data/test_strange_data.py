"""Archives, folders and lists from strangers: nothing is executed, and sizes are known before anything is unpacked."""

import io
import os
import pickle
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from certkd.config.settings import DataConfig
from certkd.data import arrays
from certkd.data import images as opening
from certkd.data.arrays import read_array, read_arrays
from certkd.data.folders import View, find
from certkd.data.selection import chosen
from certkd.data.sources import load
from verifiers.core.errors import InputError

# .npz


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    """The header of a .npy entry."""
    content = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY" + version + len(content).to_bytes(2, "little") + content


def described(shape: str, kind: str = "<f4") -> bytes:
    return header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}")


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def archive(path: Path, entry: bytes, compression: int = zipfile.ZIP_DEFLATED, name: str = "x.npy") -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(name, entry)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        b"x" * 100,
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x03\x00" + b"x" * 200,
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        described("(1000000000, 1, 8, 8)"),
        described("(2**40, 2**40)"),
        described("(4611686018427387904, 4, 4)"),
        described("(-1, 4)") + bytes(16),
        described("(4,)") + bytes(12),
        described("(4,)") + bytes(20),
        described("(4,)", "|O") + bytes(32),
        described("(1,)", "|S1000000000") + bytes(1),
        described("(True,)", "[('a', '<f4')]") + bytes(4),
        described("4") + bytes(16),
        described("('a',)"),
        described("(1e3,)"),
        header("(" * 100),
        header("{" * 100),
        header("__import__('os').system('touch executed')"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}") + bytes(4),
        described("()", "<m8[ns]") + bytes(8),
    ],
    ids=range(22),
)
def test_an_entry_that_is_no_array_of_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"e\.npz is not a plain \.npz file"):
        read_arrays(archive(tmp_path / "e.npz", entry), ["x"])
    assert os.listdir(tmp_path) == ["e.npz"]


def test_a_single_array_has_the_size_that_its_header_says(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy(np.arange(3.0)))
    assert read_array(tmp_path / "x.npy").tolist() == [0, 1, 2]
    for content in (
        described("(4,)") + bytes(12),
        described("(2**40, 2**40)"),
        b"",
        b"\x93NUMPY",
        npy(np.array(["a"])),
    ):
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.npy is not a plain \.npy file"):
            read_array(tmp_path / "x.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(InputError, match="it is a device or a pipe"):
        read_array(tmp_path / "pipe.npy")


def test_an_archive_that_unpacks_to_many_times_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "e.npz", npy(np.zeros(10**6, "f4")))
    assert read_arrays(path, ["x"])["x"].shape == (10**6,), "small archives may be as empty as they like"
    monkeypatch.setattr(arrays, "SMALL", 10**6)
    with pytest.raises(InputError, match=r"would unpack to 4000128 bytes, \d{3,4} times its size"):
        read_arrays(path, ["x"])
    stored = archive(tmp_path / "s.npz", npy(np.zeros(10**6, "f4")), zipfile.ZIP_STORED)
    assert len(read_arrays(stored, ["x"])["x"]) == 10**6, "an archive that is as large as its content is no bomb"


def test_an_entry_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "e.npz", npy(np.zeros(1000, "f4")))
    content = bytearray(path.read_bytes())
    size = struct.pack("<L", 128 + 4000)
    place = content.find(size, 30)
    while place >= 0:
        content[place : place + 4] = struct.pack("<L", 128 + 40)
        place = content.find(size, place)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is not a plain \.npz file"):
        read_arrays(path, ["x"])


def test_other_entries_are_not_looked_at(tmp_path: Path) -> None:
    path = archive(tmp_path / "e.npz", npy(np.arange(3.0)))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("evil.npy", pickle.dumps(object()))
        file.writestr("../../outside.npy", b"x")
    assert read_arrays(path, ["x"])["x"].tolist() == [0, 1, 2]
    assert not (tmp_path.parent.parent / "outside.npy").exists()
    with pytest.raises(InputError, match="must hold x and y; it has x, evil"):
        read_arrays(path, ["x", "y"])


def test_names_of_entries_are_shown_as_they_can_be_printed(tmp_path: Path) -> None:
    path = archive(tmp_path / "e.npz", npy(np.arange(3.0)), name="\x1b[2J.npy")
    with pytest.raises(InputError) as refusal:
        read_arrays(path, ["x", "y"])
    assert str(refusal.value).isprintable() and r"\x1b[2J" in str(refusal.value)


@pytest.mark.parametrize("labels", [np.full(20, 10**6), np.full(20, 2**62), np.arange(19)])
def test_labels_are_one_class_an_image(tmp_path: Path, labels: np.ndarray) -> None:
    x = np.zeros((20, 1, 4, 4), "f4")
    np.savez(tmp_path / "d.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    with pytest.raises(InputError, match=r"class"):
        load(DataConfig(name=str(tmp_path / "d.npz")))


# MNIST's files


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 4, b"\x00\x00\x08\x03" + b"\xff" * 12, b"\x00\x00\x77\x01\x00\x00\x00\x01a", b"\x00\x00\x08\x01"],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, content: bytes) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            (raw / f"{part}-{name}").write_bytes(content)
    with pytest.raises(InputError, match=r"mnist in .* is damaged|mnist is not in"):
        load(DataConfig(name="mnist", root=str(tmp_path)))


def test_fewer_labels_than_images_are_refused(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4l", 0x803, 5, 2, 2) + bytes(20))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2l", 0x801, 3) + bytes(3))
    with pytest.raises(InputError, match=r"labels of mnist in .* must be 5 class numbers.*got shape \(3,\)"):
        load(DataConfig(name="mnist", root=str(tmp_path)))


# folders


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two classes of two images."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


class Found:
    """The images of a test split alone, at one size."""

    def __init__(self, root: Path) -> None:
        found = find(root)
        self.classes, self.paths, self.targets = found.names, found.splits["test"].paths, found.labels("test").tolist()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        return View((4, 6), 3, resample=True)(self.paths[number])


def test_the_order_is_that_of_torchvision(images: Path) -> None:
    from torchvision import datasets

    (images / "cat" / "below" / "deep").mkdir(parents=True)
    Image.new("L", (4, 4)).save(images / "cat" / "below" / "deep" / "5.JPG", "JPEG")
    Image.new("L", (4, 4)).save(images / "cat" / "z.png")
    (images / "cat" / "notes.txt").write_text("no image")
    ours, theirs = Found(images), datasets.ImageFolder(str(images))
    assert ours.classes == theirs.classes and ours.targets == theirs.targets
    assert [str(path) for path in ours.paths] == [path for path, _ in theirs.samples]
    assert len(ours) == 6 and ours[0].shape == (3, 4, 6)


def test_links_that_turn_in_circles_end(images: Path) -> None:
    for name in ("a", "b", "c"):
        (images / "cat" / name).symlink_to(images)
        (images / "dog" / name).symlink_to("..")
    assert len(Found(images)) == 8, "each folder is entered once a class"


def test_links_to_images_and_folders_are_followed(images: Path, tmp_path: Path) -> None:
    (images / "cow").symlink_to(images / "dog")
    (images / "cat" / "9.png").symlink_to(images / "dog" / "0.png")
    assert [path.name for path in Found(images).paths].count("9.png") == 1
    assert Found(images).classes == ["cat", "cow", "dog"]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bomb(path: Path) -> None:
    """A PNG of a few kB whose header promises 4e8 pixels."""
    chunk = struct.pack(">2I5B", 20_000, 20_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", chunk), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)


def postscript(path: Path) -> None:
    """PIL hands it to another program."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (fifo, "it is a device, a pipe or a folder"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, a pipe or a folder"),
    "nowhere": (lambda path: path.symlink_to("/nowhere/at/all"), "no such file"),
    "loop": (lambda path: path.symlink_to(path), "Too many levels"),
    "bomb": (bomb, "pixels"),
    "strip": (lambda path: Image.new("1", (20_000, 1)).save(path, "PNG"), "one side 100 times the other"),
    "postscript": (postscript, "is not an image"),
    "text": (lambda path: path.write_text("SECRET"), "is not an image"),
    "secret": (lambda path: path.symlink_to("/etc/passwd"), "is not an image"),
    "cut": (lambda path: path.write_bytes((path.parent / "0.png").read_bytes()[:40]), "is not an image"),
    "empty": (lambda path: path.write_bytes(b""), "is not an image"),
}


@pytest.mark.parametrize(("make", "words"), STRANGE.values(), ids=STRANGE)
def test_a_strange_image_is_named(
    images: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], words: str
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    make(images / "dog" / "7.png")
    with pytest.raises(InputError, match=words) as refusal:
        found = Found(images)
        for number in range(len(found)):
            found[number]
    assert "7.png" in str(refusal.value) or words in ("no such file", "Too many levels"), refusal.value
    assert "SECRET" not in str(refusal.value) and "root:" not in str(refusal.value)


def test_an_image_that_goes_while_running_is_named(images: Path) -> None:
    found = Found(images)
    (images / "dog" / "1.png").unlink()
    with pytest.raises(InputError, match=r"no such file: .*dog/1\.png"):
        found[3]


def test_no_format_of_an_image_starts_a_program() -> None:
    assert "EPS" not in opening.FORMATS and "WMF" not in opening.FORMATS


# lists


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b"\x1b[2J", r"'\x1b[2J' is not an index"),
        (b"1" * 10**5, "is not an index or a range"),
        (b"0-999999999999999\n1", "names sample 1 twice"),
        (b"\0", "is not an index"),
        (b"x" * 20_000_001, "is larger than a list may be"),
        ("٣".encode(), "is not an index"),
    ],
    ids=range(7),
)
def test_strange_lists_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError) as refusal:
        chosen(None, tmp_path / "list.txt", None)
    message = str(refusal.value)
    assert words in message.replace("\\\\", "\\") and "list.txt" in message and message.isprintable(), message
    assert len(message) < 500


def test_a_list_that_is_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(InputError, match="it is a device or a pipe, not a file"):
        chosen(None, tmp_path / "list.txt", None)
