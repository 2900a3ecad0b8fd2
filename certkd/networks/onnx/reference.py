"""Run ONNX files in onnxruntime, to compare the networks that are read from them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from certkd.networks.onnx.file import OnnxFile, packages
from verifiers.core.errors import InputError, one_line
from verifiers.core.table import counted

_WANTED = "only one row of float logits for each is supported"


class Mixed(InputError):
    """A file whose logits of an image change with the other images."""


class NoRows(InputError):
    """A file that does not give one row of logits for each image."""


class OneByOne(InputError):
    """A file for any number of images that runs one, and fails on several."""


def opened(model: Any, *, plain: bool = True) -> Any:
    """Open a model in onnxruntime, silent and on one thread; ``plain`` computes nothing before it is run.

    Raises:
        Exception: onnxruntime does not support it; its errors have no other common class.
    """
    _, onnxruntime = packages()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums without VNNI instructions too
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def session_of(file: OnnxFile) -> Any:
    """Open a file in onnxruntime; raises InputError if onnxruntime does not support it."""
    try:
        return opened(file.model, plain=False)  # as it was checked; the file's other parts are not used
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no other common class
        why = one_line(Exception(str(error).replace(str(file.path), "the file")))
        raise InputError(f"{file.path} is not a network that onnxruntime runs: {why}") from None


class Reference:
    """Run a file in onnxruntime."""

    def __init__(self, file: OnnxFile) -> None:
        """Open the file; raises InputError if onnxruntime does not support it."""
        self._file, self._session = file, session_of(file)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run images alone and in other company; the logits must agree.

        A file for any number of images runs them one by one and all at once; a file for several at a time runs them in
        two orders, filled up with random images.

        Raises:
            OneByOne: one image can be run, and several cannot.
            InputError: the output is not one row of logits per image, or depends on the rest of the batch.
        """
        count = self._file.count
        if count is None or count == 1:
            alone = np.concatenate([self._run(image[None]) for image in images])
            together = alone if count else self._together(images)
        else:
            alone = self._filled(images, count, seed=0)
            together = self._filled(images[::-1], count, seed=1)[::-1]
        close = together.shape == alone.shape and np.allclose(together, alone, rtol=1e-4, atol=1e-4, equal_nan=True)
        if not close:
            raise Mixed(f"{self._file.path} mixes the images of a batch: export it in eval mode")
        return alone

    def _together(self, images: np.ndarray) -> np.ndarray:
        try:
            return self._run(images)
        except InputError as error:
            raise OneByOne(str(error)) from None

    def _filled(self, images: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Run images in batches of ``count``, the last of which is filled up with random ones."""
        missing = -len(images) % count
        filler = np.random.default_rng(seed).random((missing, *images.shape[1:]), dtype=np.float32)
        batches = np.split(np.concatenate([images, filler]), (len(images) + missing) // count)
        return np.concatenate([self._run(batch) for batch in batches])[: len(images)]

    def _run(self, images: np.ndarray) -> np.ndarray:
        given = images[0] if self._file.single else images
        try:
            found = self._session.run([self._file.logits], {self._file.image: given})[0]
        except Exception as error:  # noqa: BLE001 - see above
            raise InputError(f"{self._file.path} cannot be run on {len(images)} images: {one_line(error)}") from None
        rows = _rows(found.shape, len(images)) if isinstance(found, np.ndarray) else None
        if rows is None or found.dtype != np.float32:
            what = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else "no tensor"
            raise NoRows(f"{self._file.path} gives {what} for {counted(len(images), 'image')}: {_WANTED}")
        return found.reshape(rows)


def _rows(shape: Sequence[int], images: int) -> tuple[int, int] | None:
    """Return the shape of an output as rows of logits without axes of length 1; None if it is not such rows."""
    sides = list(shape)
    if images == 1 and (not sides or sides[0] != 1):
        sides = [1, *sides]
    if not sides or sides[0] != images or sum(side != 1 for side in sides[1:]) > 1:
        return None
    return images, max(sides[1:], default=1)
