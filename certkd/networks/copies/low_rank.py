"""Decompose layers into products of smaller ones (TensorLy): SVD, Tucker, CP and tensor trains."""

import warnings
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from certkd.config.copies import LowRank
from certkd.networks.builders import Classifier
from certkd.networks.builders.changed import Factored, Form, can_factor, factored, replace_layer
from certkd.networks.copies.ranks import chosen, size
from verifiers.core.errors import InputError

#: Iterations of CP's alternating least squares.
ITERATIONS = 200


def decomposed(model: Classifier, how: LowRank) -> Classifier:
    """Return a copy of a network whose layers are products, where that has fewer weights.

    Raises:
        InputError: no layer has fewer weights as a product.
    """
    copy = deepcopy(model)
    changes = []
    for path, layer in list(copy.network.named_modules()):
        change = _change(path, layer, how)
        if change is not None:
            made = factored(layer, change)
            fill(made, layer, change.form, change.ranks)
            replace_layer(copy.network, path, made)
            changes.append(change)
    if not changes:
        raise InputError(
            f"no layer of {model.spec.name} has fewer weights as a product with ranks {how.ranks}: take lower ranks"
        )
    copy.spec = copy.spec.model_copy(update={"layers": (*model.spec.layers, *changes)})
    return copy


def _change(path: str, layer: nn.Module, how: LowRank) -> Factored | None:
    """Describe the product that stands for a layer; None if it would not have fewer weights."""
    matrix = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    form: Form = "svd" if matrix else how.form
    if not can_factor(layer, form):
        return None
    weight = layer.weight
    assert isinstance(weight, Tensor)
    ranks = chosen(weight, form, how.ranks)
    if size(tuple(weight.shape), form, ranks) >= weight.numel():
        return None
    return Factored(path=path, form=form, ranks=ranks)


@torch.no_grad()
def fill(made: nn.Sequential, layer: nn.Module, form: Form, ranks: Sequence[int]) -> None:
    """Set the weights of a product so that it is near to a layer, in float64; the last one takes the bias.

    Args:
        made: the product of layers.
        layer: a linear layer or a convolution.
        form: of the product.
        ranks: between its layers.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    dense = weight.detach().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ranks above a side of the tensor begin with random factors
        parts = {"svd": _svd, "tucker": _tucker, "cp": _cp, "tt": _tensor_train}[form](dense, list(ranks))
    for own, part in zip(made, parts, strict=True):
        assert isinstance(own.weight, Tensor)
        own.weight.copy_(part.reshape(own.weight.shape))
    if isinstance(layer.bias, Tensor):
        made[-1].get_parameter("bias").copy_(layer.bias)


def _svd(weight: Tensor, ranks: list[int]) -> list[Tensor]:
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    root = values[: ranks[0]].sqrt()
    return [root[:, None] * right[: ranks[0]], left[:, : ranks[0]] * root]


def _tucker(weight: Tensor, ranks: list[int]) -> list[Tensor]:
    """W[o, i] = sum over r, s of U[o, s] G[s, r] V[i, r]; Kim et al., arXiv 1511.06530."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    (core, factors), _ = partial_tucker(weight.numpy(), rank=[ranks[1], ranks[0]], modes=[0, 1])
    outer, inner = (torch.from_numpy(tensorly.to_numpy(factor)) for factor in factors)
    return [inner.T, torch.from_numpy(tensorly.to_numpy(core)), outer]


def _cp(weight: Tensor, ranks: list[int]) -> list[Tensor]:
    """W[o, i, h, w] = sum over r of the products of four factors; Lebedev et al., arXiv 1412.6553."""
    from tensorly.decomposition import parafac

    scale = float(weight.abs().max()) or 1.0
    found = parafac(weight.numpy() / scale, ranks[0], n_iter_max=ITERATIONS, init="svd", tol=1e-8, random_state=0)
    outer, inner, down, across = (torch.from_numpy(factor) for factor in found.factors)
    return [inner.T, down.T, across.T, outer * torch.from_numpy(found.weights) * scale]


def _tensor_train(weight: Tensor, ranks: list[int]) -> list[Tensor]:
    """W[o, i, h, w] = A[i] B[h] C[w] D[o], matrices multiplied; Oseledets, SIAM J. Sci. Comput. 2011."""
    from tensorly.decomposition import tensor_train

    cores = tensor_train(weight.permute(1, 2, 3, 0).numpy(), rank=[1, *ranks, 1])
    first, down, across, last = (torch.from_numpy(core) for core in cores)
    return [first[0].T, down.permute(2, 0, 1), across.permute(2, 0, 1), last[..., 0].T]
