"""A layer's weights are taken by name: torch's pruning registers the weight after the bias."""

import torch
from torch import nn
from torch.nn.utils import prune

from verifiers.graph.program import Program


def test_a_linear_layer_whose_weight_was_pruned_is_captured() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)).eval()
    prune.l1_unstructured(model[1], "weight", amount=5)
    prune.remove(model[1], "weight")
    assert next(iter(model[1].named_parameters()))[0] == "bias"
    x = torch.rand(3, 1, 2, 2)
    captured = Program(model).capture(x)
    assert torch.equal(captured.module(x), model(x))
    assert torch.allclose(captured.graph(x.double()), model.double()(x.double()))
