"""Compress a network: prune it or lower its ranks, as another checkpoint."""

import math
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

from certkd.config.copies import Compression, LowRank, Prune
from certkd.networks.builders import Classifier
from certkd.networks.builders.changed import Factored
from certkd.networks.checkpoint import Checkpoint
from certkd.networks.copies.facts import Copied, facts_of
from certkd.networks.copies.low_rank import decomposed
from certkd.networks.copies.prune import PRUNED, pruned
from certkd.networks.copies.ranks import size
from verifiers.core.errors import InputError
from verifiers.core.quantities import parse_number
from verifiers.graph.integers import computes_in_int8


def compressed(original: Checkpoint, how: Prune | LowRank) -> Checkpoint:
    """Return a compressed copy of a network, which says what it is a copy of.

    Example:
        >>> copy = compressed(certkd.load_checkpoint("student.pt"), Prune(share=0.8))

    Raises:
        InputError: the network is of an ONNX file, or cannot be compressed so, or a package is missing.
    """
    check_compressible(original.model)
    check_installed(how)
    model = pruned(original.model, how) if isinstance(how, Prune) else decomposed(original.model, how)
    return replace(
        original,
        model=model.eval(),
        copied=description(original, how, model),
        metrics={},
        remarks=tuple(_remarks(original.model, how, model)),
    )


def description(original: Checkpoint, how: Prune | LowRank, model: Classifier) -> dict[str, object]:
    """Say what a copy is a copy of, and how large both are, in plain values."""
    sizes = facts_of(original.model), facts_of(model)
    copied = Copied(of=original.sha256, how=how.model_dump(mode="json"), facts=sizes[1], original=sizes[0])
    return copied.model_dump(mode="json")


def check_installed(how: Compression) -> None:
    """Check that the package that makes a copy is installed.

    Raises:
        InputError: it is not.
    """
    if isinstance(how, LowRank) and find_spec("tensorly") is None:
        raise InputError("layers are decomposed by the package tensorly: install certkd[compress]")
    if isinstance(how, Prune) and how.what == "channels" and find_spec("torch_pruning") is None:
        raise InputError("channels are removed by the package torch-pruning: install certkd[compress]")


def _remarks(original: Classifier, how: Prune | LowRank, made: Classifier) -> Iterator[str]:
    """Say which layers are not compressed as was asked for."""
    for path, layer in original.network.named_modules():
        if isinstance(layer, PRUNED) and type(layer) not in PRUNED:
            yield f"{path} stays as it is: its class {type(layer).__name__} may compute otherwise than torch's own"
    if not isinstance(how, LowRank) or not how.ranks.endswith("x"):
        return
    wanted = float(parse_number(how.ranks[:-1]))
    for change in made.spec.layers[len(original.spec.layers) :]:
        assert isinstance(change, Factored)
        shape = tuple(original.network.get_parameter(f"{change.path}.weight").shape)
        ratio = math.prod(shape) / size(shape, change.form, change.ranks)
        if ratio < wanted:
            yield f"{change.path} has {ratio:.1f}x fewer weights, not {wanted:g}x: its ranks are 1 already"


def check_compressible(model: Classifier) -> None:
    """Check that a network has layers.

    Raises:
        InputError: it is of an ONNX file.
    """
    if model.spec.name.startswith("onnx:"):
        what = "is already in int8" if computes_in_int8(model) else "has operators, not layers"
        raise InputError(f"{model.spec.name} {what}: compress the checkpoint that it was exported from")
