"""Products of layers equal their dense form, and full ranks give the layer itself."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkd.config.copies import LowRank
from certkd.networks.builders.changed import RANKS, Factored, Form, factored
from certkd.networks.copies.low_rank import decomposed, fill
from certkd.networks.copies.ranks import most, size
from tests.certkd.networks.copies.originals import images, original
from verifiers.core.errors import InputError

CONVOLUTION = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}


def convolution(inner: int = 4, outer: int = 6) -> nn.Conv2d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Conv2d(inner, outer, **CONVOLUTION).double()


def product(layer: nn.Module, form: Form, ranks: tuple[int, ...]) -> nn.Sequential:
    made = factored(layer, Factored(path="x", form=form, ranks=ranks)).double()
    fill(made, layer, form, ranks)
    return made


def dense(form: Form, made: nn.Sequential) -> Tensor:
    """The weight of the convolution that a product of convolutions is, entry by entry."""
    first, *middle, last = [layer.weight for layer in made]
    if form == "svd":
        return torch.einsum("rihw,or->oihw", first, last[:, :, 0, 0])
    narrow, wide = first[:, :, 0, 0], last[:, :, 0, 0]
    if form == "tucker":
        return torch.einsum("ri,srhw,os->oihw", narrow, middle[0], wide)
    down, across = middle[0][:, :, :, 0], middle[1][:, :, 0, :]
    if form == "cp":
        return torch.einsum("ri,rh,rw,or->oihw", narrow, down[:, 0], across[:, 0], wide)
    return torch.einsum("ai,bah,cbw,oc->oihw", narrow, down, across, wide)


@pytest.mark.parametrize(("form", "ranks"), [("svd", (3,)), ("tucker", (2, 3)), ("cp", (5,)), ("tt", (2, 4, 3))])
def test_a_product_of_convolutions_is_one_convolution(form: Form, ranks: tuple[int, ...]) -> None:
    layer = convolution()
    made = product(layer, form, ranks)
    x = torch.rand(2, 4, 9, 8, dtype=torch.float64)
    settings = layer.stride, layer.padding, layer.dilation
    assert torch.allclose(made(x), F.conv2d(x, dense(form, made), layer.bias, *settings), atol=1e-12)
    weights = sum(part.weight.numel() for part in made)
    assert weights == size(tuple(layer.weight.shape), form, ranks)
    assert [part.weight.shape[0] for part in made][: RANKS[form]] == list(ranks)


@pytest.mark.parametrize("form", ["svd", "tucker", "tt"])
def test_full_ranks_give_the_layer_itself(form: Form) -> None:
    layer = convolution()
    made = product(layer, form, most(tuple(layer.weight.shape), form))
    assert torch.allclose(dense(form, made), layer.weight, atol=1e-12)
    assert torch.equal(made[-1].bias, layer.bias)


def test_cp_finds_a_tensor_of_its_rank() -> None:
    layer = convolution()
    g = torch.Generator().manual_seed(0)
    factors = [torch.rand(side, 2, generator=g, dtype=torch.float64) for side in layer.weight.shape]
    layer.weight.data = torch.einsum("or,ir,hr,wr->oihw", *factors)
    assert torch.allclose(dense("cp", product(layer, "cp", (2,))), layer.weight, atol=1e-3)


def test_the_svd_is_the_nearest_matrix_of_its_rank() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(7, 5).double()
    made = product(layer, "svd", (2,))
    error = torch.linalg.norm(made[1].weight @ made[0].weight - layer.weight)
    rest = torch.linalg.svdvals(layer.weight)[2:]
    assert math.isclose(error.item(), rest.square().sum().sqrt().item(), rel_tol=1e-9)
    assert made[0].bias is None and torch.equal(made[1].bias, layer.bias)
    bare = nn.Linear(7, 5, bias=False).double()
    assert product(bare, "svd", (2,))[1].bias is None


@pytest.mark.parametrize("form", ["tucker", "cp", "tt"])
@pytest.mark.parametrize("ratio", [2, 4])
def test_every_layer_has_so_many_times_fewer_weights(form: str, ratio: int) -> None:
    whole = original(width=8, hidden=40)
    copy = decomposed(whole.model, LowRank(form=form, ranks=f"{ratio}x"))
    for change in copy.spec.layers:
        layer, made = (network.network.get_submodule(change.path) for network in (whole.model, copy))
        weights = sum(part.weight.numel() for part in made)
        assert weights <= layer.weight.numel() / ratio or max(change.ranks) == 1, change
    assert {change.path for change in copy.spec.layers} >= {"2", "5"}
    assert torch.isfinite(copy(images(whole))).all()
    assert torch.equal(copy.network.get_submodule("5.1").bias, whole.model.network[5].bias)


def test_all_energy_leaves_a_network_as_it_is_or_nearly() -> None:
    whole = original("certkd:mlp", hidden=[40, 8])
    model = whole.model
    with torch.no_grad():  # layers of exact rank 3
        for i in (1, 3):
            left, values, right = torch.linalg.svd(model.network[i].weight, full_matrices=False)
            model.network[i].weight.copy_((left[:, :3] * values[:3]) @ right[:3])
    copy = decomposed(model, LowRank(ranks="energy=0.999999"))
    assert [(change.path, change.ranks) for change in copy.spec.layers] == [("1", (3,)), ("3", (3,))]
    x = images(whole, 20)
    assert torch.allclose(copy(x), model(x), atol=1e-5)


def test_a_network_without_layers_to_shrink_is_refused() -> None:
    with pytest.raises(InputError, match=r"no layer of certkd:mlp has fewer weights as a product with ranks energy=1"):
        decomposed(original("certkd:mlp", hidden=[4]).model, LowRank(ranks="energy=1"))
    with pytest.raises(InputError, match="the rank of CP follows from no matrix: give ranks as a ratio"):
        decomposed(original().model, LowRank(form="cp", ranks="vbmf"))
