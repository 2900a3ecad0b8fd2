"""The certificate methods, as settings: ``Crown(tolerance=0.01)``."""

from verifiers.methods.autoattack import AutoAttack
from verifiers.methods.base import Method
from verifiers.methods.complete import Complete
from verifiers.methods.crown import AlphaCrown, Crown, CrownIbp, Ibp, SdpCrown
from verifiers.methods.diagnostics import Diagnostics
from verifiers.methods.joint import Joint
from verifiers.methods.lipschitz import Lipschitz
from verifiers.methods.local_linearity import LocalLinearity
from verifiers.methods.pgd import Pgd
from verifiers.methods.smoothing import Smoothing
from verifiers.methods.transfer import Transfer

__all__ = [
    "AlphaCrown",
    "AutoAttack",
    "Complete",
    "Crown",
    "CrownIbp",
    "Diagnostics",
    "Ibp",
    "Joint",
    "Lipschitz",
    "LocalLinearity",
    "Method",
    "Pgd",
    "SdpCrown",
    "Smoothing",
    "Transfer",
]
