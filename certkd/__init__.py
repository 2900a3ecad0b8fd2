"""Train students that keep their teacher's robustness, and prove, sample by sample, how much they kept.

The names below are imported when first used, so that ``import certkd`` is quick.
"""

from importlib import import_module
from typing import Any

_OBJECTIVES = (
    "AdaAd AdvFunMatch Adversarial Akd Ard ArdShao Consistency Crt Gaussian Iad Ibp Igd Kd Kdiga "
    "KdigaCertified Mtard MtlIbp Rslad Sabr SmoothAdv Standard Trades"
)
_WHERE = {
    **dict.fromkeys(_OBJECTIVES.split(), "certkd.objectives"),
    "OptimizerConfig": "certkd.config.settings",
    "Recipe": "certkd.config.settings",
    "SelectionConfig": "certkd.config.settings",
    "InputError": "verifiers.core.errors",
    "certify": "verifiers.certify.certify",
    "compare": "certkd.comparison.compare",
    "load_checkpoint": "certkd.networks.checkpoint:load",
    "read_certificates": "verifiers.results.reader:read",
    "train": "certkd.training.loop",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'certkd' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(module), attribute or name)
