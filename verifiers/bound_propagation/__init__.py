"""Bound propagation: the engines, their bounds, and the certifiers built on them.

The names below are the doors of this package; its modules are its own affair.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifiers.bound_propagation.auto_lirpa.compat import version as auto_lirpa_version
    from verifiers.bound_propagation.certifier import MarginCertifier
    from verifiers.bound_propagation.complete import Complete
    from verifiers.bound_propagation.joint import JointEngine
    from verifiers.bound_propagation.joint_certifier import JointCertifier
    from verifiers.bound_propagation.rounding import careful_allowance

_WHERE = {
    "Complete": "complete",
    "JointCertifier": "joint_certifier",
    "JointEngine": "joint",
    "MarginCertifier": "certifier",
    "auto_lirpa_version": "auto_lirpa.compat:version",
    "careful_allowance": "rounding",
}

__all__ = ["Complete", "JointCertifier", "JointEngine", "MarginCertifier", "auto_lirpa_version", "careful_allowance"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute or name)
