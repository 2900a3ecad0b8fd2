"""Settings of experiments: a teacher, students, compressed copies, and the question that is put to all of them."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from certkd.config.copies import AnyCompression, Int8
from certkd.config.settings import DataConfig, ModelConfig, Recipe, SelectionConfig
from certkd.objectives import AnyObjective
from verifiers.certify.config import CertifyConfig
from verifiers.core.errors import InputError, quoted
from verifiers.core.relation import Property, settings_of
from verifiers.core.settings import Count, Seed, Strict
from verifiers.methods.match import Match
from verifiers.methods.registry import parse


class RoleConfig(Recipe):
    """One network of an experiment, and its objective.

    Attributes:
        model: the network to train.
        objective: the terms of the loss; 'certkd objectives' lists the kinds.
    """

    model: ModelConfig = ModelConfig()
    objective: AnyObjective


class Tuning(Recipe):
    """The further training of a copy, with the network that it is a copy of as its teacher.

    Attributes:
        objective: the terms of the loss; 'certkd objectives' lists the kinds.
    """

    objective: AnyObjective


class CopyConfig(Strict):
    """A compressed copy of the teacher or of a student.

    Attributes:
        of: the name of the network.
        how: prune, low-rank or int8, with their settings.
        tune: the copy's further training, which keeps its zeros and ranks. Before a network becomes int8 it is
            trained as its copy computes.
    """

    of: str
    how: AnyCompression
    tune: Tuning | None = None

    @model_validator(mode="after")
    def _is_trained_as_it_computes(self) -> "CopyConfig":
        if self.tune is not None and isinstance(self.how, Int8) and self.how.scales != "per-channel":
            raise ValueError("before int8 a network is trained with a scale for each channel: drop scales, or tune")
        return self


class StudentsConfig(Recipe):
    """One network trained by several objectives, all else equal.

    Attributes:
        model: the network to train.
        objectives: by the students' names; 'certkd objectives' lists the kinds.
        copies: compressed copies of the teacher and of students, by their own names.
    """

    model: ModelConfig = ModelConfig()
    objectives: dict[str, AnyObjective]
    copies: dict[str, CopyConfig] = {}

    @field_validator("objectives", "copies")
    @classmethod
    def _names_are_file_names(cls, named: dict[str, Any]) -> dict[str, Any]:
        for name in named:
            if name == "teacher" or not re.fullmatch(r"\w[\w.+-]*", name):
                raise ValueError(f"a student cannot be named {quoted(name)}: its files are named after it")
        return named

    @model_validator(mode="after")
    def _copies_are_of_what_is_trained(self) -> "StudentsConfig":
        trained = ["teacher", *self.objectives]
        for name, copy in self.copies.items():
            if name in self.objectives:
                raise ValueError(f"a student and a copy are both named {name}: rename one of them")
            if copy.of not in trained:
                raise ValueError(f"the copy {name} is of {quoted(copy.of)}: name one of {', '.join(trained)}")
        return self


class CertifySection(CertifyConfig):
    """Settings of certifying the networks of an experiment, and the number of test samples.

    Attributes:
        methods: each at most once; 'certkd methods' lists the kinds.
        limit: the number of test samples.
        properties: those that match decides, in place of its own, like [same-class, close=6]; each has its own file.
    """

    limit: Count | None = None
    properties: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _can_be_asked(self) -> "CertifySection":
        """Refuse properties without a method, and what they do not have."""
        if self.properties and not any(isinstance(method, Match) for method in self.methods):
            raise ValueError("properties are decided by the method match: add it to the methods")
        labels = [method.relation.label for one in self.asked() for method in one.methods if isinstance(method, Match)]
        twice = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
        if twice is not None:
            raise ValueError(f"the property {twice} is given twice: drop one of them")
        return self

    def asked(self) -> "list[CertifySection]":
        """Return the question with the first property, then one about each further property alone."""
        match = next((method for method in self.methods if isinstance(method, Match)), None)
        if match is None or not self.properties:
            return [self]
        given = match.model_dump(exclude_unset=True, exclude={"kind", "property", "tolerance", "delta"})
        each = []
        for own in map(settings_of, self.properties):
            idle = {"bisect"} if own["property"] == Property.TRANSFER else set()  # it has no threshold
            each.append(parse(match.kind, {name: given[name] for name in given.keys() - idle} | own))
        first = tuple(each[0] if method is match else method for method in self.methods)
        return [self.model_copy(update={"methods": methods}) for methods in (first, *((one,) for one in each[1:]))]


class ExperimentConfig(Strict):
    """One experiment (``certkd run``): a teacher, students, certificates for all, a comparison.

    Attributes:
        out: the folder of its outputs.
        seed: keys all randomness.
        data: the data set.
        device: "auto", "cpu", "cuda" or "cuda:1".
        natural_teacher: a checkpoint for the students whose objective has a second teacher.
        teacher: the training of the teacher.
        students: the trainings of the students.
        certify: the question that is put to all networks.
        selection: decides which epoch is the best.
    """

    out: Annotated[str, Field(examples=["runs/first"])]
    seed: Seed = 0
    data: DataConfig = DataConfig()
    device: str = "auto"
    natural_teacher: str | None = None
    teacher: RoleConfig
    students: StudentsConfig
    certify: CertifySection
    selection: SelectionConfig = SelectionConfig()

    @model_validator(mode="before")
    @classmethod
    def _is_no_training(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "objective" in given and "students" not in given:
            raise InputError("this is one training, not an experiment: use 'certkd train --config FILE'")
        return given
