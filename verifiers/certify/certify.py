"""Certify a network sample by sample: one loop for every method."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from os import PathLike
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from verifiers.certify.answers import Asked
from verifiers.certify.batches import Run
from verifiers.certify.config import CertifyConfig
from verifiers.certify.finished import finished_rows
from verifiers.certify.identity import asked_of, check_predictions, facts_of, identity_of, in_own_arithmetic
from verifiers.certify.workers import Crew
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon, beyond_images
from verifiers.core.question import Question
from verifiers.core.reporter import Reporter, Warner
from verifiers.core.status import About
from verifiers.graph.program import Program
from verifiers.methods.base import Method
from verifiers.methods.registry import proves
from verifiers.results.rows import Certificates
from verifiers.results.writer import CertificateFile, MethodTable, check_output
from verifiers.runtime.modes import eval_mode, suitable_threads, trusted_arithmetic
from verifiers.runtime.outputs import as_logits, rows_of
from verifiers.runtime.samples import CLEAN_BATCH, Data, Samples, first_images, others_of, validate

LabelledImages = Data | tuple[Any, Any] | Dataset[Any] | DataLoader[Any]


@overload
def certify(
    network: nn.Module,
    data: LabelledImages,
    config: CertifyConfig,
    *,
    teacher: nn.Module | None = ...,
    out: str | PathLike[str] | None = ...,
    reporter: Reporter | None = ...,
) -> Certificates: ...
@overload
def certify(
    network: nn.Module,
    data: Any,
    config: Any = ...,
    *,
    eps: str | float | Epsilon,
    teacher: nn.Module | None = ...,
    out: str | PathLike[str] | None = ...,
    **settings: Any,
) -> Certificates: ...
def certify(
    network: nn.Module,
    data: Any,
    config: Any = None,
    *,
    teacher: nn.Module | None = None,
    out: str | PathLike[str] | None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Certificates:
    """Certify each sample with each method, and write the certificate file.

    Args:
        network: maps images in [0, 1] to logits, with normalisation inside. It is in eval mode during the call.
        data: images ``(samples, *shape)`` in [0, 1] or as bytes, and true classes ``(samples,)``: a pair of tensors,
            arrays or lists, a torch ``Dataset`` or ``DataLoader``, or ``Data``.
        config: the ball, the methods and their settings; or true classes, with settings by name, if data are images.
        teacher: the second network of methods about a pair, from the same images to the same classes.
        out: certificate file; an unfinished one is resumed, a finished one answers what it includes. None: in memory.
        reporter: receives progress; without one, Python warns of what the user should know.

    Returns:
        The finished rows of all methods.

    Raises:
        InputError: the images, the network, the settings or the contents of the file do not fit.

    Example:
        >>> certificates = certify(model, images, labels, eps="2/255", methods="crown")  # doctest: +SKIP
    """
    data, config = as_config(data, config, settings)
    check_types(network, config, teacher)
    config = in_own_arithmetic(config, network, teacher)
    if out is not None:
        check_output(out, asked=asked_of(config))
    paired, teacher, reporter = bool(config.pairs), teacher if config.looks_at_teacher else None, reporter or Warner()
    program, reference = Program(network, paired=paired), None if teacher is None else Program(teacher, paired=paired)
    question = Question(config.ball, config.norm, config.seed, reference, config.arithmetic)
    for method in config.methods:
        method.check(question)
    with torch.inference_mode(False), ExitStack() as stack:
        for context in (eval_mode(network), eval_mode(teacher or network), trusted_arithmetic()):
            stack.enter_context(context)
        samples = validate(network, data, reporter, partial(hold_both, program, reference))
        first = first_images(samples, network)
        for line in (*remarks(program, reference), *_warnings(config, program, first)):
            reporter.warn(line)
        _check_teacher(teacher, first, samples.classes, config)
        stack.enter_context(suitable_threads(network, first[:1], CLEAN_BATCH))
        identity = identity_of(program, reference, samples, config)
        if (known := finished_rows(out, identity, config, samples, others_of(data))) is not None:
            reporter.inform(f"{out} is finished and holds the answer")
            return known
        file = stack.enter_context(_file(identity, program, samples, first.shape[1:], config, out))
        check_predictions(config, samples, file)
        asked = Asked(program, samples)
        crew = stack.enter_context(Crew.of(question, program, config.in_order, first, config.staff))
        for method in config.in_order:
            Run(method, program, question, samples, asked, file, reporter).finish(config.batch_size, crew)
        return _flagged(config, file.read(), reporter)


def _flagged(config: CertifyConfig, found: Certificates, reporter: Reporter) -> Certificates:
    """Warn of what the rows themselves give away, and return them."""
    for method in config.in_order:
        for line in method.flags(found[method.kind]):
            reporter.warn(f"{method.kind}: {line}")
    return found


def _file(
    identity: dict[str, Any],
    program: Program,
    samples: Samples,
    shape: torch.Size,
    config: CertifyConfig,
    out: str | PathLike[str] | None,
) -> CertificateFile:
    return CertificateFile(
        out,
        identity=identity,
        facts=facts_of(program),
        samples=len(samples.labels),
        sizes={"image": shape, "class": (samples.classes,)},
        methods=[table_of(method, config) for method in config.in_order],
    )


def table_of(method: Method, config: CertifyConfig) -> MethodTable:
    """Describe a method as its group in the file."""
    ball: dict[str, Any] = {"eps": config.ball.value, "eps_text": config.eps, "norm": str(config.norm)}
    facts: dict[str, Any] = {
        "guarantee": str(method.guarantee),
        "claim": method.claim,
        "paper": method.paper,
    }
    if proves(method.kind):
        facts["arithmetic"] = str(config.arithmetic)
    return MethodTable(method.kind, method.columns, {**facts, **ball, "seed": config.seed, **method.options})


def as_config(data: Any, given: Any, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Read the short call, ``(images, labels, eps=...)`` or ``(data, eps=...)``, as data and a configuration."""
    if not settings:
        return data, given
    if isinstance(given, CertifyConfig):
        name = next(iter(settings))
        raise InputError(f"{name} and a config were given: write {name} in the config, CertifyConfig({name}=...)")
    return data if given is None else (data, given), CertifyConfig(**settings)


def check_types(network: Any, config: Any, teacher: Any) -> None:
    """Refuse what is no network and no configuration, before anything is computed."""
    for name, given in (("network", network), ("teacher", teacher)):
        if not isinstance(given, nn.Module | None) or (given is None and name == "network"):
            raise InputError(
                f"the {name} must be a torch.nn.Module, got {type(given).__name__}: "
                "certkd.load_checkpoint(path).model is the network of a file"
            )
    if not isinstance(config, CertifyConfig):
        raise InputError(
            f"config must be a CertifyConfig, got {type(config).__name__}: write CertifyConfig(eps='8/255')"
        )


def hold_both(program: Program, teacher: Program | None, first: Tensor) -> nn.Module:
    """Capture both networks and compare them with their programs; return the module that predicts."""
    if teacher is not None:
        try:
            teacher.hold(first)
        except InputError as error:
            raise InputError(f"the teacher: {error}") from error
    return program.hold(first)


def remarks(program: Program, teacher: Program | None) -> list[str]:
    """Say that nothing can be proved, and which last layers are left out."""
    refused = [] if program.refusal is None else [f"nothing can be proved: {program.refusal}"]
    held = [("the network", program), *([("the teacher", teacher)] if teacher is not None else [])]
    found = [(name, one.captured) for name, one in held]
    said = (each.scores.said.replace("the network", name, 1) for name, each in found if each and each.scores.changed)
    return [*refused, *said]


def _warnings(config: CertifyConfig, program: Program, first: Tensor) -> Iterator[str]:
    """Say that the ball holds every image, if it does, and what each method warns about."""
    beyond = beyond_images(config.ball, config.norm, first[0].numel())
    if beyond is not None:
        yield beyond
    for method in config.methods:
        yield from method.warnings(program, first)


def _check_teacher(teacher: nn.Module | None, first: Tensor, classes: int, config: CertifyConfig) -> None:
    """Check the logits of a teacher that shares its noisy copies with the network, or is in a relation with it."""
    shared = any(method.about is About.SMOOTHED or method.relational for method in config.methods)
    if teacher is None or not shared:
        return
    with torch.no_grad():
        shape = tuple(as_logits(rows_of(teacher(first), len(first))).shape)
    if shape != (len(first), classes):
        raise InputError(f"the teacher gives logits of shape {shape}, the network {(len(first), classes)}")
