"""Every certificate method there is: one record a method, listed once."""

from verifiers.core.errors import InputError, did_you_mean
from verifiers.core.status import Guarantee
from verifiers.methods.base import MethodInfo
from verifiers.methods.complete import COMPLETE
from verifiers.methods.crown import ALPHA_CROWN, CROWN, CROWN_IBP, IBP
from verifiers.methods.diagnostics import DIAGNOSTICS
from verifiers.methods.joint import JOINT
from verifiers.methods.lipschitz import LIPSCHITZ
from verifiers.methods.local_linearity import LOCAL_LINEARITY
from verifiers.methods.pgd import PGD
from verifiers.methods.smoothing import SMOOTHING
from verifiers.methods.transfer import TRANSFER

METHODS: tuple[MethodInfo, ...] = (
    PGD,
    IBP,
    CROWN_IBP,
    CROWN,
    ALPHA_CROWN,
    COMPLETE,
    JOINT,
    LIPSCHITZ,
    LOCAL_LINEARITY,
    TRANSFER,
    DIAGNOSTICS,
    SMOOTHING,
)


def certifies(name: str) -> bool:
    """Whether a method has radii at all: an estimate has none."""
    return find(name).guarantee is not Guarantee.ESTIMATE


def proves(name: str) -> bool:
    """Whether a method's radii are proofs."""
    return find(name).guarantee is Guarantee.DETERMINISTIC


def find(name: str) -> MethodInfo:
    """The method of that name.

    Raises:
        InputError: unknown name, with the nearest known one.
    """
    for method in METHODS:
        if method.name == name:
            return method
    raise InputError(f"unknown method {name!r}.{did_you_mean(name, [m.name for m in METHODS])}")
