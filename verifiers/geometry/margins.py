"""Compute margins of logits, and the rows that give them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def margins(logits: Float[Tensor, "batch classes"], predicted: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Compute the smallest margin f_y - f_j over the classes j other than the predicted class y."""
    own = logits.gather(1, predicted[:, None])
    others = logits.scatter(1, predicted[:, None], -float("inf"))
    return (own - others.amax(1, keepdim=True)).squeeze(1)


def margin_specification(
    predicted: Int[Tensor, " batch"], classes: int, dtype: torch.dtype
) -> Float[Tensor, "batch {classes}-1 {classes}"]:
    """Build the rows e_y - e_j for every class j other than the predicted y."""
    eye = torch.eye(classes, dtype=dtype, device=predicted.device)
    rows = eye[predicted][:, None, :] - eye[None, :, :]
    keep = predicted[:, None] != torch.arange(classes, device=predicted.device)[None, :]
    return rows[keep].reshape(len(predicted), classes - 1, classes)


def some_margins(
    own: Int[Tensor, " rows"], other: Int[Tensor, " rows"], classes: int, dtype: torch.dtype
) -> Float[Tensor, "rows {classes}"]:
    """Build the rows e_own - e_other."""
    rows = torch.zeros((len(own), classes), dtype=dtype, device=own.device)
    place = torch.arange(len(own), device=own.device)
    rows[place, own], rows[place, other] = 1.0, -1.0
    return rows
