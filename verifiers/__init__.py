"""Certificates of robustness: prove that a network's prediction does not change in a ball around each sample.

Names are imported when they are first used, so ``import verifiers`` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifiers.certify.config import CertifyConfig
    from verifiers.core.errors import InputError
    from verifiers.core.quantities import Epsilon, Norm
    from verifiers.core.status import Guarantee, Status
    from verifiers.results.reader import read, read_images
    from verifiers.results.rows import Certificates, MethodRows

__version__ = "0.1.0"

__all__ = [
    "Certificates",
    "CertifyConfig",
    "Epsilon",
    "Guarantee",
    "InputError",
    "MethodRows",
    "Norm",
    "Status",
    "read",
    "read_images",
]

_MODULES = {
    "Certificates": "verifiers.results.rows",
    "CertifyConfig": "verifiers.certify.config",
    "Epsilon": "verifiers.core.quantities",
    "Guarantee": "verifiers.core.status",
    "InputError": "verifiers.core.errors",
    "MethodRows": "verifiers.results.rows",
    "Norm": "verifiers.core.quantities",
    "Status": "verifiers.core.status",
    "read": "verifiers.results.reader",
    "read_images": "verifiers.results.reader",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'verifiers' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
