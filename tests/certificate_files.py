"""Certificate files with given rows, written without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from verifiers.core.columns import indices_sha256
from verifiers.core.quantities import Epsilon
from verifiers.core.status import Status
from verifiers.methods.registry import find, settings_of
from verifiers.results.reader import read
from verifiers.results.rows import Certificates
from verifiers.results.writer import CertificateFile, MethodTable

Content = Mapping[str, Mapping[str, np.ndarray]]


def defaults(method: str) -> dict[str, Any]:
    """A method's settings where none is given; None where one is needed."""
    fields = find(method).model_fields
    return {name: None if fields[name].is_required() else fields[name].default for name in settings_of(find(method))}


def write_file(
    path: Path,
    content: Content,
    *,
    eps: Any,
    norm: str = "linf",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    shape: tuple[int, ...] = (1, 2, 2),
    **changes: Any,
) -> Certificates:
    """A certificate file with these rows, numbered from 0 unless they say; those PENDING stay without an answer.

    Args:
        path: where.
        content: columns by method and name.
        eps, norm: of the ball.
        settings: by method, instead of its defaults.
        shape: of the images.
        changes: other attributes of the file.
    """
    radius, count = Epsilon.parse(eps), len(next(iter(content.values()))["status"])
    used = {name: {**defaults(name), **(settings or {}).get(name, {})} for name in content}
    about = {"data_sha256": "data", "norm": norm, "eps_text": radius.text}
    index = next(iter(content.values())).get("index", np.arange(count))
    about |= {"indices_sha256": indices_sha256(index)}
    ball = {"eps": radius.value, "eps_text": radius.text, "norm": norm}
    with CertificateFile(
        path,
        identity={**about, "samples": count, "seed": 0, "settings": used, **changes},
        facts={},
        samples=count,
        sizes={"image": shape, "class": (2,)},
        methods=[MethodTable(name, find(name).columns, {"claim": find(name).claim, **ball}) for name in content],
    ) as written:
        for name, values in content.items():
            done = values["status"] != Status.PENDING
            whole = {"index": index, "radius": np.zeros(count), "seconds": np.zeros(count), **values}
            written.write(name, np.flatnonzero(done), {column: value[done] for column, value in whole.items()})
    return read(path)
