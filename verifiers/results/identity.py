"""Compare the question that a certificate file was begun with and the present one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verifiers.core.errors import InputError

#: What differs between two choices of samples from one data set.
_SAMPLES = ("data_sha256", "indices_sha256", "samples")
#: What to do about a file that cannot be resumed.
ANOTHER = "choose another output file, or delete this one"
_ANEW = f"{ANOTHER} (certify --overwrite does)"


def check_same(path: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to write into a file of another identity.

    Raises:
        InputError: an entry differs; the message has the first one.
    """
    different = sorted(key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key))
    if set(_SAMPLES) >= set(different) >= {"data_sha256", "indices_sha256"}:
        raise InputError(
            f"{path} holds other samples ({there.get('samples')} of them, now {wanted.get('samples')}): {_ANEW}"
        )
    if different:
        key, was, now = _innermost(different[0], there.get(different[0]), wanted.get(different[0]))
        raise InputError(
            f"{path} was made with another {key.removesuffix('_text')} ({_short(was)}, now {_short(now)}): {_ANEW}"
        )


def _innermost(key: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    """The first entry in which two settings differ."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return key, was, now
    inner = min(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    return _innermost(f"{key} {inner}", was.get(inner), now.get(inner))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:16]}…"
