"""Networks of the literature: sizes as published, the shapes of public benchmarks, and bounds that hold."""

from typing import Any

import pytest
import torch
from torch import nn

from certkd.networks.builders import ModelSpec, build
from certkd.networks.builders.cifar import PlainBlock, PreActBlock
from tests.certifying import certify
from tests.certkd.networks.test_models import SMALL, refusal, spec
from tests.paths import GOLDEN
from verifiers.core.status import Status

#: Parameters on 3x32x32 and 10 classes; ResNet-18 and the two WRNs as in public model zoos.
SIZES = [
    ("certkd:resnet18", {}, 11_173_962),
    ("certkd:preact-resnet18", {}, 11_172_170),
    ("certkd:wide-resnet", {}, 36_479_194),
    ("certkd:wide-resnet", {"depth": 34}, 46_160_474),
    ("certkd:mobilenet-v2", {}, 2_236_682),
    ("certkd:resnet-2b", {}, 112_006),
    ("certkd:resnet-4b", {}, 123_734),
]


@pytest.mark.parametrize(("name", "options", "size"), SIZES)
def test_sizes(name: str, options: dict[str, Any], size: int) -> None:
    with torch.device("meta"):
        model = _inner(spec(name, options=options))
    assert sum(p.numel() for p in model.parameters()) == size


def _inner(wanted: ModelSpec) -> nn.Module:
    """Build without the trial on an image, which the meta device has no values for."""
    from certkd.networks.builders.build import OWN

    return OWN[wanted.name.removeprefix("certkd:")](wanted.shape, wanted.classes, **wanted.options)


@pytest.mark.parametrize(
    ("name", "last"), [("certkd:resnet18", 4), ("certkd:wide-resnet", 8), ("certkd:mobilenet-v2", 4)]
)
def test_the_average_sees_so_many_pixels_of_32(name: str, last: int) -> None:
    """ImageNet's stem would leave one."""
    model = build(spec(name, options=SMALL[name])).eval()
    sides: list[int] = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, given, out: sides.append(out.shape[-1]))
    model(torch.rand(1, 3, 32, 32))
    assert sides[-1] == last and sides[0] == 32


@pytest.mark.parametrize(("name", "relus"), [("certkd:resnet-2b", 6244), ("certkd:resnet-4b", 14436)])
def test_the_benchmarks_have_so_many_relus(name: str, relus: int) -> None:
    model, count = build(spec(name)).eval(), list[int]()
    for layer in model.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda _, given, out: count.append(out.numel()))
    model(torch.rand(1, 3, 32, 32))
    assert sum(count) == relus


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs the golden networks")
def test_resnet_2b_has_the_weights_of_the_public_file() -> None:
    import onnx

    stored = [tuple(i.dims) for i in onnx.load(GOLDEN / "nets" / "resnet_2b.onnx").graph.initializer]
    ours = [tuple(p.shape) for p in build(spec("certkd:resnet-2b")).parameters()]
    assert sorted(shape for shape in stored if len(shape) in (1, 2, 4) and shape != (2,)) == sorted(ours)


@pytest.mark.parametrize("depth", [5, 9, 27, 4])
def test_a_wide_resnet_of_another_depth_is_refused(depth: int) -> None:
    assert f"depth must be 6n + 4 (10, 16, 22, 28, 34, ...), got {depth}" in refusal(
        spec("certkd:wide-resnet", options={"depth": depth, "factor": 1})
    )


def test_blocks_are_their_formulas() -> None:
    x = torch.randn(2, 3, 6, 6)
    block = PreActBlock(3, 5, 2).eval()
    active = torch.relu(block.bn1(x))
    wanted = block.conv2(torch.relu(block.bn2(block.conv1(active)))) + block.shortcut(active)
    assert torch.equal(block(x), wanted) and wanted.shape == (2, 5, 3, 3)
    same = PreActBlock(3, 3, 1).eval()
    assert same.shortcut is None, "the shortcut is the input before its normalisation"
    rest = same.conv2(torch.relu(same.bn2(same.conv1(torch.relu(same.bn1(x))))))
    torch.testing.assert_close(same(x), x + rest)
    plain = PlainBlock(3, 4, 2)
    wanted = torch.relu(plain.conv2(torch.relu(plain.conv1(x))) + plain.shortcut(x))
    assert torch.equal(plain(x), wanted)


SMALLER = {
    "certkd:resnet-2b": {"width": 2},
    **{name: SMALL[name] for name in ("certkd:preact-resnet18", "certkd:mobilenet-v2", "certkd:cnn7")},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALLER))
def test_every_network_is_certified(name: str) -> None:
    """A radius is proved, and no sampled point of the ball has another class; intervals alone bound the deepest."""
    method = "ibp" if name == "certkd:mobilenet-v2" else "crown"
    torch.manual_seed(0)
    model = build(spec(name, (3, 8, 8), 3, options=SMALLER[name]))
    model.train()
    for _ in range(5):
        model(torch.rand(32, 3, 8, 8))
    model.eval()
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        labels = model(x).argmax(1)
    rows = certify(model, x, labels, eps="1e-6", methods=(method,), options={"cross_check": 0})[method]
    wanted = Status.NOT_CERTIFIED if method == "ibp" else Status.CERTIFIED
    assert set(rows["status"]) == {wanted}
    for image, label, radius in zip(x, labels, rows["radius"], strict=True):
        noise = (2 * torch.rand(500, *image.shape) - 1) * float(radius)
        assert (model((image + noise).clamp(0, 1)).argmax(1) == label).all()
