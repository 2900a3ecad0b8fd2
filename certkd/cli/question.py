"""The options of ``certkd certify`` as one configuration."""

from typing import Any

from verifiers.certify.config import DEFAULT_METHODS, CertifyConfig
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon

#: Settings of methods that have an option of their own, besides --option.
SHORTCUTS = ("time_limit", "engine", "cross_check", "sigma", "n", "n0", "alpha", "noise")
#: Added to the default methods where there is a teacher.
WITH_TEACHER = ("joint",)


def certify_config(eps: Epsilon, options: dict[str, Any]) -> CertifyConfig:
    """What is certified, from the options of the command.

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
    }
    config = CertifyConfig.parse(values)
    if config.pairs and (options["teacher"] is None or config.alone() is None):
        pair = config.pairs[0].kind
        raise InputError(
            f"the method {pair} needs --teacher, and another method for each network: --methods crown,{pair}"
        )
    return config


def _methods(options: dict[str, Any]) -> tuple[str, ...]:
    if options["complete"] and options["methods"] is not None:
        raise InputError(f"--complete means --methods complete, not {options['methods']}: give one of them")
    if options["complete"]:
        return ("complete",)
    if options["methods"] is not None:
        return tuple(name.strip() for name in options["methods"].split(","))
    return DEFAULT_METHODS if options["teacher"] is None else (*DEFAULT_METHODS, *WITH_TEACHER)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """The methods' settings by name; some have options of their own."""
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
