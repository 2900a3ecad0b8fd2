"""Describe a run: the facts that its rows depend on, and those that may differ between two runs."""

import platform
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import nn

from verifiers.bound_propagation import auto_lirpa_version
from verifiers.certify.config import CertifyConfig
from verifiers.core.columns import indices_sha256
from verifiers.core.errors import InputError
from verifiers.core.quantities import Arithmetic
from verifiers.core.status import About
from verifiers.graph.integers import computes_in_int8, other_form
from verifiers.graph.program import Program
from verifiers.results.writer import CertificateFile
from verifiers.runtime.fingerprint import structure_sha256, weights_sha256
from verifiers.runtime.samples import Samples


def identity_of(program: Program, teacher: Program | None, samples: Samples, config: CertifyConfig) -> dict[str, Any]:
    """List everything the rows depend on; a file is resumed only when every entry matches."""
    return {
        "model_sha256": weights_sha256(program.given),
        "structure_sha256": structure_sha256(program.given),
        "program_sha256": program.sha256,
        "architecture": type(program.given).__name__,
        "data_sha256": samples.data_sha256,
        "indices_sha256": indices_sha256(samples.indices.numpy()),
        "samples": len(samples.labels),
        **asked_of(config),
        "joint_teacher_sha256": "" if teacher is None else weights_sha256(teacher.given),
        "joint_teacher_program_sha256": "" if teacher is None else teacher.sha256,
        "joint_teacher_structure_sha256": "" if teacher is None else structure_sha256(teacher.given),
        **_last_layers(program, teacher),
        "settings": {method.kind: method.options for method in config.in_order},
        **samples.about,
    }


def in_own_arithmetic(config: CertifyConfig, *networks: nn.Module | None) -> CertifyConfig:
    """Return the configuration with the arithmetic of the networks: int8 if one of them computes in codes.

    Raises:
        InputError: the configuration asks for an arithmetic that is not theirs, or a network is in a form of int8
            that is not read.
    """
    given = [network for network in networks if network is not None]
    if (why := next(filter(None, map(other_form, given)), None)) is not None:
        raise InputError(f"an int8 network in a form that is not read: {why}")
    int8 = any(map(computes_in_int8, given))
    if config.arithmetic is (Arithmetic.REAL if int8 else Arithmetic.INT8):
        why = "a network computes in int8: its rounding is part of it" if int8 else "no network here computes in int8"
        raise InputError(f"arithmetic {config.arithmetic}: {why}; leave the arithmetic out")
    return config.model_copy(update={"arithmetic": Arithmetic.INT8}) if int8 else config


def asked_of(config: CertifyConfig) -> dict[str, Any]:
    """List the part of the identity that is known before networks and data are read."""
    return {
        "norm": str(config.norm),
        "eps_text": config.eps,
        "arithmetic": str(config.arithmetic),
        "seed": config.seed,
    }


def _last_layers(program: Program, teacher: Program | None) -> dict[str, str]:
    """Name the last layers that the programs leave out, where they do."""
    found = {
        "last_layer": program.last_layer,
        "joint_teacher_last_layer": "" if teacher is None else teacher.last_layer,
    }
    return {name: text for name, text in found.items() if text}


def facts_of(program: Program) -> dict[str, Any]:
    """List the facts that may differ between two runs of the same certification."""
    from verifiers import __version__

    weights = next(iter(program.given.parameters()), None)
    return {
        "certkd_version": __version__,
        "torch_version": str(torch.__version__),
        "numpy_version": np.__version__,
        "auto_lirpa_version": auto_lirpa_version() or "not installed",
        "python_version": platform.python_version(),
        "device": str(program.device),
        "dtype": "" if weights is None else str(weights.dtype).removeprefix("torch."),
        "tf32": False,
        "deterministic_algorithms": True,
        "command": " ".join(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def check_predictions(config: CertifyConfig, samples: Samples, file: CertificateFile) -> None:
    """Check that finished rows have this network's predictions: weights and layers do not identify a function.

    Raises:
        InputError: a stored prediction differs.
    """
    for method in config.methods:
        column = "base" if method.about is About.SMOOTHED else "predicted"
        stored, finished = file.predicted(method.kind, column)
        if not np.array_equal(stored[finished], samples.predicted.numpy()[finished]):
            raise InputError(f"{file.path} holds rows of a network that predicts otherwise: choose another output file")
