"""The options of ``certkd certify`` as one configuration."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verifiers.certify.config import DEFAULT_METHODS, CertifyConfig
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon
from verifiers.methods.match import Match

#: Settings of methods that have an option of their own, besides --option.
SHORTCUTS = ("time_limit", "engine", "cross_check", "sigma", "n", "n0", "alpha", "noise")
#: Added to the default methods where there is a teacher.
WITH_TEACHER = ("joint",)
#: Longer lists of samples are named by a hash.
LONGEST_MARK = 40


def certify_config(eps: Epsilon, options: dict[str, Any]) -> CertifyConfig:
    """Build the configuration from the options of the command.

    Raises:
        InputError: options that contradict each other, and whatever the configuration refuses.
    """
    values = {
        "eps": eps.text,
        "norm": options["norm"],
        "methods": _methods(options),
        "options": _settings(options),
        "seed": options["seed"],
        "batch_size": options["batch_size"],
        "workers": options["workers"],
        "cluster": options["cluster"],
        "arithmetic": options["arithmetic"],
    }
    config = CertifyConfig.parse(values)
    lone = config.alone() is None and not all(method.relational for method in config.methods)
    if config.pairs and (options["teacher"] is None or lone):
        pair = config.pairs[0]
        also = "" if pair.relational else f", and another method for each network: --methods crown,{pair.kind}"
        raise InputError(f"the method {pair.kind} needs --teacher{also}")
    return config


def certify_configs(eps: Epsilon, options: dict[str, Any]) -> list[CertifyConfig]:
    """Build the configuration, or one for each of the relations that are asked one after another.

    Raises:
        InputError: as ``certify_config``, or a relation is asked twice.
    """
    configs = [
        certify_config(eps, {**options, "settings": (*options["settings"], *settings)})
        for settings in options.get("relations", ((),))
    ]
    labels = [relations_of(config) for config in configs]
    twice = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
    if twice is not None:
        raise InputError(f"the property {' '.join(twice)} is given twice: drop one of them")
    return configs


def about(place: str | None, config: CertifyConfig) -> Path | None:
    """Name the file of one relation among several."""
    return Path(place).with_stem("-".join([Path(place).stem, *relations_of(config)])) if place else None


def _methods(options: dict[str, Any]) -> str | tuple[str, ...]:
    if options["complete"] and options["methods"] is not None:
        raise InputError(f"--complete means --methods complete, not {options['methods']}: give one of them")
    if options["complete"]:
        return ("complete",)
    if options["methods"] is not None:
        return str(options["methods"])
    return default_methods(options["teacher"] is not None)


def default_methods(teacher: bool) -> tuple[str, ...]:
    """List the methods that run when none are named, with a teacher or without."""
    return (*DEFAULT_METHODS, *WITH_TEACHER) if teacher else DEFAULT_METHODS


def marks_of(options: Mapping[str, Any]) -> list[str]:
    """Say in the name of a file which samples a question is about; nothing for all samples of the network's own data.

    The marks are the data set and the split where they are given, and the list, the first N or the numbers.
    """
    marks = [Path(options["data"]).stem] if options["data"] else []
    marks += [options["split"]] if options["split"] != "test" else []
    marks += [Path(options[name]).stem for name in ("instances", "indices_file") if options[name]]
    marks += [f"first{options['limit']}"] if options["limit"] else []
    if options["indices"]:
        short = options["indices"].replace(" ", "").replace(",", "_")
        digest = hashlib.sha256(short.encode()).hexdigest()[:8]
        marks.append(f"samples{short if len(short) <= LONGEST_MARK else digest}")
    return [re.sub(r"[^\w.+-]", "_", mark) for mark in marks]


def default_out(name: str, config: CertifyConfig, marks: Sequence[str] = (), teacher: str | None = None) -> Path:
    """Name the certificate file next to the checkpoint, so that another question goes to another file.

    The name holds network, norm, eps, noise, teacher, the marks of the samples, and the methods unless they are the
    default.
    """
    usual = config.kinds == default_methods(teacher is not None)
    return _named(name, config, marks, teacher, "" if usual else "+".join(config.kinds))


def larger_questions(
    name: str, config: CertifyConfig, marks: Sequence[str] = (), teacher: str | None = None
) -> list[Path]:
    """List the files that exist under the default names of questions about all samples, or with the default methods."""
    kinds = "+".join(config.kinds)
    others = [(marks, ""), ((), kinds), ((), "")]
    places = [_named(name, config, each, teacher, methods) for each, methods in others]
    return [place for place in dict.fromkeys(places) if place.is_file()]


def _named(name: str, config: CertifyConfig, marks: Sequence[str], teacher: str | None, methods: str) -> Path:
    place = Path(name) if "/" in name or Path(name).exists() else Path(name.replace(":", "-"))
    parts = [place.stem, str(config.norm), config.eps.replace("/", "_")]
    parts += [f"sigma{sigma:g}" for method in config.methods if (sigma := getattr(method, "sigma", None)) is not None]
    parts += [] if teacher is None else [f"with-{Path(teacher.replace(':', '-')).stem}"]
    parts += [*marks, *([methods] if methods else [])]
    parts += relations_of(config)
    return place.with_name(f"{'-'.join(parts)}.h5")


def relations_of(config: CertifyConfig) -> list[str]:
    """Name the relations that a configuration asks about, as in the names of files."""
    return [method.relation.label for method in config.methods if isinstance(method, Match)]


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Collect the methods' settings by name, from --option and from options of their own."""
    given = dict(options["settings"])
    named = {name: options[name] for name in SHORTCUTS if options[name] is not None}
    by = {name: f"--{name.replace('_', '-')}" for name in named}
    if options["full"] and options["grid"] is not None:
        raise InputError("--full and --grid answer different questions: give one of them")
    if options["grid"] is not None:
        named |= {"question": "grid", "step": options["grid"]}
    if options["full"]:
        named["question"] = "full"
    twice = next((name for name in named if name in given), None)
    if twice is not None:
        flag = by.get(twice, "--full" if options["full"] else "--grid")
        raise InputError(f"{twice} is given twice: by {flag} and by --option")
    return given | named
