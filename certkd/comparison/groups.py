"""Group the certificate files of one network's seeds, by their names, by a glob or by a label."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from verifiers.core.errors import InputError, quoted
from verifiers.core.table import counted

#: What marks a seed in the name of a file or folder: kd-seed0, kd_s1, seed_3.
_SEED = re.compile(r"(^|[-_.])(seed|s)[-_]?\d+(?=$|[-_.])", re.IGNORECASE)
_NUMBER = re.compile(r"(?:^|[-_.])(?:seed|s)[-_]?(\d+)(?=$|[-_.])", re.IGNORECASE)
_WILD = re.compile(r"[*?\[]")

Groups = dict[str, tuple[str, ...]]


def group(given: Sequence[str], labels: Sequence[str] = ()) -> Groups:
    """Group files by label, in the order in which they are given.

    Args:
        given: files; globs, each of which is one group; either may have a label in front: ``kd=runs/kd-*.h5``. Files
            whose paths differ only in the seed are one group: kd-seed0.h5 and kd-seed1.h5, or kd/0.h5 and kd/1.h5.
        labels: of the groups, in their order, instead of those from the names.

    Raises:
        InputError: a glob without files, a file or label given twice, or another number of labels than of groups.
    """
    groups: dict[object, list[str]] = {}
    named: dict[object, str] = {}
    for text in given:
        label, files = _parse(text)
        for file in files:
            key = (label,) if label else text if len(files) > 1 else _without_seed(file)
            groups.setdefault(key, []).append(file)
            if label:
                named[key] = label
    files = [file for each in groups.values() for file in each]
    twice = next((file for i, file in enumerate(files) if file in files[:i]), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice: they are one file; give those of two networks")
    if labels and len(labels) != len(groups):
        found = "; ".join(", ".join(each) for each in groups.values())
        raise InputError(
            f"{counted(len(labels), 'label')} for {counted(len(groups), 'network')} ({found}): "
            "give --label once for each"
        )
    short = list(labels) or [named.get(key) or name for key, name in zip(groups, _names(groups), strict=True)]
    again = next((name for i, name in enumerate(short) if name in short[:i]), None)
    if again is not None:
        raise InputError(f"two networks have the label {quoted(again)}: give each its own with --label")
    return {name: tuple(each) for name, each in zip(short, groups.values(), strict=True)}


def _parse(text: str) -> tuple[str, list[str]]:
    """Split a label from a file or a glob, and list its files."""
    label, sign, rest = text.partition("=")
    if Path(text).exists() or not sign or not label or "/" in label or _WILD.search(label):
        label, rest = "", text
    if Path(rest).exists() or not _WILD.search(rest):
        return label, [rest]
    files = sorted(glob.glob(rest, recursive=True))
    if not files:
        raise InputError(f"no file matches {quoted(rest)}")
    return label, files


def _without_seed(file: str) -> tuple[str, ...]:
    """Return a path's parts without the seed: two files of one network have the same."""
    path = Path(file)
    parts = [_SEED.sub("", part) for part in (*path.parts[:-1], path.stem)]
    return tuple(part for part in parts[:-1] if part) + ((parts[-1],) if not parts[-1].isdigit() else ("",))


def seed_of(file: str) -> str:
    """Return the number of the seed in a path, such as 1 in kd-seed1.h5 and runs/seed1/kd.h5; empty without one."""
    path = Path(file)
    found = [number for part in (*path.parts[:-1], path.stem) for number in _NUMBER.findall(part)]
    return found[-1] if found else path.stem if path.stem.isdigit() else ""


def _names(groups: dict[object, list[str]]) -> list[str]:
    """Name each group by the last part of its path, and by more where that does not tell them apart."""
    paths = [[part for part in _without_seed(files[0]) if part] or [Path(files[0]).stem] for files in groups.values()]
    for key, path in zip(groups, paths, strict=True):
        if isinstance(key, str) and len(path) > 1:  # a glob: its files differ in their last part
            path.pop()
    longest = max(map(len, paths), default=1)
    for count in range(1, longest + 1):
        names = ["/".join(path[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return names
