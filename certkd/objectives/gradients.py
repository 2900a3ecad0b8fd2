"""Compute input gradients that can be differentiated again, and distances between those of two networks."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Reduction = Literal["per_sample_mean", "batch_frobenius"]


def full_precision(device: torch.device, wanted: bool = True) -> AbstractContextManager[object]:
    """Turn autocast off if wanted, for small differences of large numbers."""
    return torch.autocast(device.type, enabled=False) if wanted else nullcontext()


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Compute attention by the plain kernel: the fused ones have no second derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def input_gradient(
    values: Float[Tensor, " batch"], x: Float[Tensor, "batch *shape"], *, create_graph: bool, retain_graph: bool = False
) -> Float[Tensor, "batch *shape"]:
    """Compute the gradient of each sample's value by its own pixels; values are summed, so batch size has no effect."""
    (gradient,) = torch.autograd.grad(
        values.sum(), x, create_graph=create_graph, retain_graph=create_graph or retain_graph
    )
    return gradient


def lengths(gap: Float[Tensor, "batch many"], norm: int, squared: bool) -> Float[Tensor, " batch"]:
    """Compute ||gap_i||_norm of each sample, or its square; the gradient at a gap of zero is zero."""
    if norm == 2 and squared:
        return gap.square().sum(dim=1)
    length = torch.linalg.vector_norm(gap, norm, dim=1)
    return length.square() if squared else length


def reduced(
    gap: Float[Tensor, "batch many"],
    norm: int,
    squared: bool,
    reduction: Reduction,
    kept: Bool[Tensor, " batch"] | None,
) -> Float[Tensor, ""]:
    """Reduce gaps d_i of gradients of per-sample values to one number; samples that are not kept count as 0.

    ``per_sample_mean`` is mean_i ||d_i||. ``batch_frobenius`` is the scaling of the KDIGA authors' code: gradients of
    the batch-mean loss (d_i / B), one Frobenius norm over the batch, divided by B.
    """
    if kept is not None:
        gap = gap * kept[:, None]
    if reduction == "per_sample_mean":
        return lengths(gap, norm, squared).mean()
    return torch.linalg.vector_norm(gap) / len(gap) ** 2


def cosine_gap(ours: Float[Tensor, "batch *shape"], theirs: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
    """Compute 1 - cos of each sample's two gradients; 1 if one of them is zero."""
    a, b = ours.flatten(1), theirs.flatten(1)
    smallest = torch.finfo(a.dtype).tiny ** 0.5
    sizes = torch.linalg.vector_norm(a, dim=1).clamp_min(smallest) * torch.linalg.vector_norm(b, dim=1).clamp_min(
        smallest
    )
    return 1 - (a * b).sum(dim=1) / sizes
