"""Certify a checkpoint on its data set: what ``certkd certify`` and ``certkd run`` share."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike

import torch

from certkd.config.settings import DataConfig
from certkd.data.selection import EVERYTHING, Selection
from certkd.data.sources import DataSet, Split
from certkd.networks.checkpoint import Checkpoint
from verifiers.certify.certify import DEFAULT_METHODS, certify
from verifiers.certify.verify import indices_of
from verifiers.core.errors import InputError, did_you_mean
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.reporter import Reporter
from verifiers.methods.base import Option
from verifiers.methods.registry import find
from verifiers.results.rows import Certificates


def without_pairs(
    methods: Sequence[str], options: Mapping[str, Option]
) -> tuple[list[str], dict[str, Option], list[str]]:
    """Methods about one network, the settings that are not of the others alone, and those others."""
    pairs = [name for name in methods if find(name).needs_teacher]
    alone = [name for name in methods if name not in pairs]
    theirs = {name for method in pairs for name in find(method).options}
    ours = {name for method in alone for name in find(method).options}
    return alone, {name: value for name, value in options.items() if name not in theirs - ours}, pairs


def split_of(data: DataSet, name: str) -> Split:
    """The split of that name.

    Raises:
        InputError: there is none.
    """
    if name not in data.splits:
        raise InputError(f"unknown split {name!r}.{did_you_mean(name, list(data.splits))}")
    return data.splits[name]


def chosen_samples(known: Checkpoint, data: DataSet, split: str, selection: Selection = EVERYTHING) -> Split:
    """The chosen samples of a split, for a network that takes them.

    Raises:
        InputError: another input shape or too few classes, an unknown split, or samples that it does not have.
    """
    whole, spec = split_of(data, split), known.model.spec
    if spec.shape != data.shape or spec.classes < data.classes:
        raise InputError(
            f"the network takes images {spec.shape} of {spec.classes} classes, "
            f"{data.name} has {data.shape} of {data.classes}"
        )
    return whole.take(torch.tensor(selection.rows(len(whole), f"the {split} split of {data.name}")))


def rows_of(certificates: Certificates, data: DataSet) -> Split:
    """The samples that a certificate file is about, in its order.

    Raises:
        InputError: the data set has no such split or samples, or the file does not know them all yet.
    """
    whole = split_of(data, str(certificates.attributes["split"]))
    position = {index: row for row, index in enumerate(whole.indices.tolist())}
    indices = indices_of(certificates).tolist()
    missing = [index for index in indices if index not in position]
    if missing:
        raise InputError(f"{certificates.path}: {data.name} has no sample {missing[0]}")
    return whole.take(torch.tensor([position[index] for index in indices]))


def certify_checkpoint(
    known: Checkpoint,
    data: DataSet,
    config: DataConfig,
    *,
    eps: str | Epsilon,
    norm: str | Norm = Norm.LINF,
    methods: Sequence[str] = DEFAULT_METHODS,
    out: str | PathLike[str] | None = None,
    split: str = "test",
    selection: Selection = EVERYTHING,
    seed: int = 0,
    batch_size: int | None = None,
    options: Mapping[str, Option] | None = None,
    engine: str = "auto",
    cross_check: int = 0,
    teacher: Checkpoint | None = None,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
) -> Certificates:
    """Certify a network on the chosen samples of a split of a data set.

    Raises:
        InputError: another input shape or too few classes, an unknown split, samples that it does not have, and
            whatever ``certify`` refuses.
    """
    spec, samples, reporter = known.model.spec, chosen_samples(known, data, split, selection), reporter or Reporter()
    whole = split_of(data, split)
    if selection.ranges is not None and not torch.equal(whole.indices, torch.arange(len(whole))):
        reporter.inform(f"samples are numbered in the {split} split; the file has their index in all of {data.name}")
    return certify(
        known.model.to(device or torch.device("cpu")),
        samples.images,
        samples.labels,
        eps=eps,
        norm=norm,
        methods=methods,
        out=out,
        seed=seed,
        batch_size=batch_size,
        options=options,
        engine=engine,
        cross_check=cross_check,
        teacher=None if teacher is None else teacher.model.to(device or torch.device("cpu")),
        indices=samples.indices,
        identity={
            "architecture": f"{spec.name} {json.dumps(spec.options)}" if spec.options else spec.name,
            "data": config.name,
            "data_seed": config.seed,
            "split": split,
            "teacher_sha256": known.teacher_sha256,
        },
        reporter=reporter,
    )
