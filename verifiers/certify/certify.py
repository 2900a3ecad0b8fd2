"""Certify a network on samples: batches, statuses, timing, memory, progress and writing, once for every method."""

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from verifiers.bound_propagation.auto_lirpa import compat
from verifiers.bound_propagation.engines import names_of
from verifiers.core.columns import COMMON_COLUMNS, Columns
from verifiers.core.errors import Contradiction, InputError, Unsupported, did_you_mean, one_line
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.reporter import Reporter
from verifiers.core.status import Guarantee, Status
from verifiers.methods.base import BatchCertifier, MethodInfo, Option, Request, table_of
from verifiers.methods.registry import find
from verifiers.results.rows import Certificates
from verifiers.results.writer import CertificateFile
from verifiers.runtime.fingerprint import indices_sha256, structure_sha256, weights_sha256
from verifiers.runtime.modes import eval_mode, suitable_threads, trusted_arithmetic
from verifiers.runtime.oom import MEMORY_ERRORS, out_of_memory
from verifiers.runtime.samples import CLEAN_BATCH, Images, Samples, device_of, first_images, look_at

DEFAULT_METHODS = ("pgd", "ibp", "crown")


def certify(
    model: nn.Module,
    images: Images | Tensor,
    labels: Int[Tensor, " samples"],
    *,
    eps: str | float | Epsilon,
    norm: str | Norm = Norm.LINF,
    methods: Sequence[str] = DEFAULT_METHODS,
    out: str | PathLike[str] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    options: Mapping[str, Option] | None = None,
    engine: str = "auto",
    cross_check: int = 0,
    teacher: nn.Module | None = None,
    indices: Int[Tensor, " samples"] | None = None,
    identity: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> Certificates:
    """Certify each sample with each method, and write the certificate file.

    Args:
        model: ``nn.Module`` from images in [0, 1] to logits, normalisation inside. Put in eval mode while this runs.
        images: tensor ``(samples, *shape)`` in [0, 1], or anything that yields such a tensor for a tensor of rows.
        labels: true classes.
        eps: radius in pixel units that certified accuracy is reported at, like ``"8/255"``.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        methods: names from ``certkd methods``; attacks run first, whatever the order.
        out: certificate file; the same call on an unfinished file goes on with it. In memory when None.
        seed: keys all randomness, together with the sample index.
        batch_size: rows at a time; each method's own when None. Halved when memory runs out.
        options: settings of methods, such as ``{"steps": 50}``.
        engine: of bound propagation: ``auto-lirpa``, ``native``, or ``auto``: the first where it takes the network.
        cross_check: number of samples whose bounds are held against the other engine's; a contradiction is an ERROR.
        teacher: the network that methods about two compare with, from the same images to the same classes.
        indices: index of each sample in its data set split; 0, 1, ... when None.
        identity: more facts that rows depend on, stored as attributes; a file that differs in one is refused.
        reporter: told about progress.

    Returns:
        the finished rows of all methods.

    Raises:
        InputError: images outside [0, 1], a network that is not one fixed function, an unknown method or option, a
            file that holds something else.
    """
    reporter = reporter or Reporter()
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    infos = sorted((find(name) for name in methods), key=lambda info: info.guarantee != Guarantee.ESTIMATE)
    names_of(engine)
    if cross_check < 0:
        raise InputError(f"cross_check must be at least 0, got {cross_check}")
    base = Request(Epsilon.parse(eps), parse_norm(norm), seed, engine=engine, cross_check=cross_check, teacher=teacher)
    requests = _requests(infos, base, options or {})
    with torch.inference_mode(False), eval_mode(model), eval_mode(teacher or model), trusted_arithmetic():
        samples = look_at(model, images, labels, indices, reporter)
        first = first_images(samples, model)
        if teacher is not None and any(info.predicts for info in infos):
            _check_teacher(teacher, first, samples.classes)
        threads = suitable_threads(model, first[:1], CLEAN_BATCH)
        with (
            threads,
            CertificateFile(
                out,
                identity={**_identity(model, samples, requests), **(identity or {})},
                facts=_facts(model),
                samples=len(samples.labels),
                sizes={"image": first.shape[1:], "class": (samples.classes,)},
                methods=[table_of(info, requests[info.name]) for info in infos],
            ) as file,
        ):
            for info in infos:
                _check_predictions(info, samples, file)
            for info in infos:  # attacks first: proofs are held against their counterexamples
                _run_method(info, requests[info.name], model, samples, file, batch_size, reporter)
            return file.read()


def _check_predictions(info: MethodInfo, samples: Samples, file: CertificateFile) -> None:
    """Finished rows must be this network's: weights and layers alone do not tell two functions apart."""
    stored, finished = file.predicted(info.name, "base" if info.predicts else "predicted")
    if not np.array_equal(stored[finished], samples.predicted.numpy()[finished]):
        raise InputError(
            f"{file.path} holds rows of a network that predicts otherwise: choose another output file (--out)"
        )


def _check_teacher(teacher: nn.Module, first: Tensor, classes: int) -> None:
    with torch.no_grad():
        shape = tuple(teacher(first).shape)
    if shape != (len(first), classes):
        raise InputError(f"the teacher gives logits of shape {shape}, the network {(len(first), classes)}")


def _identity(model: nn.Module, samples: Samples, requests: Mapping[str, Request]) -> dict[str, Any]:
    """All that rows depend on: a file is resumed only by a run that agrees in every entry."""
    request = next(iter(requests.values()))
    return {
        "model_sha256": weights_sha256(model),
        "structure_sha256": structure_sha256(model),
        "architecture": type(model).__name__,
        "data_sha256": samples.data_sha256,
        "indices_sha256": indices_sha256(samples.indices.numpy()),
        "samples": len(samples.labels),
        "norm": str(request.norm),
        "eps_text": request.eps.text,
        "seed": request.seed,
        "engine": request.engine,
        "joint_teacher_sha256": "" if request.teacher is None else weights_sha256(request.teacher),
        "joint_teacher_structure_sha256": "" if request.teacher is None else structure_sha256(request.teacher),
        "settings": {name: dict(request.options) for name, request in requests.items()},
    }


def _requests(infos: Sequence[MethodInfo], base: Request, options: Mapping[str, Option]) -> dict[str, Request]:
    if not infos:
        raise InputError("no method was named; 'certkd methods' lists them")
    names = [info.name for info in infos]
    if len(set(names)) < len(names):
        raise InputError(f"each method once, got {', '.join(names)}")
    if not 0 <= base.seed < 2**63:
        raise InputError(f"seed must be from 0 to 2^63 - 1, got {base.seed}")
    check_options([info.name for info in infos], options)
    requests = {
        info.name: replace(
            base, options={**info.options, **{name: options[name] for name in info.options if name in options}}
        )
        for info in infos
    }
    for info in infos:
        info.check(requests[info.name])
    return requests


def check_options(methods: Sequence[str], options: Mapping[str, Option]) -> None:
    """Look at settings before any work.

    Raises:
        InputError: an unknown method, a setting that none of them has, or one of the wrong kind.
    """
    infos = [find(name) for name in methods]
    known = sorted({name for info in infos for name in info.options})
    for name, value in options.items():
        if name not in known:
            raise InputError(f"none of the methods {', '.join(i.name for i in infos)} has an option {name!r}.")
        for info in infos:
            if name in info.options:
                _check_option(name, value, info.options[name])


def _check_option(name: str, value: Option, default: Option) -> None:
    if isinstance(default, str):
        if not isinstance(value, str):
            raise InputError(f"option {name} must be a name like {default!r}, got {value!r}")
    elif not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InputError(f"option {name} must be positive and finite, got {value!r}")
    elif isinstance(default, int) and value != int(value):
        raise InputError(f"option {name} must be a whole number, got {value!r}")


def parse_norm(given: str | Norm) -> Norm:
    """The norm of that name.

    Raises:
        InputError: an unknown name, with the nearest known one.
    """
    try:
        return Norm(given)
    except ValueError:
        names = [n.value for n in Norm]
        raise InputError(f"unknown norm {given!r}.{did_you_mean(str(given), names)}") from None


def _run_method(
    info: MethodInfo,
    request: Request,
    model: nn.Module,
    samples: Samples,
    file: CertificateFile,
    batch_size: int | None,
    reporter: Reporter,
) -> None:
    pending = file.pending(info.name)
    reporter.start(info.name, len(samples.labels), len(samples.labels) - len(pending))
    if len(pending):
        certifier = _prepare(info, request, model, samples, file, reporter)
        size = batch_size or certifier.batch_size
        before = certifier.notes.get("cross_check")
        _work_off(info, certifier, samples, file, pending, size, device_of(model), reporter)
        remark = certifier.notes.get("cross_check")
        if remark is not None and remark != before:
            file.note(info.name, "cross_check", remark)
            reporter.warn(f"{info.name}: cross-check: {remark}")
    reporter.finish(info.name)


def _prepare(
    info: MethodInfo,
    request: Request,
    model: nn.Module,
    samples: Samples,
    file: CertificateFile,
    reporter: Reporter,
) -> BatchCertifier:
    """The method made ready, or what gives every row its failure when it cannot be."""
    if request.norm not in info.norms:
        refusal = _Refusal(Status.UNSUPPORTED, f"{info.name} does not handle the norm {request.norm}")
    else:
        try:
            certifier = info.prepare(model, first_images(samples, model), request)
            file.note(info.name, "reason", None)  # of an earlier run that could not
            for name, value in certifier.notes.items():
                file.note(info.name, name, value)
            for line in info.preview(certifier, samples, device_of(model)):
                reporter.inform(f"{info.name}: {line}")
            if "cross_check" in certifier.notes:
                reporter.warn(f"{info.name}: cross-check: {certifier.notes['cross_check']}")
            return certifier
        except Unsupported as error:
            refusal = _Refusal(Status.UNSUPPORTED, str(error))
        except Contradiction as error:
            refusal = _Refusal(Status.ERROR, str(error))
        except MEMORY_ERRORS as error:
            if not out_of_memory(error):
                raise
            said = one_line(error, None) if isinstance(error, MemoryError) else ""
            refusal = _Refusal(Status.OUT_OF_MEMORY, said or "not even one sample fits into memory")
    _explain(info, refusal, file, reporter)
    return refusal


@dataclass
class _Refusal:
    """Gives every row the same failure, with its reason."""

    status: Status
    reason: str
    batch_size: int = CLEAN_BATCH
    notes: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, x: Tensor, predicted: Tensor, indices: Tensor) -> Columns:
        return _same(self.status, len(x))


def _same(status: Status, rows: int) -> Columns:
    return {
        "status": np.full(rows, status.value, "uint8"),
        "radius": np.zeros(rows),
        "margin": np.full(rows, np.nan),
    }


def _explain(info: MethodInfo, refusal: _Refusal, file: CertificateFile, reporter: Reporter) -> None:
    file.note(info.name, "reason", refusal.reason)
    reporter.warn(f"{info.name}: {refusal.status.name}: {refusal.reason}")


def _work_off(
    info: MethodInfo,
    certifier: BatchCertifier,
    samples: Samples,
    file: CertificateFile,
    pending: np.ndarray,
    size: int,
    device: torch.device,
    reporter: Reporter,
) -> None:
    """Batch after batch; a batch that does not fit into memory is halved, a single row that does not is recorded.

    Rows that a method leaves PENDING come again, first in the next batch.
    """
    stalled = False
    while len(pending):
        rows = pending[:size]
        started = time.perf_counter()
        try:
            columns = _certify_rows(info, certifier, samples, rows, device)
        except MEMORY_ERRORS as error:
            if not out_of_memory(error):
                raise
            if device.type == "cuda":
                torch.cuda.empty_cache()
            if len(rows) > 1:
                size = len(rows) // 2
                continue
            columns = _finish(info, samples, rows, _same(Status.OUT_OF_MEMORY, 1))
        except (Unsupported, Contradiction) as error:
            status = Status.UNSUPPORTED if isinstance(error, Unsupported) else Status.ERROR
            certifier = _Refusal(status, str(error))
            _explain(info, certifier, file, reporter)
            continue
        own, share = columns.get("seconds"), (time.perf_counter() - started) / len(rows)
        columns["seconds"] = np.full(len(rows), share) if own is None else np.nan_to_num(own)
        done = columns["status"] != Status.PENDING
        if stalled and not done.any():
            columns["status"][:], done = Status.ERROR, ~done
            _explain(info, _Refusal(Status.ERROR, "it was asked twice and decided nothing"), file, reporter)
        stalled = not done.any()
        pending = np.concatenate([rows[~done], pending[len(rows) :]])
        if not done.any():
            continue
        rows, columns = rows[done], {name: values[done] for name, values in columns.items()}
        _check_against_attack(info, file, rows, columns, reporter)
        file.write(info.name, rows, columns)
        reporter.advance(len(rows))


def _certify_rows(
    info: MethodInfo, certifier: BatchCertifier, samples: Samples, rows: np.ndarray, device: torch.device
) -> Columns:
    """Columns of some rows. Misclassified rows and rows without finite logits are settled here."""
    predicted, finite, correct = (t[rows] for t in (samples.predicted, samples.finite, samples.correct))
    columns = _same(Status.MISCLASSIFIED, len(rows))
    columns["status"][~finite.numpy()] = Status.ERROR
    asked = np.arange(len(rows)) if info.predicts else np.flatnonzero(correct.numpy())
    if len(asked):
        x = samples.batch(rows[asked], device)
        answers = certifier(x, predicted[asked].to(device), samples.indices[rows[asked]])
        for name, values in answers.items():
            if name not in columns:
                columns[name] = _blank(info, name, len(rows), values)
            columns[name][asked] = values
    return _finish(info, samples, rows, columns)


def _blank(info: MethodInfo, name: str, rows: int, values: np.ndarray) -> np.ndarray:
    fill = next(column.fill for column in (*COMMON_COLUMNS, *info.columns) if column.name == name)
    return np.full((rows, *values.shape[1:]), fill, values.dtype)


def _finish(info: MethodInfo, samples: Samples, rows: np.ndarray, columns: Columns) -> Columns:
    """Add the common columns and hold the rules: no radius without a proof, none that is not a finite number."""
    status, radius = columns["status"], columns["radius"]
    claims = status == Status.CERTIFIED
    status[~np.isfinite(radius)] = Status.ERROR
    status[claims & ((radius <= 0) | (info.guarantee == Guarantee.ESTIMATE))] = Status.ERROR
    label, correct = samples.labels[rows].numpy(), samples.correct[rows].numpy()
    predicted = columns.get("predicted", samples.predicted[rows].numpy())
    if info.predicts:
        correct = predicted == label
        status[(status == Status.CERTIFIED) & ~correct] = Status.MISCLASSIFIED
        columns["base"] = samples.predicted[rows].numpy()
    columns["radius"] = np.where(status == Status.CERTIFIED, radius, 0.0)
    columns.update(
        index=samples.indices[rows].numpy(), label=label, predicted=predicted, correct=correct.astype("uint8")
    )
    return columns


def _check_against_attack(
    info: MethodInfo, file: CertificateFile, rows: np.ndarray, columns: Columns, reporter: Reporter
) -> None:
    """A stored counterexample inside a radius is a contradiction: the row is an ERROR, never a certificate."""
    eps = file.eps(info.name)
    contradicted = np.zeros(len(rows), bool)
    if info.guarantee is Guarantee.DETERMINISTIC:
        distance = file.attack_distance(rows)
        contradicted = (columns["radius"] > 0) & (columns["radius"] >= distance)  # nan compares false
    if contradicted.any():
        columns["status"][contradicted] = Status.ERROR
        columns["radius"][contradicted] = 0.0
        reason = f"{int(contradicted.sum())} rows claim a radius that a stored counterexample lies inside"
        _explain(info, _Refusal(Status.ERROR, reason), file, reporter)
    columns["certified"] = (columns["correct"].astype(bool) & (columns["radius"] >= eps)).astype("uint8")


def _facts(model: nn.Module) -> dict[str, Any]:
    """What may differ between two runs of the same certification."""
    from verifiers import __version__

    return {
        "certkd_version": __version__,
        "torch_version": str(torch.__version__),
        "numpy_version": np.__version__,
        "auto_lirpa_version": compat.version() or "not installed",
        "python_version": platform.python_version(),
        "device": str(device_of(model)),
        "dtype": str(next(iter(model.parameters())).dtype).removeprefix("torch.") if list(model.parameters()) else "",
        "tf32": False,
        "deterministic_algorithms": True,
        "command": " ".join(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
