"""What of a family of cases is in the default suite."""

import os
from collections.abc import Iterable
from typing import Any

import pytest

#: Random networks of the slow suite; ``CERTKD_NETWORKS=500`` before a release.
MANY = int(os.environ.get("CERTKD_NETWORKS", "60"))


def thin(cases: Iterable[Any], every: int = 3) -> list[Any]:
    """Return all cases for ``parametrize``; every third is in the default suite, the others are slow.

    A case is a value, a tuple of values or a ``pytest.param``.
    """
    return [case if place % every == 0 else _slow(case) for place, case in enumerate(cases)]


def only(kept: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Return all cases for ``parametrize``; those that are kept are in the default suite, the others are slow."""
    kept, cases = list(kept), list(cases)
    unknown = [case for case in kept if case not in cases]
    assert not unknown, f"no such cases: {unknown}"
    return [case if case in kept else _slow(case) for case in cases]


def _slow(case: Any) -> Any:
    if hasattr(case, "marks"):  # a pytest.param
        return pytest.param(*case.values, id=case.id, marks=(*case.marks, pytest.mark.slow))
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
