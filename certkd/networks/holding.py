"""Find the weights in what people save: a state dict, alone or under a key, beside a moving average, or in a list."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from certkd.networks.described import Coded, Name, Odd, Quantized, View
from verifiers.core.errors import InputError, quoted

#: Keys of weights, the preferred ones first; those of moving averages come last.
KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "model_state", "weights", "params", "module")
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
#: Parts of a file with tensors that are no network's weights.
_OTHERS = ("optim", "sched", "scaler", "rng")
#: Levels at which weights are looked for, and entries of a level.
_DEEPEST, _WIDEST = 3, 1000
#: Files listed in a message, at most.
_FEW = 6


def weights_in(content: Any, path: Path, key: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """Choose the state dict of a file's content.

    Args:
        content: what the file holds, with a ``View`` for each tensor.
        path: of the file, for messages.
        key: the name of the state dict, like ``model_ema`` or ``state_dict.0``; None to choose it.

    Returns:
        The state dict, and lines about what was taken and what was left.

    Raises:
        InputError: there are no weights, several to choose from, or none under this key.
    """
    found = _found(content)
    if key is not None:
        state = found.get(key) or _below(found, key)
        if not state:
            raise InputError(f"{path} has no weights under {quoted(key)}.{_listed(found)}")
        return state, []
    if "" in found or not found:
        return plain_weights(content, path), []
    if len(found) == 1:
        ((name, state),) = found.items()
        return state, [] if name in KEYS else [f"the weights under {quoted(name)} are taken"]
    known = next((name for name in (*KEYS, *AVERAGES) if name in found), None)
    if known is None:
        raise InputError(f"{path} holds {_what(found)}: choose one with a weights key.{_listed(found)}")
    others = ", ".join(name for name in found if name != known)
    return found[known], [f"the weights under {known!r} are taken; choose others ({others}) with a weights key"]


def _below(found: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the part of a state dict whose names begin with a key, as in ``student.conv.weight``; {} for none.

    Raises:
        InputError: several state dicts have such a part.
    """
    parts = {}
    for name, state in found.items():
        prefix = f"{key.removeprefix(f'{name}.')}."
        part = {inner.removeprefix(prefix): value for inner, value in state.items() if inner.startswith(prefix)}
        if part:
            parts[f"{name}.{key.removeprefix(f'{name}.')}"] = part
    if len(parts) > 1 and key not in parts:
        raise InputError(f"several state dicts have weights under {quoted(key)}: choose {' or '.join(parts)}")
    return parts.get(key) or next(iter(parts.values()), {})


def _what(found: Mapping[str, Any]) -> str:
    """Describe several networks: those of one list, or others."""
    lists = {name.rpartition(".")[0] for name in found if name.rpartition(".")[2].isdigit()}
    if len(lists) == 1 and all(name.rpartition(".")[2].isdigit() for name in found):
        (name,) = lists
        return f"a list of {len(found)} networks{f' under {quoted(name)}' if name else ''}"
    return f"the weights of {len(found)} networks"


def _listed(found: Mapping[str, Any]) -> str:
    names = [name or "the file itself" for name in found]
    few = ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")
    return f" It has {few}" if names else " It has none"


def _found(content: Any) -> dict[str, dict[str, Any]]:
    """Return the state dicts of a file by their keys; the content itself has the key ""."""
    found: dict[str, dict[str, Any]] = {}
    level = {"": content}
    for _ in range(_DEEPEST):
        inner: dict[str, Any] = {}
        for name, value in level.items():
            if _is_state(value):
                found[name] = value
            else:
                inner |= {f"{name}.{key}" if name else key: part for key, part in _parts(value)}
        level = inner
    return found


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        pairs = [(str(key), part) for key, part in value.items() if isinstance(key, str)]
    elif isinstance(value, list | tuple):
        pairs = [(str(number), part) for number, part in enumerate(value)]
    else:
        pairs = []
    return [(key, part) for key, part in pairs[:_WIDEST] if not any(word in key.lower() for word in _OTHERS)]


def _is_state(value: Any) -> bool:
    """Return whether a value is a dictionary of tensors, apart from a few plain numbers."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return False
    known = sum(isinstance(part, View | Coded | Quantized) or is_packed(part) for part in value.values())
    tensors = known + sum(isinstance(part, Odd) for part in value.values())
    plain = sum(isinstance(part, int | float | str | Name | None) for part in value.values())
    return known > 0 and tensors + plain == len(value) and 2 * tensors > len(value)


def is_packed(value: Any) -> bool:
    """Tell whether a value is what torch.ao packs of a linear layer: its weights in int8 and its bias."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Quantized)


def plain_weights(content: Any, path: Path, *, strict: bool = False) -> dict[str, Any]:
    """Return a value as a state dict; a strict one holds nothing but tensors.

    Raises:
        InputError: it is none.
    """
    if isinstance(content, dict) and not content:
        raise InputError(f"{path} holds no weights (a state dict of tensors): its dict is empty")
    if not isinstance(content, dict):
        kind = "Tensor" if isinstance(content, View) else type(content).__name__
        raise InputError(f"{path} holds no weights (a state dict of tensors), but {kind}")
    if not _is_state(content) or (
        strict and not all(isinstance(value, View | Odd | Coded) for value in content.values())
    ):
        name, value = next((k, v) for k, v in content.items() if not isinstance(k, str) or not isinstance(v, View))
        kind = value.kind if isinstance(value, Odd) else type(value).__name__
        raise InputError(f"{path} holds no weights (a state dict of tensors), but {kind} under {quoted(name)}")
    return content
