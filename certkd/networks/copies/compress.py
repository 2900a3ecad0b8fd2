"""Compress a network: prune it or lower its ranks, as another checkpoint."""

from dataclasses import replace

from certkd.config.copies import LowRank, Prune
from certkd.networks.builders import Classifier
from certkd.networks.checkpoint import Checkpoint
from certkd.networks.copies.facts import Copied, facts_of
from certkd.networks.copies.low_rank import decomposed
from certkd.networks.copies.prune import pruned
from verifiers.core.errors import InputError
from verifiers.graph.integers import computes_in_int8


def compressed(original: Checkpoint, how: Prune | LowRank) -> Checkpoint:
    """Return a compressed copy of a network, which says what it is a copy of.

    Example:
        >>> copy = compressed(certkd.load_checkpoint("student.pt"), Prune(share=0.8))

    Raises:
        InputError: the network is of an ONNX file, or cannot be compressed so.
    """
    check_compressible(original.model)
    model = pruned(original.model, how) if isinstance(how, Prune) else decomposed(original.model, how)
    return replace(original, model=model.eval(), copied=description(original, how, model), metrics={}, remarks=())


def description(original: Checkpoint, how: Prune | LowRank, model: Classifier) -> dict[str, object]:
    """Say what a copy is a copy of, and how large both are, in plain values."""
    sizes = facts_of(original.model), facts_of(model)
    copied = Copied(of=original.sha256, how=how.model_dump(mode="json"), facts=sizes[1], original=sizes[0])
    return copied.model_dump(mode="json")


def check_compressible(model: Classifier) -> None:
    """Check that a network has layers.

    Raises:
        InputError: it is of an ONNX file.
    """
    if model.spec.name.startswith("onnx:"):
        what = "is already in int8" if computes_in_int8(model) else "has operators, not layers"
        raise InputError(f"{model.spec.name} {what}: compress the checkpoint that it was exported from")
