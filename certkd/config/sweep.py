"""Axes of a sweep: a setting of the students' objectives with several values, and the experiment of all of them."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from certkd.config.experiment import ExperimentConfig
from certkd.config.reading import value_of
from certkd.objectives import Objective
from verifiers.core.errors import InputError, did_you_mean, quoted

#: Stands for all students whose objective has the setting.
EVERY = "objective"


@dataclass(frozen=True)
class Axis:
    """A setting of one student's objective, or of all that have it, and its values as texts."""

    of: str
    setting: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """Read ``objective.alpha=0.1,0.3,1``; a student's name in place of ``objective`` means that one alone.

        Raises:
            InputError: the text has another form, or gives a value twice.
        """
        key, equals, listed = text.partition("=")
        of, dot, setting = key.strip().rpartition(".")
        values = tuple(value.strip() for value in listed.split(","))
        if not (equals and dot and of and setting and all(values)):
            raise InputError(f"a sweep is over a setting's values, like objective.alpha=0.1,0.3, got {quoted(text)}")
        twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
        if twice is not None:
            raise InputError(f"{key}: the value {quoted(twice)} is given twice: drop one of them")
        return cls(of, setting, values)


@dataclass(frozen=True)
class Variant:
    """A student of a sweep: its method (the name in the configuration) and the settings that vary."""

    method: str
    settings: Mapping[str, str]

    @property
    def name(self) -> str:
        """The student's name, which its files have too."""
        settings = (f"{key}-{re.sub(r'[^A-Za-z0-9_.-]', '_', value)}" for key, value in self.settings.items())
        return "+".join([self.method, *settings])


def expanded(config: ExperimentConfig, axes: Sequence[Axis]) -> tuple[dict[str, Variant], dict[str, Objective]]:
    """Return the students of a sweep by name, and their objectives; one without a setting that varies is there once.

    Raises:
        InputError: no objective has a setting, there is no such student, or an objective refuses a value.
    """
    given = config.students.objectives
    for axis in axes:
        _check(axis, given)
    variants: dict[str, Variant] = {}
    objectives: dict[str, Objective] = {}
    for method, objective in given.items():
        for settings in _choices(method, objective, axes):
            one = Variant(method, settings)
            if one.name in variants:
                raise InputError(f"two students would be named {quoted(one.name)}: drop one of their values")
            variants[one.name] = one
            objectives[one.name] = _with(objective, one)
    return variants, objectives


def _check(axis: Axis, objectives: Mapping[str, Objective]) -> None:
    if axis.of not in (EVERY, *objectives):
        raise InputError(f"no student {quoted(axis.of)}.{did_you_mean(axis.of, [EVERY, *objectives])}")
    asked = objectives if axis.of == EVERY else {axis.of: objectives[axis.of]}
    known = sorted({name for objective in asked.values() for name in type(objective).model_fields} - {"kind"})
    if axis.setting not in known:
        whose = "no objective has" if axis.of == EVERY else f"the objective of {axis.of} has no"
        raise InputError(f"{whose} setting {quoted(axis.setting)}.{did_you_mean(axis.setting, known)}")


def _choices(method: str, objective: Objective, axes: Sequence[Axis]) -> Iterator[dict[str, str]]:
    """Yield all combinations of the values of the axes that a method has; the axis of its own name wins."""
    own = {axis.setting: axis for of in (EVERY, method) for axis in axes if axis.of == of}
    varied = [axis for axis in own.values() if axis.setting in type(objective).model_fields]
    for values in itertools.product(*(axis.values for axis in varied)):
        yield {axis.setting: value for axis, value in zip(varied, values, strict=True)}


def _with(objective: Objective, variant: Variant) -> Objective:
    changes: dict[str, Any] = {setting: value_of(value) for setting, value in variant.settings.items()}
    kept = {name: getattr(objective, name) for name in objective.model_fields_set}
    return type(objective).parse(kept | changes, source=variant.method)
