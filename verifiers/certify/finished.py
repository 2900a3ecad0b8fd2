"""Answer a question from a finished file that asks more: its rows are taken, and no method runs."""

import json
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from verifiers.certify.audit.consistency import broken_rows
from verifiers.certify.audit.meaning import disagreements, indices_of, mixed_rows
from verifiers.certify.audit.meaning import identity_of as stored_identity
from verifiers.certify.config import CertifyConfig
from verifiers.certify.identity import asked_of, in_own_arithmetic
from verifiers.core.status import About
from verifiers.results.reader import read
from verifiers.results.rows import Certificates
from verifiers.runtime.fingerprint import DataFingerprint, weights_sha256
from verifiers.runtime.samples import CLEAN_BATCH, Others, Samples

#: What differs between a file and a question about some of its samples.
_OF_SAMPLES = ("data_sha256", "indices_sha256", "samples")
_OF_TEACHER = "joint_teacher_"


def finished_rows(
    path: str | PathLike[str] | None,
    identity: Mapping[str, Any],
    config: CertifyConfig,
    samples: Samples,
    others: Others | None,
) -> Certificates | None:
    """Take the rows of a question from a file that has finished a larger one.

    Args:
        path: of the file; None if there is none.
        identity: everything that the rows of the question depend on.
        config: the question.
        samples: its samples, with the network's predictions.
        others: returns images and labels of the same split by their index.

    Returns:
        The rows, in the order of the question. None if there is no file, it asks exactly this question, another one, or
        it has no answer for some row.
    """
    if path is None or not Path(path).is_file():
        return None
    file = read(path)
    there = stored_identity(file)
    if there == dict(identity) or not _includes(there, identity, config) or not _is_whole(file, config):
        return None
    position = {index: row for row, index in enumerate(indices_of(file).tolist())}
    wanted = samples.indices.tolist()
    if any(index not in position for index in wanted):
        return None
    rows = np.array([position[index] for index in wanted])
    whole = len(position) == len(wanted) and np.array_equal(rows, np.arange(len(rows)))
    if not whole and (any(method.about is About.SMOOTHED for method in config.methods) or not _same_data(file, others)):
        return None
    if whole and there.get("data_sha256") != samples.data_sha256:
        return None
    taken = _taken(file, identity, config, rows)
    return taken if _agrees(taken, samples) else None


def may_answer(path: Path, network: nn.Module, config: CertifyConfig, indices: Tensor) -> bool:
    """Tell whether a finished file is about the same weights, the same settings, and these samples or more.

    The program, the data and a teacher are not compared here.

    Raises:
        InputError: the file cannot be read.
    """
    file = read(path)
    there = stored_identity(file)
    wanted = {**asked_of(in_own_arithmetic(config, network)), "model_sha256": weights_sha256(network)}
    alike = {**there, **wanted, **{name: there.get(name) for name in _OF_SAMPLES}}
    held = set(indices_of(file, unfinished=True).tolist())
    return held.issuperset(indices.tolist()) and _includes(there, alike, config) and _is_whole(file, config)


def _includes(there: Mapping[str, Any], identity: Mapping[str, Any], config: CertifyConfig) -> bool:
    """Tell whether a file's identity is that of the question, apart from more methods, samples and a teacher."""
    free = {*_OF_SAMPLES, "settings"}
    if not identity.get(f"{_OF_TEACHER}sha256") and not config.pairs:
        free |= {name for name in there.keys() | identity.keys() if name.startswith(_OF_TEACHER)}
    names = (there.keys() | identity.keys()) - free
    settings = there.get("settings")
    return all(there.get(name) == identity.get(name) for name in names) and (
        isinstance(settings, dict) and all(settings.get(m.kind) == m.options for m in config.methods)
    )


def _is_whole(file: Certificates, config: CertifyConfig) -> bool:
    """Tell whether every row of the methods has an answer, and nothing in the file contradicts itself."""
    return all(kind in file and file[kind].answered for kind in config.kinds) and not any(
        True for check in (disagreements, mixed_rows, broken_rows) for _ in check(file)
    )


def _same_data(file: Certificates, others: Others | None) -> bool:
    """Tell whether the file's own samples, looked up again, have its hash."""
    found = None if others is None else others(torch.as_tensor(indices_of(file)))
    if found is None:
        return False
    images, labels = found
    fingerprint = DataFingerprint()
    for rows in torch.arange(len(labels)).split(CLEAN_BATCH):
        fingerprint.update(images[rows], labels[rows])
    return fingerprint.hexdigest() == file.attributes["data_sha256"]


def _taken(file: Certificates, identity: Mapping[str, Any], config: CertifyConfig, rows: np.ndarray) -> Certificates:
    """Take some rows of some methods, under the identity of the question."""
    plain = {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in identity.items()}
    methods = {
        kind: replace(file[kind], columns={name: c[rows] for name, c in file[kind].columns.items()})
        for kind in (method.kind for method in config.in_order)
    }
    attributes = {**file.attributes, **plain, "identity": json.dumps(dict(identity), sort_keys=True)}
    return Certificates(attributes, methods, file.path)


def _agrees(taken: Certificates, samples: Samples) -> bool:
    """Tell whether the network predicts what the rows say, of the labels that they say."""
    return all(
        np.array_equal(rows["base" if "base" in rows.columns else "predicted"], samples.predicted.numpy())
        and np.array_equal(rows["label"], samples.labels.numpy())
        for rows in taken
    )
