"""Every certificate method, listed once."""

from collections.abc import Mapping
from typing import Any

from verifiers.core.errors import InputError, did_you_mean
from verifiers.core.status import Guarantee
from verifiers.methods.base import Method
from verifiers.methods.complete import Complete
from verifiers.methods.crown import AlphaCrown, Crown, CrownIbp, Ibp
from verifiers.methods.diagnostics import Diagnostics
from verifiers.methods.joint import Joint
from verifiers.methods.lipschitz import Lipschitz
from verifiers.methods.local_linearity import LocalLinearity
from verifiers.methods.pgd import Pgd
from verifiers.methods.smoothing import Smoothing
from verifiers.methods.transfer import Transfer

METHODS: tuple[type[Method], ...] = (
    Pgd,
    Ibp,
    CrownIbp,
    Crown,
    AlphaCrown,
    Complete,
    Joint,
    Lipschitz,
    LocalLinearity,
    Transfer,
    Diagnostics,
    Smoothing,
)
BY_KIND: dict[str, type[Method]] = {str(method.model_fields["kind"].default): method for method in METHODS}


def find(kind: str) -> type[Method]:
    """The method of that name.

    Raises:
        InputError: unknown name, with the nearest known one.
    """
    if kind not in BY_KIND:
        raise InputError(f"unknown method {kind!r}.{did_you_mean(kind, list(BY_KIND))}")
    return BY_KIND[kind]


def certifies(kind: str) -> bool:
    """Whether a method has radii at all: an estimate has none."""
    return find(kind).guarantee is not Guarantee.ESTIMATE


def proves(kind: str) -> bool:
    """Whether a method's radii are proofs."""
    return find(kind).guarantee is Guarantee.DETERMINISTIC


def settings_of(method: type[Method]) -> tuple[str, ...]:
    """The names of a method's settings."""
    return tuple(name for name in method.model_fields if name != "kind")


def parse(kind: str, options: Mapping[str, Any]) -> Method:
    """A method with its settings.

    Raises:
        InputError: an unknown name, or a setting that is missing, unknown or out of its range.
    """
    return find(kind).parse({"kind": kind, **options}, source=f"method {kind}")
