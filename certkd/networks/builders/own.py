"""Build networks of a user's own Python file, named ``path/to/file.py:Class``. This runs the file's code.

Only a person names such a file: on the command line, in a configuration, or in Python. A checkpoint stores the name of
the class and its options, and never makes this module run anything.
"""

import copy
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from verifiers.core.errors import InputError, did_you_mean, one_line, quoted
from verifiers.graph.watch import blame

_NAME = re.compile(r"(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)")
#: What constructors call the number of classes.
CLASSES = ("num_classes", "n_classes", "nb_classes", "classes", "num_class", "class_num", "out_features")


def is_own(name: str) -> bool:
    """Tell whether a network's name is a class in a file: ``path/to/file.py:Class``."""
    return _NAME.fullmatch(name) is not None


def short(name: str) -> str:
    """Leave out the folder of the file."""
    found = _NAME.fullmatch(name)
    return name if found is None else f"{Path(found['path']).name}:{found['name']}"


def own_network(name: str, options: Mapping[str, Any], classes: int) -> nn.Module:
    """Build a network: import the file, which runs it, and call the class or function with the options.

    A number of classes that the constructor requires and that is not among the options is the data's.

    Raises:
        InputError: there is no such file or class, its code fails, or it gives no network.
    """
    found = _NAME.fullmatch(name)
    assert found is not None
    module = _module(Path(found["path"]).expanduser().resolve())
    made = getattr(module, found["name"], None)
    if made is None:
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise InputError(f"{found['path']} has no {quoted(found['name'])}.{did_you_mean(found['name'], known)}")
    if not isinstance(made, nn.Module):
        made = _called(made, name, options, classes)
    elif options:
        raise InputError(f"{name} is a network, and takes no options: drop {', '.join(options)}")
    if not isinstance(made, nn.Module):
        raise InputError(f"{name} gives {type(made).__name__}, and no torch.nn.Module: name a class or a function")
    return copy.deepcopy(made)


def _called(made: Any, name: str, options: Mapping[str, Any], classes: int) -> Any:
    if not callable(made):
        raise InputError(f"{name} is {type(made).__name__}: name a class, or a function that returns a network")
    given = _completed(made, name, options, classes)
    return _run(lambda: made(**given), name)


def _completed(made: Callable[..., Any], name: str, options: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Check the options against the constructor's parameters, and add the number of classes if it is required.

    Raises:
        InputError: an option is unknown, or one is missing.
    """
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return dict(options)
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option not in named and not anything:
            raise InputError(f"{name} has no option {quoted(option)}.{did_you_mean(option, list(named))}")
    required = [each for each, p in named.items() if p.default is p.empty and each not in options]
    filled = {each: classes for each in required if each in CLASSES}
    missing = [each for each in required if each not in filled]
    if missing:
        raise InputError(f"{name} needs {', '.join(missing)}: add {missing[0]}=VALUE, as in {name},{missing[0]}=8")
    return {**options, **filled}


@cache
def _module(path: Path) -> ModuleType:
    """Import a file once; modules beside it can be imported by it, now and later."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(f"certkd_own_{path.stem}_{len(sys.modules)}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as dataclasses and pickle expect
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        _run(lambda: spec.loader.exec_module(module), str(path))  # type: ignore[union-attr]
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)  # installed packages come first from now on
    return module


def _run(code: Callable[[], Any], name: str) -> Any:
    """Run a person's code.

    Raises:
        InputError: it fails; the message names the line.
    """
    try:
        return code()
    except (Exception, SystemExit) as error:
        raise InputError(f"{name} fails{blame(error)}: {type(error).__name__}: {one_line(error)}") from error
