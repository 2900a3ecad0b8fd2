"""Batch normalisation folded into the layer before it: the same function, where nothing else reads that layer."""

import pytest
import torch
from torch import Tensor, nn

from verifiers.graph.batch_norm import BatchNorm, folded
from verifiers.graph.capture import export, lower
from verifiers.graph.graph import Builder, Graph


class Shared(nn.Module):
    """Read a convolution twice: before and after its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        return self.last((before + self.norm(before)).flatten(1))


def normalised(last: nn.Module) -> nn.Module:
    layers = [nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3), last]
    return nn.Sequential(*layers)


NETWORKS = {  # the normalisations that stay
    "each after its layer": (lambda: normalised(nn.BatchNorm1d(3)), 0),
    "after an activation": (lambda: normalised(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3))), 1),
    "layer read twice": (Shared, 1),
    "on the image": (lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 3)), 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_keeps_the_function(name: str) -> None:
    build, left = NETWORKS[name]
    torch.manual_seed(0)
    model, x = build().double().eval(), torch.rand(3, 1, 2, 2, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
            module.bias.data.normal_()
    exported, builder = export(model, x[:1]), Builder(x[:1])
    lower(exported, exported.state, builder)
    nodes = folded(builder.nodes)
    torch.testing.assert_close(Graph(nodes, x[:1])(x), model(x), atol=1e-12, rtol=1e-12)
    assert sum(isinstance(node.operator, BatchNorm) for node in nodes) == left
    assert all(i < place for place, node in enumerate(nodes) for i in node.inputs)
