"""Almost orthogonal layers: no larger than 1 for any weights; certificates of the margin, which no point breaks."""

import math

import pytest
import torch

from certkd.config.settings import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from certkd.data import sources
from certkd.networks.builders.one_lipschitz import AlmostOrthogonal, aol
from certkd.networks.resolve import for_training
from certkd.objectives import Kd
from certkd.training.loop import train
from certkd.training.run import Teachers
from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.methods.lipschitz import Lipschitz


def matrix(layer: AlmostOrthogonal) -> torch.Tensor:
    with torch.no_grad():
        return (layer(torch.eye(layer.weight.shape[1], dtype=layer.weight.dtype)) - layer.bias).T


@pytest.mark.parametrize("size", [(3, 7), (7, 3), (5, 5), (1, 4), (40, 30)])
@pytest.mark.parametrize("kind", ["normal", "huge", "tiny", "low rank", "zero columns", "first"])
def test_no_weights_make_a_layer_enlarge_distances(size: tuple[int, int], kind: str) -> None:
    torch.manual_seed(0)
    layer = AlmostOrthogonal(*size).double()
    before, after = size
    drawn = {
        "normal": torch.randn(after, before),
        "huge": 1e8 * torch.randn(after, before),
        "tiny": 1e-9 * torch.randn(after, before),
        "low rank": torch.randn(after, 1) @ torch.randn(1, before),
        "zero columns": torch.randn(after, before) * (torch.arange(before) % 2),
        "first": layer.weight.detach(),
    }[kind]
    layer.weight.data = drawn.double()
    assert float(torch.linalg.matrix_norm(matrix(layer), 2)) <= 1 + 1e-12


def test_orthogonal_columns_are_kept_whole() -> None:
    torch.manual_seed(0)
    layer = AlmostOrthogonal(6, 9).double()
    torch.testing.assert_close(matrix(layer).T @ matrix(layer), torch.eye(6).double(), atol=1e-9, rtol=0)
    sums = AlmostOrthogonal(9, 4).double().weight.detach().abs().sum(0)
    assert bool((sums == 1).all()), "one entry in each column"


def test_a_network_enlarges_no_distance_by_more_than_its_scale() -> None:
    torch.manual_seed(0)
    model = aol((1, 4, 4), 5, hidden=[9, 12], scale=3).double()
    for parameter in model.parameters():
        parameter.data.normal_()
    x, y = torch.rand(2, 500, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        moved = (model(x) - model(y)).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert float(moved.max()) <= 3


@pytest.mark.slow
def test_a_distilled_student_is_certified_by_its_margins() -> None:
    data = sources.load(DataConfig(limit=600))
    teacher = for_training(ModelConfig(options={"hidden": [32]}), data, seed=1)
    parts = {name: data.splits[name] for name in ("train", "validation")}
    steps = OptimizerConfig(rate=5e-3)
    train(teacher, parts, TrainConfig(objective={"kind": "standard"}, epochs=6, optimizer=steps))
    options = {"hidden": [32], "scale": 8}
    student = for_training(ModelConfig(name="certkd:aol", options=options, normalize=False), data, seed=2)
    train(student, parts, TrainConfig(objective=Kd(), epochs=15, optimizer=steps), teacher=Teachers(teacher.eval()))
    x, y = data.splits["test"].batch(torch.arange(20), torch.device("cpu"))
    with torch.no_grad():
        logits = student.eval()(x)
    right = logits.argmax(1) == y
    assert float(right.float().mean()) > 0.8
    method = Lipschitz(constants="fast", shells=3)
    with pytest.warns(UserWarning, match="the network ends in a factor 8"):
        rows = certify(student, (x, y), CertifyConfig(eps="0.1", norm="l2", methods=(method,)))["lipschitz"]
    top = logits.topk(2).values
    margin = ((top[:, 0] - top[:, 1]) / (math.sqrt(2) * 8)).double() * right
    radius = torch.from_numpy(rows["radius"])
    assert bool((radius >= margin * (1 - 1e-4) - 1e-6).all()), "less than the margin over the Lipschitz constant"
    draws = torch.Generator().manual_seed(0)
    for image, label, r in zip(x[right], y[right], radius[right], strict=True):
        away = torch.randn((200, *image.shape), generator=draws)
        away *= 0.999 * float(r) / away.flatten(1).norm(dim=1)[:, None, None, None]
        with torch.no_grad():
            assert bool((student((image + away).clamp(0, 1)).argmax(1) == label).all())
