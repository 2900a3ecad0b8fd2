"""Lists of exported properties, found again among the samples."""

from pathlib import Path

import numpy as np
import pytest
import torch

from certkd.data.splits import Split, TensorImages
from certkd.exchange.property_list import about, is_table, read_properties
from certkd.exchange.vnnlib import Style, ball, write_property
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon

EPS = Epsilon.parse("2/255")
CLASSES = 3


@pytest.fixture(scope="module")
def split() -> Split:
    images = torch.from_numpy(np.random.default_rng(0).random((4, 1, 2, 2), dtype=np.float32))
    return Split(TensorImages(images), torch.tensor([0, 1, 2, 1]), torch.tensor([10, 20, 30, 40]))


def write(folder: Path, split: Split, place: int, *, label: int | None = None, note: str | None = None) -> str:
    """A property about a sample as it is exported; other labels and notes make it wrong."""
    images, labels = split.batch(torch.tensor([place]), torch.device("cpu"))
    index = int(split.indices[place])
    text = about(index, "some data_test", EPS) if note is None else note
    own = int(labels[0]) if label is None else label
    name = f"vnnlib/p_{index}.vnnlib"
    write_property(folder / name, *ball(images[0].numpy(), EPS), own, CLASSES, Style(about=text))
    return name


def listed(folder: Path, *rows: str) -> Path:
    (folder / "net.onnx").write_text("x")
    (folder / "other.onnx").write_text("x")
    (folder / "instances.csv").write_text("".join(f"{row},60\n" for row in rows))
    return folder / "instances.csv"


def test_samples_are_numbered_in_the_split(split: Split, tmp_path: Path) -> None:
    path = listed(tmp_path, *(f"net.onnx,{write(tmp_path, split, place)}" for place in (2, 0)))
    assert is_table(path)
    found = read_properties(path, "anything", split, CLASSES)
    assert [(each.index, each.label, each.eps) for each in found] == [(2, 2, EPS), (0, 0, EPS)]


def test_only_the_rows_of_the_network_count_where_several_are_listed(split: Split, tmp_path: Path) -> None:
    names = [write(tmp_path, split, place) for place in (0, 1)]
    path = listed(tmp_path, f"net.onnx,{names[0]}", f"other.onnx,{names[1]}")
    assert [each.index for each in read_properties(path, "other", split, CLASSES)] == [1]
    with pytest.raises(InputError, match="no property of the network 'third': it has net, other"):
        read_properties(path, "third", split, CLASSES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": 2}, "its label 0"),
        ({"note": ""}, "does not say which image"),
        ({"note": about(11, "d", EPS)}, "image 11, which the split does not have"),
        ({"note": about(20, "d", EPS)}, "around image 20"),
        ({"note": about(10, "d", Epsilon.parse("3/255"))}, "the ball of radius 3/255"),
    ],
)
def test_properties_about_something_else(change: dict, said: str, split: Split, tmp_path: Path) -> None:
    path = listed(tmp_path, f"net.onnx,{write(tmp_path, split, 0, **change)}")
    with pytest.raises(InputError) as caught:
        read_properties(path, "net", split, CLASSES)
    assert said in str(caught.value)


def test_a_changed_condition_is_noticed(split: Split, tmp_path: Path) -> None:
    name = write(tmp_path, split, 0)
    text = (tmp_path / name).read_text()
    path = listed(tmp_path, f"net.onnx,{name}")
    for old, new in (
        ("(and (>= Y_1 Y_0))", ""),
        ("(and (>= Y_1 Y_0))", "(and (>= Y_1 Y_0) (>= Y_1 Y_2))"),
        ("(>= Y_1 Y_0)", "(>= Y_1 (+ Y_0 0.5))"),
        ("(>= Y_1 Y_0)", "(>= Y_1 Y_2)"),
        ("(assert (>= X_0 0.", "(assert (>= X_0 0.0"),
    ):
        assert old in text
        (tmp_path / name).write_text(text.replace(old, new))
        with pytest.raises(InputError, match="is not about the ball"):
            read_properties(path, "net", split, CLASSES)


def test_lists_of_images_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image_index,label,eps\n0,1,2/255\n")
    (tmp_path / "b.csv").write_text("net.onnx,p.vnnlib.gz,60\n")
    (tmp_path / "c.csv").write_text("")
    assert [is_table(tmp_path / f"{name}.csv") for name in "abc"] == [False, True, False]
