"""Find out whether a network and its data number the classes alike."""

import torch
from jaxtyping import Int
from torch import Tensor

from verifiers.core.statistics import chance_limit

#: Fewer samples show nothing about chance.
FEWEST = 20
#: The likely reason for one class too many, and no label 0.
FROM_ONE = ": do the labels count from 1? Subtract 1"


def disagreement(
    predicted: Int[Tensor, " samples"], labels: Int[Tensor, " samples"], classes: int, right: int
) -> str | None:
    """Say it, and the likely reason, if a network is no better than chance.

    Args:
        predicted: the network's classes.
        labels: the true ones.
        classes: of the network.
        right: the number of right predictions.

    Returns:
        "0.0% is near chance for 10 classes: ...", to be said of an accuracy; None if the network is better than chance,
        or there are too few samples.
    """
    samples = len(labels)
    if samples < FEWEST or right / samples > chance_limit(classes, samples):
        return None
    said = f"{right / samples:.1%} is near chance for {classes} classes"
    return f"{said}: {_order(predicted, labels) or 'are these the right weights?'}"


def _order(predicted: Int[Tensor, " samples"], labels: Int[Tensor, " samples"]) -> str | None:
    """Say that most predictions are right in another order of the classes; None if they are not."""
    known, row = labels.unique(return_inverse=True)
    table = torch.zeros(len(known), int(predicted.max()) + 1, dtype=torch.long)
    table.index_put_((row, predicted), torch.ones_like(row), accumulate=True)
    share, theirs = float(table.max(1).values.sum()) / len(labels), table.argmax(1)
    enough = 0.5 if len(labels) >= 5 * len(known) else 0.8  # of a few samples a class, chance makes many alike
    moved = (theirs != known).nonzero().flatten().tolist()
    if share < enough or len(theirs.unique()) < 0.8 * len(known) or not moved:
        return None
    first = moved[0]
    return (
        f"are the classes in another order? In the network's own order {share:.1%} are right: "
        f"class {int(known[first])} of the data is its class {int(theirs[first])}"
    )


def out_of_range(low: int, high: int, classes: int, name: str) -> str | None:
    """Say that labels do not fit the classes of a network, and the likely reason; None if they fit."""
    if low >= 0 and high < classes:
        return None
    counted = (low, high) == (1, classes)
    return f"labels run from {low} to {high}, {name} has {classes} classes{FROM_ONE if counted else ''}"
