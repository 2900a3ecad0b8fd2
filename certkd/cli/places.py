"""Places that commands write to: the name fits the format, and nothing is replaced unasked."""

from collections.abc import Sequence
from pathlib import Path

from verifiers.core.errors import InputError


def new_file(name: str | Path, endings: Sequence[str], *, overwrite: bool, option: str = "--out") -> Path:
    """Return the path of a file to write, before any work.

    Raises:
        InputError: its name has none of the endings, or it is there and is not to be replaced.
    """
    path = Path(name)
    if path.suffix.lower() not in endings:
        listed = " or ".join(filter(None, [", ".join(endings[:-1]), endings[-1]]))
        raise InputError(f"{option} {name}: give a name that ends in {listed}")
    check_new(path, overwrite=overwrite, option=option)
    return path


def check_new(path: Path, *, overwrite: bool, option: str = "--out") -> None:
    """Refuse to replace a file unless that is wanted.

    Raises:
        InputError: it is there.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already: add --overwrite, or name another place with {option}")
