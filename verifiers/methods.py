"""Every certificate method there is: one record a method, listed once."""

from verifiers.bound_propagation.certify import ALPHA_CROWN, CROWN, CROWN_IBP, IBP
from verifiers.bound_propagation.complete import COMPLETE
from verifiers.bound_propagation.joint import JOINT
from verifiers.certificate import MethodInfo
from verifiers.diagnostics import DIAGNOSTICS
from verifiers.errors import InputError, did_you_mean
from verifiers.falsify import PGD
from verifiers.lipschitz.certify import LIPSCHITZ
from verifiers.local_linearity import LOCAL_LINEARITY
from verifiers.smoothing.certify import SMOOTHING
from verifiers.transfer import TRANSFER

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


def find(name: str) -> MethodInfo:
    """The method of that name.

    Raises:
        InputError: unknown name, with the nearest known one.
    """
    for method in METHODS:
        if method.name == name:
            return method
    raise InputError(f"unknown method {name!r}.{did_you_mean(name, [m.name for m in METHODS])}")
