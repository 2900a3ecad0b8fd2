"""Export the counterexamples of a certificate file in VNN-COMP's format, each after it has been run again."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from certkd.exchange.rows import IMAGE, Source, blocks
from certkd.exchange.vnnlib import write_counterexample
from verifiers.core.errors import InputError, one_line
from verifiers.core.table import counted
from verifiers.geometry.margins import margins
from verifiers.methods.registry import find
from verifiers.results.reader import opened, read
from verifiers.results.rows import MethodRows
from verifiers.runtime.fingerprint import weights_sha256
from verifiers.runtime.modes import eval_mode, trusted_arithmetic
from verifiers.runtime.samples import device_of


def export_counterexamples(path: Path, folder: Path, model: nn.Module) -> list[str]:
    """Write each stored counterexample, with the logits at it, as ``METHOD-INDEX.counterexample``.

    Each is run through the network again first, and must be misclassified, inside the ball and inside the image box.

    Raises:
        InputError: the file is no certificate file or is about another network, a counterexample does not hold, or
            the folder is not empty or cannot be made.
    """
    certificates = read(path)
    there, given = str(certificates.attributes.get("model_sha256", "")), weights_sha256(model)
    if there != given:
        raise InputError(
            f"{path} is about another network (sha256 {there[:16] or 'unknown'}, not {given[:16]}): give that network"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder: name another one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            new = Path(temporary) / "new"
            new.mkdir(mode=0o755)
            with opened(path) as file:
                count = _write_all(Source(certificates, file), new, model)
            os.replace(new, folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {one_line(error)}") from None
    return [f"{counted(count, 'counterexample')} written to {folder}"]


def _write_all(source: Source, folder: Path, model: nn.Module) -> int:
    count = 0
    with torch.no_grad(), eval_mode(model), trusted_arithmetic():
        for method, rows in source.falsified():
            if find(method.name).relational:  # a point about two networks
                continue
            for block in blocks(rows):
                images = source.images(method.name, block)
                logits = model(torch.from_numpy(images).to(device_of(model))).cpu()
                _check_holds(source.certificates.path, method, block, images, logits)
                for row, image, outputs in zip(block, images, logits.numpy(), strict=True):
                    write_counterexample(folder / f"{method.name}-{method['index'][row]}.{IMAGE}", image, outputs)
                count += len(block)
    return count


def _check_holds(
    path: str,
    method: MethodRows,
    rows: Int[np.ndarray, " block"],
    images: Float[np.ndarray, "block *shape"],
    logits: Float[Tensor, "block classes"],
) -> None:
    """Check that each image is in the image box and in the ball, and gets another class than the clean one."""
    fooled = (margins(logits, torch.from_numpy(method["predicted"][rows])) < 0).numpy()
    pixels = images.reshape(len(images), -1)
    inside = (pixels >= 0).all(1) & (pixels <= 1).all(1) & (method["distance"][rows] <= method.eps)
    wrong = np.flatnonzero(~(fooled & inside))
    if len(wrong):
        row = rows[wrong[0]]
        same = f"not given another class than {method['predicted'][row]}"
        why = "outside the ball or the image box" if fooled[wrong[0]] else same
        raise InputError(
            f"{path}: the counterexample of {method.name} to sample {method['index'][row]} does not hold: it is {why}"
        )
