"""Bound propagation: the engines, their bounds, and the certifiers built on them.

The names below are the public interface of this package; outside code does not import its modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifiers.bound_propagation.auto_lirpa.compat import version as auto_lirpa_version
    from verifiers.bound_propagation.box_proofs import by_neurons
    from verifiers.bound_propagation.boxes.bounders import pair_bounder_of
    from verifiers.bound_propagation.boxes.splitting import FEW_INPUTS, InputSplitting, Tries, split_pair
    from verifiers.bound_propagation.certifier import MarginCertifier
    from verifiers.bound_propagation.checks import attack_bounds, check_sandwich
    from verifiers.bound_propagation.complete import Complete
    from verifiers.bound_propagation.cross_check import CrossCheck
    from verifiers.bound_propagation.engine import BOUND_METHODS, ITERATIONS, Engine, Memory, Planes
    from verifiers.bound_propagation.engines import ENGINES, build, engine_of, names_of, native_engine
    from verifiers.bound_propagation.half_spaces import Ended, HalfSpaces, lower_values
    from verifiers.bound_propagation.identical import match_certifier
    from verifiers.bound_propagation.joint import JointEngine, PairBounds
    from verifiers.bound_propagation.joint_certifier import JointCertifier
    from verifiers.bound_propagation.match import MatchCertifier
    from verifiers.bound_propagation.native.backward import block_of
    from verifiers.bound_propagation.native.bounds import Bounds
    from verifiers.bound_propagation.native.engine import Native
    from verifiers.bound_propagation.native.layers import (
        Ends,
        Split,
        activation_boxes,
        margins_and_features,
        split_before,
    )
    from verifiers.bound_propagation.native.training import (
        Box,
        ball,
        blended_margins,
        deficits,
        lower_margins,
        robust_cross_entropy,
    )
    from verifiers.bound_propagation.radius import Evaluation, MarginBound, RadiusSearch, SearchResult
    from verifiers.bound_propagation.relations import unsafe
    from verifiers.bound_propagation.rounding import deviation

#: The module of each name; after a colon, the name there if it differs.
_WHERE = {
    "Bounds": "native.bounds",
    "Box": "native.training",
    "Complete": "complete",
    "CrossCheck": "cross_check",
    "ENGINES": "engines",
    "Ended": "half_spaces",
    "Ends": "native.layers",
    "FEW_INPUTS": "boxes.splitting",
    "Engine": "engine",
    "Evaluation": "radius",
    "HalfSpaces": "half_spaces",
    "ITERATIONS": "engine",
    "InputSplitting": "boxes.splitting",
    "JointCertifier": "joint_certifier",
    "JointEngine": "joint",
    "BOUND_METHODS": "engine",
    "MarginBound": "radius",
    "MarginCertifier": "certifier",
    "MatchCertifier": "match",
    "match_certifier": "identical",
    "Memory": "engine",
    "Native": "native.engine",
    "PairBounds": "joint",
    "Planes": "engine",
    "SearchResult": "radius",
    "Split": "native.layers",
    "Tries": "boxes.splitting",
    "activation_boxes": "native.layers",
    "attack_bounds": "checks",
    "auto_lirpa_version": "auto_lirpa.compat:version",
    "ball": "native.training",
    "blended_margins": "native.training",
    "block_of": "native.backward",
    "build": "engines",
    "by_neurons": "box_proofs",
    "check_sandwich": "checks",
    "deficits": "native.training",
    "deviation": "rounding",
    "engine_of": "engines",
    "RadiusSearch": "radius",
    "lower_margins": "native.training",
    "margins_and_features": "native.layers",
    "split_before": "native.layers",
    "lower_values": "half_spaces",
    "names_of": "engines",
    "native_engine": "engines",
    "pair_bounder_of": "boxes.bounders",
    "robust_cross_entropy": "native.training",
    "split_pair": "boxes.splitting",
    "unsafe": "relations",
}

__all__ = [
    "BOUND_METHODS",
    "ENGINES",
    "FEW_INPUTS",
    "ITERATIONS",
    "Bounds",
    "Box",
    "Complete",
    "CrossCheck",
    "Ended",
    "Ends",
    "Engine",
    "Evaluation",
    "HalfSpaces",
    "InputSplitting",
    "JointCertifier",
    "JointEngine",
    "MarginBound",
    "MarginCertifier",
    "MatchCertifier",
    "Memory",
    "Native",
    "PairBounds",
    "Planes",
    "RadiusSearch",
    "SearchResult",
    "Split",
    "Tries",
    "activation_boxes",
    "attack_bounds",
    "auto_lirpa_version",
    "ball",
    "blended_margins",
    "block_of",
    "build",
    "by_neurons",
    "check_sandwich",
    "deficits",
    "deviation",
    "engine_of",
    "lower_margins",
    "lower_values",
    "margins_and_features",
    "match_certifier",
    "names_of",
    "native_engine",
    "pair_bounder_of",
    "robust_cross_entropy",
    "split_before",
    "split_pair",
    "unsafe",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute or name)


def __dir__() -> list[str]:
    return __all__
