"""Labels and pixels as arrays: what is understood, with its literal reading, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from verifiers.core.errors import InputError
from verifiers.runtime.arrays import as_array, as_tensor, channels_last, class_numbers, pixels

LABELS: dict[str, Any] = {
    "int64": np.array([2, 0, 1]),
    "bytes": np.array([2, 0, 1], np.uint8),
    "uint16": np.array([2, 0, 1], np.uint16),
    "a column": np.array([[2], [0], [1]]),
    "a column of floats": np.array([[2.0], [0.0], [1.0]], np.float32),
    "floats": np.array([2.0, 0.0, 1.0]),
    "one-hot": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "one-hot floats": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32),
    "one-hot bools": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], bool),
    "a tensor": torch.tensor([2, 0, 1], dtype=torch.int32),
    "a list": [2, 0, 1],
    "a row": np.array([[2, 0, 1]]),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_understood_however_they_are_written(case: str) -> None:
    numbers, classes = class_numbers(LABELS[case], 3, "y")
    assert numbers.dtype == torch.int64 and numbers.tolist() == [2, 0, 1], case
    assert classes == 3


def test_one_hot_labels_tell_of_classes_without_an_image() -> None:
    assert class_numbers(np.eye(5)[[1, 0, 1]], 3, "y")[1] == 5
    assert class_numbers(np.array([True, False]), 2, "y")[0].tolist() == [1, 0]


NO_LABELS: dict[str, tuple[Any, str]] = {
    "names": (np.array(["cat", "dog", "cat"]), "got names: number the classes 0, 1, 2"),
    "objects": (np.array([None, 1, 2]), "got object"),
    "halves": (np.array([0.5, 1, 2]), "got 0.5, which is no class"),
    "nan": (np.array([np.nan, 1, 2]), "got nan, which is no class"),
    "no class": (np.array([-1, 0, 1]), "got -1: classes count from 0"),
    "huge": (np.array([1e18, 0, 1]), "got 1e+18, which is no class"),
    "too few": (np.array([0, 1]), r"or one-hot; got shape \(2,\)"),
    "several": (np.array([[1, 1], [0, 1], [1, 0]]), r"got shape \(3, 2\) with several classes, or none"),
    "none": (np.array([[0, 0], [0, 1], [1, 0]]), "with several classes, or none"),
    "shares": (np.array([[0.2, 0.8], [0, 1], [1, 0]]), "rows that are not one-hot"),
    "a number": (np.array(3), r"got shape \(\)"),
    "maps": (np.zeros((3, 4, 4), int), r"got shape \(3, 4, 4\)"),
}


@pytest.mark.parametrize("case", NO_LABELS)
def test_other_labels_are_refused(case: str) -> None:
    given, words = NO_LABELS[case]
    with pytest.raises(InputError, match=rf"y must be 3 class numbers, one per image.*{words}".replace("+", r"\+")):
        class_numbers(given, 3, "y")


def test_pixels_of_every_kind_become_what_they_are() -> None:
    bytes_, _ = pixels(np.array([[0, 128, 255]], np.uint8), "x")
    assert bytes_.dtype == torch.uint8 and bytes_.tolist() == [[0, 128, 255]]
    floats, remarks = pixels(np.array([[0, 0.25, 1]], np.float64), "x")
    assert floats.dtype == torch.float32 and floats.tolist() == [[0, 0.25, 1]] and not remarks
    assert pixels(np.array([[True, False]]), "x")[0].tolist() == [[1.0, 0.0]]
    deep, remarks = pixels(np.array([[0, 13107, 65535]], np.uint16), "x")
    assert torch.equal(deep, torch.tensor([[0, 0.2, 1]])) and remarks == ("x has 16-bit pixels: divided by 65535",)
    rounded, _ = pixels(np.array([[-1e-6, 1 + 1e-6]], np.float32), "x")
    assert rounded.tolist() == [[0.0, 1.0]], "rounding of a pipeline is clamped"


def test_pixels_that_were_divided_twice_are_told_of() -> None:
    _, remarks = pixels(np.array([[0, 1 / 255]], np.float32), "x")
    assert len(remarks) == 1 and "0.0039: was it divided by 255 twice?" in remarks[0]


NO_PIXELS: dict[str, tuple[np.ndarray, str]] = {
    "bytes as floats": (np.array([0.0, 255.0]), "float64 from 0 to 255: divide by 255, or save them as uint8"),
    "bytes as int64": (np.array([0, 200]), "int64 from 0 to 200: divide by 255, or save them as uint8"),
    "12 bits": (
        np.array([0, 4095], np.uint16),
        "uint16 from 0 to 4095: divide by the largest .* value, like 4095",
    ),
    "bytes in 16 bits": (np.array([0, 255], np.uint16), "uint16 from 0 to 255: divide by 255"),
    "from -1 to 1": (np.array([-1.0, 1.0]), r"from -1 to 1: map them back with \(x \+ 1\) / 2"),
    "normalised": (np.array([-2.1, 2.6]), "from -2.1 to 2.6: undo the normalisation"),
    "nan": (np.array([0, np.nan]), "it holds NaN or infinite numbers: leave those out"),
    "infinite": (np.array([0, np.inf]), "it holds NaN or infinite numbers"),
    "pixels less 128": (np.array([-128, 127], np.int8), "int8 from -128 to 127: add 128 and save as uint8"),
    "bytes of 0 and 1": (np.array([0, 1], np.uint8), "bytes that are 0 or 1 alone: save it as bool"),
    "signed": (np.array([-5, 5]), "int64 from -5 to 5"),
}


@pytest.mark.parametrize("case", NO_PIXELS)
def test_values_that_could_mean_several_things_are_refused(case: str) -> None:
    array, words = NO_PIXELS[case]
    with pytest.raises(InputError, match=words):
        pixels(array, "x")


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((32, 32, 3), True),
        ((28, 28, 1), True),
        ((20, 30, 3), True),
        ((64, 64, 4), True),
        ((3, 32, 32), False),
        ((1, 28, 28), False),
        ((3, 32, 3), False),
        ((3, 3, 3), False),
        ((16, 8, 4), False),
        ((4, 4, 4), False),
        ((32, 32), False),
        ((784,), False),
    ],
)
def test_channels_last_are_recognised(shape: tuple[int, ...], last: bool) -> None:
    assert channels_last(shape) is last


def test_arrays_of_any_layout_become_tensors() -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3)[::-1]
    assert as_tensor(turned).tolist() == [[3, 4, 5], [0, 1, 2]]
    assert as_tensor(np.array([7], np.uint16)).dtype == torch.int64
    fixed = np.arange(3.0)
    fixed.flags.writeable = False
    assert as_tensor(fixed).tolist() == [0, 1, 2]
    assert as_array([torch.tensor([1, 2]), np.array([3, 4])], "x").tolist() == [[1, 2], [3, 4]]
    for given in ([[1, 2], [3]], ["a"], [object()]):
        with pytest.raises(InputError, match="x must be tensors or arrays of numbers"):
            as_array(given, "x")
