"""Descriptions of objectives, read from their source, against the classes."""

import inspect
import subprocess
import sys
from enum import Enum
from typing import Any, Literal, get_args, get_origin

import pytest

from certkd.catalogue import describe, descriptions
from certkd.objectives import OBJECTIVES, Objective
from tests.paths import ROOT
from verifiers.core.errors import InputError


def choices(annotation: Any) -> tuple[str, ...]:
    """The words that pydantic takes for a field, when there is more than one."""
    parts = [annotation, *get_args(annotation)]
    words = [str(word) for part in parts if get_origin(part) is Literal for word in get_args(part)]
    words += [str(word) for part in parts if isinstance(part, type) and issubclass(part, Enum) for word in part]
    return tuple(words) if len(words) > 1 else ()


def test_every_objective_is_described_in_order() -> None:
    assert list(descriptions()) == [objective.model_fields["kind"].default for objective in OBJECTIVES]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.__name__)
def test_a_description_is_what_the_class_says(objective: type[Objective]) -> None:
    found = describe(objective.model_fields["kind"].default)
    assert (found.summary, found.paper) == (objective.summary, objective.paper)
    lineage = [c for c in objective.__mro__ if issubclass(c, Objective) and c is not Objective and c.__doc__]
    assert list(found.texts) == [inspect.cleandoc(str(c.__doc__)) for c in lineage]
    fields = {name: field for name, field in objective.model_fields.items() if name != "kind"}
    assert [setting.name for setting in found.settings] == list(fields)
    for setting in found.settings:
        field = fields[setting.name]
        assert setting.default == (None if field.is_required() else str(field.default)), setting.name
        assert setting.choices == choices(field.annotation), setting.name


def test_an_unknown_objective_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown objective 'kdigga'\. Did you mean 'kdiga'"):
        describe("kdigga")


def test_the_command_loads_no_torch() -> None:
    program = (
        "import sys; from certkd.cli import cli; cli.main(['objectives', 'kdiga'], standalone_mode=False); "
        "print(sorted({'torch', 'scipy', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "lambda_iga: 0.9" in run.stdout and run.stdout.splitlines()[-1] == "[]", run.stdout + run.stderr
