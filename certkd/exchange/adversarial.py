"""Adversarial images that other tools saved, run again and compared with a certificate file row by row."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from certkd.data.arrays import names_in, read_array, read_arrays
from certkd.files import sniff
from certkd.networks.torch_file import TorchFile
from verifiers.core.errors import InputError, loading, quoted
from verifiers.core.quantities import Norm
from verifiers.core.status import Status
from verifiers.geometry.balls import norms
from verifiers.methods.registry import find, proves
from verifiers.results.rows import Certificates, MethodRows
from verifiers.runtime.modes import eval_mode, trusted_arithmetic
from verifiers.runtime.samples import device_of

#: Names of images among other entries, the first one present counts.
NAMES = ("adv_complete", "x_adv", "adv", "adversarial", "images", "x", "arr_0")
BATCH = 128


def read_adversarial(path: Path) -> dict[str, Tensor]:
    """Read images by name: a tensor, a dictionary of tensors as AutoAttack's users save, ``.npz`` or ``.npy``.

    A dictionary with one of the usual names gives that entry; any other gives every entry that holds images, as
    AutoAttack's single attacks do.

    Raises:
        InputError: the file is of another kind, or holds no images.
    """
    suffix = path.suffix.lower()
    sniff(path, "file of adversarial images")
    if suffix == ".npy":
        return _chosen({"images": _tensor(read_array(path))}, path)
    if suffix == ".npz":
        return _chosen({name: _tensor(value) for name, value in read_arrays(path, names_in(path)).items()}, path)
    with loading(path, "a file of adversarial images that torch.save or numpy wrote"):
        content = TorchFile(path).whole()
    return _chosen(content if isinstance(content, dict) else {"images": content}, path)


def _tensor(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(value))


def _chosen(content: Mapping[object, object], path: Path) -> dict[str, Tensor]:
    found = {
        str(name): value.float()
        for name, value in content.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1
    }
    usual = next((name for name in NAMES if name in found), None)
    if not found:
        has = ", ".join(quoted(str(name)) for name in list(content)[:9]) or "nothing"
        raise InputError(f"{path} holds no float images, several in one tensor: it has {has}")
    return found if usual is None else {usual: found[usual]}


@dataclass(frozen=True)
class Compared:
    """Adversarial images against a certificate file.

    Attributes:
        lines: what was found, one for each set of images, and one for each method that proves.
        contradictions: samples that are proved robust and fooled within their radius.
    """

    lines: tuple[str, ...]
    contradictions: tuple[str, ...]


def compare(
    certificates: Certificates, model: nn.Module, images: Float[Tensor, "rows *shape"], found: Mapping[str, Tensor]
) -> Compared:
    """Run images again, and look for one that fools the network where its robustness is proved.

    Args:
        certificates: the file; its rows are the samples.
        model: the network, in [0, 1].
        images: the samples, in the order of the rows.
        found: sets of adversarial images, in the order of the rows.

    Raises:
        InputError: there are other numbers of images, or of another shape.
    """
    lines, contradictions = [], []
    for name, attacked in found.items():
        if attacked.shape != images.shape:
            raise InputError(
                f"the adversarial images {quoted(name)} have shape {tuple(attacked.shape)}, the samples of "
                f"{certificates.path} {tuple(images.shape)}: they must be the same samples in the same order"
            )
        classes = _classes(model, attacked)
        boxed = ((attacked >= 0) & (attacked <= 1)).flatten(1).all(1).numpy()
        for rows in (rows for rows in certificates if not find(rows.name).relational):
            norm = Norm(rows.norm)
            distance = norms(attacked.double() - images.double(), norm).numpy()
            fooled = boxed & (classes != rows["predicted"])
            inside = fooled & (distance <= rows.eps)
            said = (
                f"{name} against {rows.name}: {int(inside.sum())} of {len(rows)} images within eps {rows.eps_text} fool"
            )
            lines.append(f"{said} the network, {_answers(rows, inside)}")
            if proves(rows.name):
                broken = np.flatnonzero(fooled & (distance <= rows["radius"]) & (rows["radius"] > 0))
                contradictions += [
                    f"{rows.name}, sample {rows['index'][i]}: certified to {rows['radius'][i]:.6g}, and an image of "
                    f"{name} at distance {distance[i]:.6g} gets class {classes[i]}"
                    for i in broken
                ]
    return Compared(tuple(lines), tuple(contradictions))


def _answers(rows: MethodRows, inside: np.ndarray) -> str:
    """Say what the file says about the fooled samples."""
    names = [Status(value).name for value in rows["status"][inside]]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return (
        "of which the file says " + ", ".join(f"{count} {name}" for name, count in counts.items()) if counts else "none"
    )


def _classes(model: nn.Module, images: Tensor) -> np.ndarray:
    with torch.no_grad(), eval_mode(model), trusted_arithmetic():
        parts = [model(part.to(device_of(model))).argmax(1).cpu() for part in images.split(BATCH)]
    return torch.cat(parts).numpy()
