"""Every certificate method, listed once."""

from collections.abc import Mapping
from typing import Any

from verifiers.core.errors import InputError, did_you_mean
from verifiers.core.status import About, Guarantee
from verifiers.methods.autoattack import AutoAttack
from verifiers.methods.base import Method
from verifiers.methods.complete import Complete
from verifiers.methods.crown import AlphaCrown, Crown, CrownIbp, Ibp, SdpCrown
from verifiers.methods.diagnostics import Diagnostics
from verifiers.methods.joint import Joint
from verifiers.methods.lipschitz import Lipschitz
from verifiers.methods.local_linearity import LocalLinearity
from verifiers.methods.match import Match
from verifiers.methods.pgd import Pgd
from verifiers.methods.smoothing import Smoothing
from verifiers.methods.transfer import Transfer
from verifiers.results import schema

METHODS: tuple[type[Method], ...] = (
    Pgd,
    AutoAttack,
    Ibp,
    CrownIbp,
    Crown,
    AlphaCrown,
    SdpCrown,
    Complete,
    Joint,
    Match,
    Lipschitz,
    LocalLinearity,
    Transfer,
    Diagnostics,
    Smoothing,
)
BY_KIND: dict[str, type[Method]] = {str(method.model_fields["kind"].default): method for method in METHODS}
#: The methods whose rows relate two networks and say nothing about a prediction.
RELATIONAL = tuple(kind for kind, method in BY_KIND.items() if method.relational)
schema.TABLES.update({kind: method.columns for kind, method in BY_KIND.items()})


def find(kind: str) -> type[Method]:
    """Return the method of that name.

    Raises:
        InputError: the name is unknown; the message suggests the nearest known one.
    """
    if kind not in BY_KIND:
        raise InputError(f"unknown method {kind!r}.{did_you_mean(kind, list(BY_KIND))}")
    return BY_KIND[kind]


def certifies(kind: str) -> bool:
    """Return whether a method certifies radii; an estimate does not."""
    return find(kind).guarantee is not Guarantee.ESTIMATE


def proves(kind: str) -> bool:
    """Return whether a method's radii are proofs."""
    return find(kind).guarantee is Guarantee.DETERMINISTIC


def keeps(kind: str) -> bool:
    """Return whether a method's radius says that the network itself keeps its class."""
    method = find(kind)
    return certifies(kind) and method.about is not About.SMOOTHED and not method.relational


def settings_of(method: type[Method]) -> tuple[str, ...]:
    """Return the names of a method's settings."""
    return tuple(name for name in method.model_fields if name != "kind")


def parse(kind: str, options: Mapping[str, Any]) -> Method:
    """Build a method from its name and settings.

    Raises:
        InputError: the name is unknown, or a setting is missing, unknown or out of range.
    """
    return find(kind).parse({"kind": kind, **options}, source=f"method {kind}")
