"""Sizes of networks by slow counts, and the zeros that training keeps."""

import torch
from torch import nn

from certkd.config.copies import LowRank, Prune
from certkd.config.settings import Recipe
from certkd.networks.copies.compress import compressed
from certkd.networks.copies.facts import Copied, facts_of
from certkd.networks.copies.masks import Masks
from certkd.networks.copies.prune import pruned
from certkd.objectives import Adversarial, Kdiga
from tests.certkd.networks.copies.originals import images, original
from tests.training import train


def test_multiply_adds_are_those_of_loops_over_positions() -> None:
    network = original(width=2, hidden=5)  # 8x8 images, maps of 4x4 and 2x2
    expected = 16 * 2 * 1 * 16 + 4 * 4 * 2 * 16 + 16 * 5 + 5 * 3
    facts = facts_of(network.model)
    assert facts.multiply_adds == expected
    weights = 2 * 16 + 2 + 4 * 2 * 16 + 4 + 16 * 5 + 5 + 5 * 3 + 3
    assert (facts.weights, facts.nonzero, facts.bytes, facts.sparsity) == (weights, weights, 4 * weights, 0.0)


def test_zeros_are_not_multiplied() -> None:
    network = original(width=2, hidden=5)
    first = network.model.network[0]
    assert isinstance(first, nn.Conv2d)
    before = facts_of(network.model)
    with torch.no_grad():
        first.weight[0] = 0
    after = facts_of(network.model)
    assert before.multiply_adds - after.multiply_adds == 16 * 16
    assert after.weights == before.weights and after.nonzero == before.nonzero - 16


class Attending(nn.Module):
    """Attention over five tokens of a transposed convolution's map, as a classifier's inner network."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.ConvTranspose2d(1, 4, 3, stride=2, padding=1)  # 4x4 pixels, 7x7 out
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.spread(x).flatten(2)[:, :, :5].mT
        return self.last(self.attend(query=tokens, key=tokens, value=tokens)[0].mean(1))


def test_attention_and_transposed_convolutions_are_counted() -> None:
    network = original("certkd:mlp", (1, 4, 4), hidden=[2]).model
    network.network = Attending()
    expected = 4 * 9 * 16 + (3 * 16 + 16) * 5 + 4 * 3
    assert facts_of(network).multiply_adds == expected
    with torch.no_grad():
        network.network.attend.in_proj_weight[:6] = 0
    assert facts_of(network).multiply_adds == expected - 24 * 5


def test_a_copy_says_what_it_is_a_copy_of() -> None:
    whole = original(width=4, hidden=20)
    about = Copied.parse(compressed(whole, Prune(share=0.8)).copied)
    assert about.of == whole.sha256
    assert about.how == {"kind": "prune", "share": 0.8, "what": "weights"}
    assert about.original == facts_of(whole.model)
    assert 0.7 < about.facts.sparsity < 0.8 and about.facts.multiply_adds < 0.5 * about.original.multiply_adds
    twice = compressed(compressed(whole, LowRank()), Prune(share=0.5))
    changes = twice.model.spec.layers
    factored = [change.path for change in changes if change.kind == "factored"]
    assert [change.path for change in changes[: len(factored)]] == factored, "layers become products first"
    assert f"{factored[-1]}.0" in [change.path for change in changes[len(factored) :]]
    assert Copied.parse(twice.copied).of != whole.sha256, "a copy of a copy is a copy of that"


def test_masks_are_the_zeros_of_pruned_layers() -> None:
    model = pruned(original().model, Prune(share=0.7))
    masks, layer = Masks(model), model.network[2]
    before = layer.weight.detach().clone()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    masks.keep()
    assert torch.equal(layer.weight == 0, before == 0) and torch.equal(
        layer.weight, torch.where(before == 0, 0, before + 1)
    )
    assert torch.equal(model.network[2].bias, original().model.network[2].bias + 1)
    assert Masks(nn.Linear(2, 2))._masks == [], "other modules have no description"


def test_training_keeps_masks_and_ranks() -> None:
    whole = original("certkd:mlp", hidden=[8])
    data = images(whole, 40), torch.arange(40) % 3
    recipe = Recipe(epochs=2, batch_size=8)
    for objective in (Adversarial(eps=0.1, steps=1), Kdiga()):
        for how in (Prune(share=0.6), LowRank()):
            copy = compressed(whole, how).model
            before = {name: value.clone() for name, value in copy.state_dict().items()}
            train(copy, data, objective, recipe=recipe, teacher=whole.model, validation=data)
            for name, value in copy.state_dict().items():
                assert value.shape == before[name].shape
                if name.endswith("weight") and value.dim() == 2 and isinstance(how, Prune):
                    assert torch.equal(value == 0, before[name] == 0), f"{objective.kind}: {name}"
            moved = [name for name, value in copy.named_parameters() if not torch.equal(value, before[name])]
            assert len(moved) == len(list(copy.parameters()))


def test_an_average_of_masked_weights_is_masked() -> None:
    whole = original("certkd:mlp", hidden=[8])
    data = images(whole, 40), torch.arange(40) % 3
    copy = compressed(whole, Prune(share=0.6)).model
    zeros = [weight.detach() == 0 for weight in copy.parameters() if weight.dim() == 2]
    train(copy, data, Kdiga(), recipe=Recipe(epochs=2, average="ema"), teacher=whole.model, validation=data)
    weights = [weight for weight in copy.parameters() if weight.dim() == 2]
    assert all(bool((weight[mask] == 0).all()) for weight, mask in zip(weights, zeros, strict=True))
