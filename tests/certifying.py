"""Certify in one call, with settings as keywords."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from verifiers.certify.certify import certify as certify_network
from verifiers.certify.config import DEFAULT_METHODS, CertifyConfig
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.question import Question
from verifiers.geometry.margins import margins
from verifiers.graph.program import Program
from verifiers.methods.base import Method
from verifiers.methods.registry import BY_KIND
from verifiers.results.rows import Certificates
from verifiers.runtime.certifier import Batch, Certifier
from verifiers.runtime.samples import Data

#: Arguments of ``certify`` that are no settings.
_OTHERS = ("teacher", "out", "reporter")


def certify(
    model: nn.Module,
    images: Any,
    labels: Tensor,
    *,
    eps: Any,
    norm: Any = "linf",
    methods: Sequence[str | Method | Mapping[str, Any]] = DEFAULT_METHODS,
    options: Mapping[str, Any] | None = None,
    indices: Tensor | None = None,
    about: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    arithmetic: str = "float32",
    workers: int = 1,
    **more: Any,
) -> Certificates:
    """``certify`` without a second opinion, unless ``cross_check`` is given; other settings stand in ``options``."""
    others = {name: more.pop(name) for name in _OTHERS if name in more}
    settings = {**(options or {}), **more}
    kinds = (method if isinstance(method, str) else dict(method).get("kind") for method in methods)
    if any("cross_check" in BY_KIND[kind].model_fields for kind in kinds if kind in BY_KIND):
        settings.setdefault("cross_check", 0)
    eps = eps.text if isinstance(eps, Epsilon) else eps
    values = {"eps": eps, "norm": norm, "methods": tuple(methods), "options": settings, "seed": seed}
    config = CertifyConfig.parse({**values, "batch_size": batch_size, "arithmetic": arithmetic, "workers": workers})
    return certify_network(model, Data(images, labels, indices, about or {}), config, **others)


def prepared(
    method: Method, model: nn.Module, x: Tensor, *, eps: Any = 0.01, norm: Norm = Norm.LINF, seed: int = 0
) -> Certifier:
    """A method made ready in float32, tried on the first two images."""
    return method.prepare(Program(model), x[:2], Question(Epsilon.parse(eps), norm, seed))


def answers(
    certifier: Certifier,
    model: nn.Module,
    x: Tensor,
    predicted: Tensor | None = None,
    *,
    indices: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """The columns of one batch; the network's own predictions where none are given."""
    with torch.no_grad():
        logits = model(x)
    own = logits.argmax(1) if predicted is None else predicted
    order = torch.arange(len(x)) if indices is None else indices
    parts = list(certifier(Batch(x, own, order, logits.shape[1], lambda: margins(logits, own).double())))
    rows = np.concatenate([part.rows for part in parts])
    order_of_rows = np.argsort(rows)
    return {name: np.concatenate([part.columns[name] for part in parts])[order_of_rows] for name in parts[0].columns}
