"""Train students that keep their teacher's robustness, and prove, sample by sample, how much they kept.

Names are imported when they are first used, so ``import certkd`` is fast.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certkd.comparison.compare import compare
    from certkd.config.settings import OptimizerConfig, SelectionConfig, TrainConfig
    from certkd.networks.builders.build import Normalize
    from certkd.networks.output import Output
    from certkd.networks.resolve import FileFormat, load_checkpoint
    from certkd.objectives import (
        AdaAd,
        AdCert,
        Adversarial,
        AdvFunMatch,
        Akd,
        Ard,
        Cat,
        CcDist,
        CcIbp,
        Consistency,
        Crg,
        Crt,
        Gaussian,
        Iad,
        Ibp,
        Igd,
        Kd,
        Kdiga,
        KdigaCertified,
        Mld,
        Mtard,
        MtlIbp,
        Pag,
        Rfd,
        Rslad,
        Saad,
        Sabr,
        SmoothAdv,
        Squeeze,
        Standard,
        Taps,
        Trades,
        Uad,
    )
    from certkd.training.loop import train
    from certkd.training.resume import TrainingFolder
    from certkd.training.run import Teachers
    from verifiers.certify.certify import certify
    from verifiers.certify.config import CertifyConfig
    from verifiers.core.errors import InputError
    from verifiers.graph.quantized import in_integers
    from verifiers.results.reader import read as read_certificates

__all__ = [
    "AdCert",
    "AdaAd",
    "AdvFunMatch",
    "Adversarial",
    "Akd",
    "Ard",
    "Cat",
    "CcDist",
    "CcIbp",
    "CertifyConfig",
    "Consistency",
    "Crg",
    "Crt",
    "FileFormat",
    "Gaussian",
    "Iad",
    "Ibp",
    "Igd",
    "InputError",
    "Kd",
    "Kdiga",
    "KdigaCertified",
    "Mld",
    "Mtard",
    "MtlIbp",
    "Normalize",
    "OptimizerConfig",
    "Output",
    "Pag",
    "Rfd",
    "Rslad",
    "Saad",
    "Sabr",
    "SelectionConfig",
    "SmoothAdv",
    "Squeeze",
    "Standard",
    "Taps",
    "Teachers",
    "Trades",
    "TrainConfig",
    "TrainingFolder",
    "Uad",
    "certify",
    "compare",
    "in_integers",
    "load_checkpoint",
    "read_certificates",
    "train",
]

#: Where the names live; every other name is an objective's.
_MODULES = {
    "CertifyConfig": "verifiers.certify.config",
    "FileFormat": "certkd.networks.resolve",
    "InputError": "verifiers.core.errors",
    "Normalize": "certkd.networks.builders.build",
    "OptimizerConfig": "certkd.config.settings",
    "Output": "certkd.networks.output",
    "SelectionConfig": "certkd.config.settings",
    "Teachers": "certkd.training.run",
    "TrainConfig": "certkd.config.settings",
    "TrainingFolder": "certkd.training.resume",
    "certify": "verifiers.certify.certify",
    "compare": "certkd.comparison.compare",
    "in_integers": "verifiers.graph.quantized",
    "load_checkpoint": "certkd.networks.resolve",
    "read_certificates": "verifiers.results.reader:read",
    "train": "certkd.training.loop",
}


def _check_verifiers() -> None:
    """Refuse an unrelated package named ``verifiers`` that hides certkd's own, without importing it."""
    spec = find_spec("verifiers")
    place = Path(spec.origin or next(iter(spec.submodule_search_locations or [""]))) if spec is not None else None
    if place is None or not (place.parent / "bound_propagation" / "__init__.py").is_file():
        found = "is not installed" if place is None else f"is hidden by another package of that name, {place}"
        raise ImportError(f"certkd's package 'verifiers' {found}: install certkd in an environment of its own")


_check_verifiers()


def __getattr__(name: str) -> Any:
    if name not in __all__ and not name[:1].isupper():
        raise AttributeError(f"module 'certkd' has no attribute {name!r}")
    module, _, attribute = _MODULES.get(name, "certkd.objectives").partition(":")
    try:
        return getattr(import_module(module), attribute or name)
    except AttributeError:
        raise AttributeError(f"module 'certkd' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    from certkd.catalogue import class_names

    return sorted({*__all__, *class_names(), *(name for name in globals() if name.startswith("__"))})
