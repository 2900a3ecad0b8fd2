"""MkDocs hook: fill in what the documentation takes from the code, the measurements and the reference run.

``<!-- generated: NAME -->`` is replaced by ``NAME()`` of this file, ``<!-- settings: CLASS -->`` by the settings of a
public class, ``<!-- include: PATH -->`` by a file of the repository. Nothing that is generated is committed.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from certkd.config.printing import choices, meanings

ROOT = Path(__file__).resolve().parents[1]
PICTURE = "artifacts/reference/digits/radius.png"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the picture of the reference run."""
    files.append(File.generated(config, "radius.png", abs_src_path=str(ROOT / PICTURE)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page."""
    markdown = re.sub(r"<!-- generated: (\w+) -->", lambda found: GENERATED[found[1]](), markdown)
    markdown = re.sub(r"<!-- settings: (\w+) -->", lambda found: settings(found[1]), markdown)
    return re.sub(r"<!-- include: (\S+) -->", lambda found: included(found[1]), markdown)


def included(path: str) -> str:
    """A file of measurements; its first line is the command."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return text.replace("[kdiga_step.md](kdiga_step.md)", "[Cost of a step](#cost-of-a-step)")


def settings(name: str) -> str:
    """The settings of a public class of certkd."""
    import certkd

    kind = getattr(certkd, name)
    return _settings(kind.model_fields, meanings(kind))


def all_settings() -> str:
    """Every section of a training's and an experiment's file."""
    from certkd.config import copies, experiment, settings

    parts = []
    for name in TITLES:
        kind = next(getattr(module, name) for module in (experiment, settings, copies) if hasattr(module, name))
        first = inspect.cleandoc(kind.__doc__).partition("\n\n")[0].replace("``", "`")
        parts.append(f"## {TITLES[name]}\n\n{first}\n\n{_settings(kind.model_fields, meanings(kind))}")
    return "\n\n".join(parts)


#: Where a section of a configuration is.
TITLES = {
    "TrainJob": "A training",
    "ExperimentConfig": "An experiment",
    "RoleConfig": "`teacher` of an experiment",
    "StudentsConfig": "`students`",
    "CopyConfig": "`copies` of students, each by its name",
    "Tuning": "`tune` of a copy",
    "Prune": "`how` of a pruned copy",
    "LowRank": "`how` of a low-rank copy",
    "Int8": "`how` of an int8 copy",
    "CertifySection": "`certify`",
    "DataConfig": "`data`",
    "ModelConfig": "`model`",
    "OptimizerConfig": "`optimizer`",
    "SelectionConfig": "`selection`",
    "Threat": "`threat`",
}


def objectives() -> str:
    """Every training objective: summary, source, formula and settings."""
    from certkd.objectives import OBJECTIVES, Objective

    parts = []
    for objective in OBJECTIVES:
        source = f"\n\nSource: {objective.paper}." if objective.paper else ""
        parts.append(f"### `{_kind(objective)}`\n\n{_sentence(objective.summary)}{source}")
        parts.append(_described(objective, Objective))
    return "\n\n".join(parts)


def methods() -> str:
    """Every certificate method in one table."""
    from verifiers.methods.registry import METHODS

    rows = [
        (
            f"`{_kind(m)}`",
            m.guarantee.value,
            m.about.value,
            " ".join(norm.value for norm in m.norms),
            _sentence(m.claim),
        )
        for m in METHODS
    ]
    return _table(["method", "guarantee", "about", "norms", "a row says"], rows)


def method_settings() -> str:
    """Every certificate method: source, cost, description and settings."""
    from verifiers.methods.base import Method
    from verifiers.methods.registry import METHODS

    parts = []
    for method in METHODS:
        parts.append(f"### `{_kind(method)}`\n\nSource: {method.paper}. Cost: {method.cost}.")
        parts.append(_described(method, Method))
    return "\n\n".join(parts)


def columns() -> str:
    """The columns that every method has, then those of each method."""
    from verifiers.core.columns import COMMON_COLUMNS
    from verifiers.methods.registry import METHODS

    parts = [_columns(COMMON_COLUMNS)]
    parts += [f"## Columns of `{_kind(method)}`\n\n{_columns(method.columns)}" for method in METHODS if method.columns]
    return "\n\n".join(parts)


def operators() -> str:
    """The operators of torch that have bounds, by the rule that bounds them."""
    from verifiers.graph.lowering import LOWERINGS

    groups: dict[str, list[str]] = {}
    for name, rule in LOWERINGS.items():
        groups.setdefault(RULES.get(rule.__qualname__.split(".")[0], "by a rule of its own"), []).append(f"`{name}`")
    return _table(["what it does", "operators of torch"], [(rule, ", ".join(names)) for rule, names in groups.items()])


#: What the functions that make lowerings are for.
RULES = {
    "reshape": "keeps the order of the entries",
    "picking": "picks, copies, adds or averages entries",
    "constant": "depends on the shape alone",
    "identity": "changes nothing",
    "converted": "changes nothing",
    "dropout": "changes nothing",
    "convolution": "convolves",
    "conv2d": "convolves",
    "joined": "joins",
    "elementwise": "applies an activation to each entry",
}


def _kind(settings: type[Any]) -> str:
    return str(settings.model_fields["kind"].default)


def _described(settings: type[Any], base: type[Any]) -> str:
    """The descriptions of a class and of those that it extends, then its settings."""
    documented = [
        inspect.cleandoc(ancestor.__doc__)
        for ancestor in settings.__mro__
        if issubclass(ancestor, base) and ancestor is not base and ancestor.__doc__
    ]
    description = "\n\n".join(documented).replace("``", "`")
    fields = {name: field for name, field in settings.model_fields.items() if name != "kind"}
    return f"```text\n{description}\n```\n\n{_settings(fields)}"


def _columns(listed: Sequence[Any]) -> str:
    rows = [(f"`{c.name}`", c.dtype, c.units, _sentence(c.description)) for c in listed]
    return _table(["column", "type", "units", "meaning"], rows)


def _settings(fields: dict[str, Any], meanings: dict[str, str] | None = None) -> str:
    if not fields:
        return "It has no settings."
    told = meanings or {}
    rows = [
        (
            f"`{name}`",
            "needed" if field.is_required() else f"`{_written(field.default)}`",
            ", ".join(f"`{word}`" for word in choices(field.annotation)),
            *([_sentence(told.get(name, ""))] if told else []),
        )
        for name, field in fields.items()
    ]
    return _table(["setting", "default", "choices", *(["meaning"] if told else [])], rows)


def _written(value: Any) -> str:
    if isinstance(value, BaseModel):
        return f"{type(value).__name__}()"
    return str(value.value) if isinstance(value, Enum) else str(value)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


GENERATED: dict[str, Callable[[], str]] = {
    "all_settings": all_settings,
    "columns": columns,
    "method_settings": method_settings,
    "methods": methods,
    "objectives": objectives,
    "operators": operators,
}
