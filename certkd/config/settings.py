"""The whole configuration: frozen models that refuse unknown keys, read from YAML."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator

from certkd.objectives import AnyObjective
from verifiers.certify.config import CertifyConfig
from verifiers.core.errors import InputError, did_you_mean
from verifiers.core.quantities import Norm
from verifiers.core.settings import Count, EpsilonText, Number, Positive, Seed, Strict


def _share(value: Any) -> Any:
    if isinstance(value, int | float) and not 0 < value < 1:
        raise ValueError(f"a share of the epochs is between 0 and 1, got {value:g}: after 60 of 100 epochs is 0.6")
    return value


#: Which part of a training's epochs.
Share = Annotated[Positive, BeforeValidator(_share)]


class DataConfig(Strict):
    """Which data set, where it lies, the seed of its splits, and how many of its training images are used."""

    name: str = "digits"
    root: str | None = None
    download: bool = False
    seed: Seed = 0
    image_size: Count = 224
    limit: Count | None = None


class ModelConfig(Strict):
    """Which network: ``source:name``, from random weights or its source's pre-trained ones, or a checkpoint's path.

    With ``resize`` the network is built for square images of so many pixels, to which those of the data are resized.
    ``weights`` is a file of bare weights to begin with; a last linear layer of another number of classes begins random.
    """

    name: str = "certkd:mlp"
    options: dict[str, Any] = {}
    normalize: bool = True
    pretrained: bool = False
    weights: str | None = None
    resize: Count | None = None


class OptimizerConfig(Strict):
    """Adam or SGD with Nesterov momentum 0.9; the rate is multiplied by ``drop`` after each share of the epochs.

    A drop takes effect in the first epoch that begins after its share. The rate rises linearly in the
    first ``warmup`` epochs.
    """

    kind: Literal["adam", "sgd"] = "adam"
    rate: Positive = 2e-3
    weight_decay: Number = 0.0
    schedule: Literal["constant", "steps", "cosine"] = "steps"
    milestones: tuple[Share, ...] = (0.6, 0.85)
    drop: Annotated[Positive, Field(le=1)] = 0.1
    warmup: Number = 0.0

    @model_validator(mode="after")
    def _all_has_an_effect(self) -> "OptimizerConfig":
        self.refuse_idle(dict.fromkeys(("milestones", "drop"), self.schedule == "steps"))
        return self


class SelectionConfig(Strict):
    """The best epoch has the highest ``metric`` on the validation split.

    PGD accuracy ("pgd") is measured when eps is given, accuracy under Gaussian noise ("noisy") when sigma is. Without a
    metric it is "noisy" for objectives that train under noise, whose sigma is the default then, and "clean" for others.
    """

    metric: Literal["clean", "pgd", "noisy"] | None = None
    sigma: Positive | None = None
    eps: EpsilonText | None = None
    norm: Norm = Norm.LINF
    steps: Count = 10

    @model_validator(mode="after")
    def _metric_can_be_measured(self) -> "SelectionConfig":
        if self.metric == "pgd" and self.eps is None:
            raise ValueError("selection by pgd needs an eps")
        if self.metric == "noisy" and self.sigma is None:
            raise ValueError("selection by noisy needs a sigma")
        return self


class Recipe(Strict):
    """How a network is trained, whatever its objective.

    Attributes:
        precision: of matrix products and convolutions in the losses; weights stay in float32, and so do finite
            differences.
        average: the network that is measured, saved and returned: the trained one, an exponential moving average of it
            (ema), or the mean of its epochs (swa).
        average_decay: of ema.
        average_from: share of the epochs after which averaging begins; 0 for ema and 0.75 for swa when absent.
        accumulate: a batch is gone through in so many parts, for less memory.
        compile: forward passes by ``torch.compile``; not for objectives that need second derivatives.
        channels_last: the memory layout that convolutions on GPUs prefer.
    """

    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    epochs: Count = 60
    batch_size: Count = 128
    augment: Literal["none", "crop-flip"] = "none"
    precision: Literal["float32", "bfloat16"] = "float32"
    average: Literal["none", "ema", "swa"] = "none"
    average_decay: Annotated[Number, Field(lt=1)] = 0.999
    average_from: Annotated[Number, Field(lt=1)] | None = None
    accumulate: Count = 1
    compile: bool = False
    channels_last: bool = False

    @model_validator(mode="after")
    def _settings_fit(self) -> "Recipe":
        if self.optimizer.warmup and self.optimizer.warmup >= self.epochs:
            raise ValueError(f"a warm-up of {self.optimizer.warmup:g} epochs does not end in {self.epochs}")
        self.refuse_idle({"average_decay": self.average == "ema", "average_from": self.average != "none"})
        return self


class RoleConfig(Recipe):
    """One network and its objective."""

    objective: AnyObjective


class StudentsConfig(Recipe):
    """One network trained by several objectives, all else equal."""

    objectives: dict[str, AnyObjective]

    @field_validator("objectives")
    @classmethod
    def _names_are_file_names(cls, objectives: dict[str, Any]) -> dict[str, Any]:
        for name in objectives:
            if name == "teacher" or not re.fullmatch(r"\w[\w.+-]*", name):
                raise ValueError(f"a student cannot be named {name!r}: its files are named after it")
        return objectives


class TrainConfig(RoleConfig):
    """One training: ``certkd train --config``."""

    out: str
    seed: Seed = 0
    data: DataConfig = DataConfig()
    teacher: str | None = None
    natural_teacher: str | None = None
    selection: SelectionConfig = SelectionConfig()
    device: str = "auto"


class CertifySection(CertifyConfig):
    """How all networks of an experiment are certified, and on how many test samples."""

    limit: Count | None = None


class ExperimentConfig(Strict):
    """``certkd run``: a teacher, students, certificates for all, a comparison.

    ``natural_teacher`` is a checkpoint for the students whose objective has a second teacher.
    """

    out: str
    seed: Seed = 0
    data: DataConfig = DataConfig()
    device: str = "auto"
    natural_teacher: str | None = None
    teacher: RoleConfig
    students: StudentsConfig
    certify: CertifySection
    selection: SelectionConfig = SelectionConfig()


Config = TypeVar("Config", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, and reads decimal numbers only.

    YAML 1.1 takes 010 for 8, 0x10 for 16 and 1:30 for 90; here they are words, which the settings judge.
    """


_NUMBERS = {
    "int": r"[-+]?(?:0|[1-9][0-9]*)$",
    "float": r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?$|[-+]?\.(?:inf|nan)$",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list("-+.0123456789"))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"line {node.start_mark.line + 1}: the key {key!r} is given twice")
    loader.flatten_mapping(node)
    try:
        return dict(loader.construct_pairs(node, deep=True))
    except TypeError:
        raise InputError(f"line {node.start_mark.line + 1}: a key must be a word, not a list or a section") from None


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read(
    path: str | os.PathLike[str] | None,
    kind: type[Config],
    overrides: Sequence[str] = (),
    *,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Read a YAML file into a configuration, with ``key.sub=value`` overrides applied.

    A file may name another one to go on from with ``extends: other.yaml``, relative to itself. Sections are merged key
    by key and the later file wins; a section of another ``kind`` or ``name`` replaces the earlier one.

    Args:
        defaults: what a file would say, where there is none.

    Raises:
        InputError: missing file, a file that extends itself, broken YAML, a key given twice, an unknown key (with the
            nearest known one), a value of the wrong type; the message names the key and repeats the value.
    """
    tree = dict(defaults or {}) if path is None else _load_file(Path(path))
    return parse(_override(tree, overrides), kind, source="settings" if path is None else str(path))


def parse(tree: Mapping[str, Any], kind: type[Config], *, source: str = "configuration") -> Config:
    """A configuration from plain values.

    Raises:
        InputError: as ``read``.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{source}: {_first_problem(error, kind, tree)}") from None
    except OverflowError:
        raise InputError(f"{source}: a number is too large") from None


def _load_file(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's settings on top of those of the file that it extends."""
    if any(path.resolve() == other.resolve() for other in extended_by):
        raise InputError(f"{extended_by[-1]} extends {path}, which extends it: remove one of the two extends")
    try:
        tree = _load_yaml(path)
    except InputError as error:
        raise InputError(f"{error} ({extended_by[-1]} extends it)" if extended_by else str(error)) from None
    if "extends" not in tree:
        return tree
    base = tree.pop("extends")
    if not isinstance(base, str) or not base:
        raise InputError(f"{path}: extends must name one file, got {base!r}")
    return _merged(_load_file(path.parent / base, (*extended_by, path)), tree)


def _merged(base: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees, key by key; a section of another kind or name replaces the earlier one, whose keys were about that."""
    if any(key in base and key in later and base[key] != later[key] for key in ("kind", "name")):
        return dict(later)
    result = dict(base)
    for key, value in later.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            tree = yaml.load(file, _Loader)
    except FileNotFoundError:
        raise InputError(f"no such configuration: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold key: value lines, it holds {type(tree).__name__}")
    return tree


def _override(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {override!r} must look like key=value, for example --set objective.lambda_iga=0.3")
        *parents, last = key.strip().split(".")
        node = tree
        for name in parents:
            child = node.setdefault(name, {})
            if not isinstance(child, dict):
                raise InputError(f"--set {override!r}: {name!r} is a value, not a section")
            node = child
        try:
            node[last] = yaml.load(text, _Loader) if text.strip() else None
        except yaml.YAMLError as error:
            raise InputError(
                f"--set {override!r}: the value is not YAML: {' '.join(str(error).split())[:120]}"
            ) from None
    return tree


def _first_problem(error: ValidationError, kind: type[BaseModel], tree: Mapping[str, Any]) -> str:
    problem = error.errors()[0]
    where = ".".join(_written(problem["loc"], tree))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        known = _known_keys(kind, problem["loc"][:-1])
        return f"unknown key {where!r}.{did_you_mean(key, known)}{more}"
    if problem["type"] == "union_tag_not_found":
        return f"the key {where + '.kind'!r} is missing{more}"
    if problem["type"] == "missing":
        return f"the key {where!r} is missing{more}"
    message = problem["msg"].removeprefix("Value error, ")
    told = isinstance(problem["input"], Mapping) or repr(problem["input"]) in message
    given = "" if told else f", got {problem['input']!r}"
    return f"{where}: {message}{given}{more}" if where else f"{message}{given}{more}"


def _written(location: Sequence[Any], tree: Any) -> list[str]:
    """The keys of an error's place as they stand in the file: without the tags that pydantic adds at a union."""
    keys = []
    for number, part in enumerate(location):
        inside = isinstance(tree, Mapping) and part in tree
        listed = isinstance(tree, list | tuple) and isinstance(part, int)
        tag = isinstance(tree, Mapping) and tree.get("kind") == part and not inside
        if inside or listed or (number == len(location) - 1 and not tag):
            keys.append(str(part))
            tree = tree[part] if inside or (listed and part < len(tree)) else None
    return keys


def _known_keys(kind: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Field names at a place in the tree; at a union, those of the tagged member."""
    models: list[type[BaseModel]] = [kind]
    for number, part in enumerate(location):
        found: list[type[BaseModel]] = []
        for model in models:
            annotation = model.model_fields[part].annotation if part in model.model_fields else None
            found += [m for m in _models_in(annotation) if m is not None]
        tagged = [m for m in models if str(part) == _tag(m)] if number == len(location) - 1 else []
        models = tagged or found or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]


def _tag(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    return str(kind.default) if kind is not None else None
