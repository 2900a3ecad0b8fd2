"""Pruned copies: which weights become 0, and that narrow networks are those without the channels."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from certkd.config.copies import Prune
from certkd.networks.builders import Classifier, ModelSpec
from certkd.networks.builders.changed import Masked, Resized
from certkd.networks.copies.prune import pruned
from tests.certkd.networks.copies.originals import images, original
from verifiers.core.errors import InputError


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_weights_below_one_threshold_of_all_layers_become_0_and_others_stay(share: float) -> None:
    model = original(width=3, hidden=7).model
    copy = pruned(model, Prune(share=share))
    paths = ["0", "2", "5", "7"]
    before = np.concatenate([model.network.get_parameter(f"{path}.weight").detach().flatten() for path in paths])
    threshold = np.sort(np.abs(before))[round(share * len(before))]
    for path in paths:
        old, new = (network.network.get_submodule(path) for network in (model, copy))
        kept = old.weight.abs() >= threshold
        assert torch.equal(new.weight, old.weight * kept), f"layer {path}"
        assert torch.equal(new.bias, old.bias)
    zeros = sum(int((copy.network.get_parameter(f"{path}.weight") == 0).sum()) for path in paths)
    assert zeros == round(share * len(before))
    assert copy.spec.layers == tuple(Masked(path=path) for path in paths)
    assert model.spec.layers == () and bool(model.network[0].weight.all()), "the original stays as it is"


def test_a_narrow_copy_of_a_perceptron_lacks_the_neurons_of_least_norm() -> None:
    model = original("certkd:mlp", hidden=[6, 4]).model
    copy = pruned(model, Prune(what="channels", share=0.5))
    first, second, last = (layer for layer in model.network if isinstance(layer, nn.Linear))

    def kept(into: torch.Tensor, out_of: torch.Tensor, count: int) -> list[int]:
        """The neurons with the largest squares of weights, those that enter and those that leave."""
        order = (into.square().sum(1) + out_of.square().sum(0)).argsort(descending=True)
        return sorted(order[:count].tolist())

    one, two = kept(first.weight, second.weight, 3), kept(second.weight, last.weight, 2)
    x = images(original("certkd:mlp", hidden=[6, 4]))
    hidden = F.relu(F.linear(model.normalize(x).flatten(1), first.weight[one], first.bias[one]))
    hidden = F.relu(F.linear(hidden, second.weight[two][:, one], second.bias[two]))
    assert torch.allclose(copy(x), F.linear(hidden, last.weight[:, two], last.bias), atol=1e-6)
    sizes = [tuple(layer.weight.shape) for layer in copy.network if isinstance(layer, nn.Linear)]
    assert sizes == [(3, 64), (2, 3), (3, 2)]


@pytest.mark.parametrize(
    ("name", "options", "shape", "layers"),
    [
        ("certkd:cnn", {"width": 4, "hidden": 8}, (1, 8, 8), {"0": (2, 1, 4, 4), "2": (4, 2, 4, 4), "5": (4, 16)}),
        ("certkd:resnet", {"width": 4}, (3, 8, 8), {"0": (2, 3, 3, 3), "1": (2,)}),
    ],
)
def test_channels_are_really_removed(name: str, options: dict, shape: tuple, layers: dict) -> None:
    whole = original(name, shape, **options)
    copy = pruned(whole.model, Prune(what="channels"))
    for path, wanted in layers.items():
        assert tuple(copy.network.get_parameter(f"{path}.weight").shape) == wanted
        assert next(change for change in copy.spec.layers if change.path == path) == Resized(path=path, shape=wanted)
    sizes = [sum(weight.numel() for weight in network.parameters()) for network in (whole.model, copy)]
    assert sizes[1] < 0.4 * sizes[0]
    assert copy(images(whole)).shape == (5, 3)
    last = [layer for layer in copy.modules() if isinstance(layer, nn.Linear)][-1]
    assert last.out_features == 3, "classes are no channels"


def test_a_depthwise_convolution_keeps_a_group_for_each_channel() -> None:
    layers = [nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    model = Classifier(ModelSpec(name="certkd:cnn", classes=3, shape=(1, 8, 8)), nn.Sequential(*layers)).eval()
    copy = pruned(model, Prune(what="channels"))
    assert copy.network[1].groups == 2 and tuple(copy.network[1].weight.shape) == (2, 1, 3, 3)


def test_what_cannot_be_pruned_is_refused() -> None:
    flat = Classifier(ModelSpec(name="certkd:mlp", classes=4, shape=(1, 2, 2)), nn.Flatten()).eval()
    with pytest.raises(InputError, match="certkd:mlp has no linear layers and no convolutions to prune"):
        pruned(flat, Prune())
    with pytest.raises(InputError, match="too narrow to lose channels: take a larger share"):
        pruned(original("certkd:mlp", hidden=[1]).model, Prune(what="channels", share=0.01))
