"""Networks by name: shapes, normalisation, pre-trained weights, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from torch import nn

from certkd.config.settings import DataConfig, ModelConfig
from certkd.data.sources import load
from certkd.data.splits import DataSet
from certkd.networks.builders import Classifier, ModelSpec, build, known_models, last_linear
from certkd.networks.builders.build import Normalize, Resize
from certkd.networks.checkpoint import Checkpoint, save
from certkd.networks.checkpoint import load as load_checkpoint
from certkd.networks.resolve import adapted, for_training, parse_architecture
from tests.certifying import certify
from verifiers.core.errors import InputError
from verifiers.core.status import Status

SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32))
#: Options that make large networks small.
SMALL: dict[str, dict[str, Any]] = {
    "certkd:resnet18": {"width": 4},
    "certkd:preact-resnet18": {"width": 4},
    "certkd:wide-resnet": {"depth": 10, "factor": 1},
    "certkd:mobilenet-v2": {"width": 0.25},
    "certkd:cnn7": {"width": 4, "hidden": 16},
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def spec(name: str, shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, **more: Any) -> ModelSpec:
    """A network's specification."""
    return ModelSpec(name=name, classes=classes, shape=shape, **more)


def refusal(wanted: ModelSpec, *, pretrained: bool = False) -> str:
    """The one line that refuses a network."""
    with pytest.raises(InputError) as caught:
        build(wanted, pretrained=pretrained)
    assert "\n" not in str(caught.value), "a refusal must be one line"
    return str(caught.value)


def logits(model: Classifier, count: int = 2) -> torch.Tensor:
    """Outputs on random images."""
    with torch.no_grad():
        return model.eval()(torch.rand(count, *model.spec.shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", known_models("certkd"))
def test_own_networks_take_every_usual_shape(name: str, shape: tuple[int, ...]) -> None:
    for classes in (2, 10):
        model = build(spec(name, shape, classes, options=SMALL.get(name, {})))
        assert logits(model, 3).shape == (3, classes), f"{name} on {shape}"


def test_a_perceptron_has_the_hidden_layers_asked_for() -> None:
    model = build(spec("certkd:mlp", (1, 8, 8), options={"hidden": [7, 5]}))
    sizes = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert sizes == [(64, 7), (7, 5), (5, 10)]


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_a_resnet_of_depth_6n_plus_2_has_so_many_weighted_layers(depth: int) -> None:
    model = build(spec("certkd:resnet", options={"depth": depth, "width": 4}))
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) or getattr(m, "kernel_size", 0) == (3, 3)]
    assert len(layers) == depth, "the 1x1 convolutions of shortcuts do not count"


@pytest.mark.parametrize("depth", [2, 7, 9, 18, 0, -4, "deep"])
def test_another_depth_is_refused(depth: Any) -> None:
    message = refusal(spec("certkd:resnet", options={"depth": depth}))
    assert str(depth) in message, message


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("certkd:mpl", "certkd:mlp"),
        ("certkd:resnett", "certkd:resnet"),
        ("torchvision:resnet_18", "torchvision:resnet18"),
        ("timm:resnet_18", "timm:resnet18"),
        ("mlp", "mlp"),
        ("cetkd:cnn", "certkd:cnn"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, near: str) -> None:
    message = refusal(spec(name))
    assert f"unknown network {name!r}." in message and f"Did you mean {near!r}?" in message, message


@pytest.mark.parametrize("name", ["net.py", "folder/net.py:"])
def test_a_file_without_a_class_is_asked_for_the_class(name: str) -> None:
    assert f"Name the class in the file too, as in '{name.rstrip(':')}:Net'." in refusal(spec(name))


@pytest.mark.parametrize("name", ["timm:zzzzzzzzz", "torchvision:zzzzzzzzz", "zzz:zzz", "certkd:", "timm:"])
def test_a_name_near_none_does_not_list_a_thousand(name: str) -> None:
    message = refusal(spec(name))
    assert repr(name) in message and len(message) < 400, message


def test_an_unknown_option_suggests_the_nearest() -> None:
    assert "has no option 'widht'. Did you mean 'width'?" in refusal(spec("certkd:cnn", options={"widht": 3}))
    for name in ("torchvision:resnet18", "timm:resnet18"):
        message = refusal(spec(name, options={"no_such_option": 3}))
        assert name in message and "no_such_option" in message, message


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("certkd:cnn", (10,), {}),
        ("certkd:cnn", (1, 2, 2), {}),
        ("certkd:mlp", (1, 8, 8), {"hidden": 64}),
        ("certkd:mlp", (1, 8, 8), {"hidden": [0.5]}),
        ("timm:vit_tiny_patch16_224", (10,), {}),
        ("timm:eva02_tiny_patch14_224", (3, 32, 32), {}),
        ("torchvision:alexnet", (3, 8, 8), {}),
    ],
)
def test_a_shape_or_option_that_does_not_fit_is_refused_when_built(
    name: str, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    message = refusal(spec(name, shape, options=options))
    assert name in message, message


def test_normalize_is_x_minus_mean_over_std() -> None:
    x = torch.rand(4, 3, 9, 9)
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    error = (Normalize(*IMAGENET)(x) - (x - mean) / std).abs().max()
    assert float(error) < 1e-6, f"off by {float(error)}"


def test_the_normalisation_is_the_networks_first_layer() -> None:
    model = build(spec("certkd:cnn", mean=IMAGENET[0], std=IMAGENET[1])).eval()
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    with torch.no_grad():
        assert torch.allclose(model(x), model.network((x - mean) / std), atol=1e-5)
    plain = build(spec("certkd:cnn")).eval()
    assert torch.equal(plain(x), plain.network(x)), "without statistics nothing is changed"


def test_statistics_for_another_number_of_channels_are_refused() -> None:
    message = refusal(spec("certkd:cnn", (1, 8, 8), mean=IMAGENET[0], std=IMAGENET[1]))
    assert message == f"certkd:cnn: mean {IMAGENET[0]} needs one number per channel, images are (1, 8, 8)", message


def test_statistics_are_buffers_and_not_trained() -> None:
    model = build(spec("certkd:mlp", mean=IMAGENET[0], std=IMAGENET[1]))
    assert not any(name.startswith("normalize") for name, _ in model.named_parameters())
    assert "normalize.weight" in model.state_dict(), "a checkpoint must carry the normalisation"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision:resnet18", (3, 32, 32)),
        ("timm:resnet18", (3, 32, 32)),
        ("timm:resnet18", (1, 28, 28)),
        ("timm:vit_tiny_patch16_224", (3, 32, 32)),
        ("timm:vit_tiny_patch16_224", (3, 64, 64)),
        ("timm:efficientvit_b0", (3, 32, 32)),
    ],
)
def test_networks_of_other_libraries_run_with_random_weights(name: str, shape: tuple[int, ...]) -> None:
    model = build(spec(name, shape, 7))
    assert logits(model).shape == (2, 7)
    assert model.training is False and build(spec(name, shape, 7)).training is True, "ready to be trained"


def test_the_image_size_of_a_transformer_comes_from_the_data() -> None:
    model = build(spec("timm:vit_tiny_patch16_224", (3, 48, 48)))
    assert model.network.patch_embed.img_size == (48, 48)
    finer = build(spec("timm:vit_tiny_patch16_224", (3, 48, 48), options={"patch_size": 8}))
    assert finer.network.pos_embed.shape[1] == 6 * 6 + 1, "options reach the builder: 36 patches and the class token"


def test_torchvision_wants_colour() -> None:
    message = refusal(spec("torchvision:resnet18", (1, 28, 28)))
    assert "three colour channels" in message and "(1, 28, 28)" in message and "timm" in message, message


def test_random_weights_depend_on_the_seed_and_leave_the_global_generator_alone() -> None:
    data = load(DataConfig())
    config = ModelConfig(name="certkd:mlp")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = (for_training(config, data, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected), "building a network moved the global generator"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


# bare weights of a file, and checkpoints, to begin with


def colour(classes: int = 10, side: int = 32) -> DataSet:
    """A data set without images."""
    return DataSet("colour", classes, (3, side, side), {})


SMALL_VIT = {"depth": 1, "embed_dim": 24, "num_heads": 3, "patch_size": 8}


@pytest.mark.parametrize("classes", [10, 7])
@pytest.mark.parametrize(
    ("name", "options"), [("timm:vit_tiny_patch16_224", SMALL_VIT), ("torchvision:resnet18", {}), ("certkd:cnn", {})]
)
def test_bare_weights_begin_a_training(name: str, options: dict[str, Any], classes: int, tmp_path: Path) -> None:
    torch.manual_seed(5)
    kept = build(ModelSpec(name=name, options=options, classes=classes, shape=(3, 32, 32))).network.state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in kept.items()}}, tmp_path / "bare.pth")
    told: list[str] = []
    config = ModelConfig(name=name, options=options, weights=str(tmp_path / "bare.pth"))
    model = for_training(config, colour(), 0, told.append)
    same = {key for key, value in model.network.state_dict().items() if torch.equal(value, kept[key])}
    head = last_linear(model.network)
    assert set(kept) - same == ({f"{head}.weight", f"{head}.bias"} if classes == 7 else set())
    assert sum("begins with random weights" in text for text in told) == (classes == 7)
    assert sum("images are normalised by (0." in text for text in told) == (not name.startswith("certkd"))
    usual = {"timm": (0.5,) * 3, "torchvision": (0.485, 0.456, 0.406), "certkd": ()}[name.partition(":")[0]]
    assert model.spec.mean == pytest.approx(usual), "the normalisation is that of the weights' source"


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    other = build(ModelSpec(name="certkd:cnn", options={"width": 5}, classes=10, shape=(3, 32, 32)))
    torch.save(other.network.state_dict(), tmp_path / "bare.pth")
    save(Checkpoint(other), tmp_path / "net.pt")
    torch.save({0: torch.zeros(2)}, tmp_path / "numbers.pth")
    for settings, message in (
        ({"name": "certkd:cnn", "weights": str(tmp_path / "bare.pth")}, "of another architecture than certkd:cnn"),
        ({"name": "certkd:cnn", "weights": str(tmp_path / "net.pt")}, "is a checkpoint and describes its own"),
        ({"name": "certkd:cnn", "weights": str(tmp_path / "none.pth")}, "no such checkpoint"),
        ({"name": "timm:resnet10t", "weights": "a.pth", "pretrained": True}, "drop one of them"),
        ({"name": "timm:resnet18.zzz", "weights": str(tmp_path / "bare.pth")}, "resnet18.zzz"),
        ({"name": "certkd:cnn", "weights": str(tmp_path / "numbers.pth")}, "holds no weights"),
        ({"name": str(tmp_path / "bare.pth")}, "name: source:name and weights: the file"),
    ):
        with pytest.raises(InputError, match=message):
            for_training(ModelConfig(**settings), colour(), 0)


def test_a_checkpoint_for_other_images_gets_them_resized(tmp_path: Path) -> None:
    first = build(ModelSpec(name="certkd:resnet", options={"depth": 8}, classes=10, shape=(3, 16, 16))).eval()
    save(Checkpoint(first), tmp_path / "net.pt")
    told: list[str] = []
    model = for_training(ModelConfig(name=str(tmp_path / "net.pt")), colour(), 0, told.append).eval()
    assert model.spec.shape == (3, 32, 32) and model.spec.resize == (16, 16)
    assert len(told) == 1 and "resized from 32x32 to 16x16" in told[0]
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x), first(torch.nn.functional.interpolate(x, size=(16, 16), mode="bilinear")))
    for data in (colour(classes=3), load(DataConfig())):
        with pytest.raises(InputError, match=r"takes images \(3, 16, 16\) of 10 classes"):
            for_training(ModelConfig(name=str(tmp_path / "net.pt")), data, 0)


# pre-trained weights; the download is replaced


def offline_torchvision(error: Exception | None = None, **changes: Any) -> Callable[..., nn.Module]:
    """torchvision.models.get_model with the download replaced: seeded weights, or a failure."""
    original = torchvision.models.get_model

    def get_model(name: str, weights: Any = None, **options: Any) -> nn.Module:
        if weights is None:
            return original(name, weights=None, **options)
        if error is not None:
            raise error
        assert weights == "DEFAULT"
        torch.manual_seed(11)
        return original(name, weights=None, **{**options, **changes})

    return get_model


@pytest.mark.parametrize(("classes", "replaced"), [(1000, False), (5, True)])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_torchvision_weights_get_a_new_head_only_when_needed(
    name: str, classes: int, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_model = offline_torchvision()
    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    model = build(spec(f"torchvision:{name}", (3, 32, 32), classes), pretrained=True)
    there, expected = model.network.state_dict(), get_model(name, weights="DEFAULT").state_dict()
    changed = {key for key in there if not torch.equal(there[key], expected[key])}
    assert bool(changed) == replaced
    assert len(changed) in (0, 2) and all(there[key].shape[0] == classes for key in changed), "only the last layer"
    assert (model.spec.mean, model.spec.std) == IMAGENET, "the weights expect ImageNet's normalisation"
    assert logits(model).shape == (2, classes)
    again = build(model.spec)
    assert again.state_dict().keys() == model.state_dict().keys(), "its checkpoint must build the same network"


def test_a_torchvision_network_without_a_linear_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "get_model", offline_torchvision())
    assert "squeezenet1_1" in refusal(spec("torchvision:squeezenet1_1", (3, 64, 64)), pretrained=True)


@pytest.mark.parametrize(
    "error", [URLError("no route to host"), RuntimeError("invalid hash value"), ConnectionResetError("reset")]
)
@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_a_failed_download_is_named(source: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> nn.Module:
        raise error

    monkeypatch.setattr(torchvision.models, "get_model", offline_torchvision(error))
    monkeypatch.setattr(timm, "create_model", fail)
    message = refusal(spec(f"{source}:resnet18"), pretrained=True)
    assert f"cannot fetch the weights of {source}:resnet18" in message, message
    assert str(error) in message, message


@pytest.mark.parametrize("channels", [3, 1])
def test_timm_weights_bring_their_normalisation(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, asked = timm.create_model, []

    def create_model(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        asked.append(pretrained)
        return original(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    model = build(spec("timm:resnet18", (channels, 32, 32), 5), pretrained=True)
    assert asked == [True], "the weights must be asked for"
    assert logits(model).shape == (2, 5)
    if channels == 3:
        assert (model.spec.mean, model.spec.std) == IMAGENET
    else:
        assert model.spec.mean == pytest.approx((sum(IMAGENET[0]) / 3,)), "grey images get the mean of the colours"


def test_own_networks_have_no_pretrained_weights() -> None:
    assert "no pre-trained weights" in refusal(spec("certkd:mlp"), pretrained=True)


# architectures on the command line


def test_an_architecture_with_options() -> None:
    assert parse_architecture("certkd:resnet,depth=20", 10, (1, 8, 8)).options == {"depth": 20}
    parsed = parse_architecture("certkd:mlp,hidden=[8, 9]", 10, (1, 8, 8))
    assert (parsed.name, parsed.options, parsed.classes, parsed.shape) == (
        "certkd:mlp",
        {"hidden": [8, 9]},
        10,
        (1, 8, 8),
    )


@pytest.mark.parametrize("text", ["certkd:resnet,20", "certkd:mlp,hidden=[8", "certkd:resnet,depth={"])
def test_a_wrong_architecture_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_architecture(text, 10, (1, 8, 8))
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


# images of another size


def resized(name: str = "certkd:cnn", shape: tuple[int, ...] = (1, 8, 8), **more: Any) -> Classifier:
    """A network for images of 12x10 that takes images of 8x8."""
    torch.manual_seed(0)
    return build(spec(name, shape, 4, resize=(12, 10), mean=(0.5,), std=(0.25,), **more)).eval()


def test_a_resized_network_sees_interpolated_images() -> None:
    model, x = resized(options={"width": 4}), torch.rand(3, 1, 8, 8)
    large = nn.functional.interpolate(x, (12, 10), mode="bilinear", align_corners=False)
    with torch.no_grad():
        assert torch.allclose(model(x), model.network((large - 0.5) / 0.25), atol=1e-5)
    assert Resize((8, 8))(x).equal(x), "the same size is no change"


def test_gradients_of_a_resized_network_are_in_the_pixels_of_the_data() -> None:
    model = resized(options={"width": 4}).double()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64).requires_grad_(True)
    (slope,) = torch.autograd.grad(model(x)[0, 1], x)
    for row, column in ((0, 0), (3, 4), (7, 7)):
        step = torch.zeros_like(x)
        step[0, 0, row, column] = 1e-6
        with torch.no_grad():
            expected = (model(x + step)[0, 1] - model(x - step)[0, 1]) / 2e-6
        assert float(slope[0, 0, row, column]) == pytest.approx(float(expected), rel=1e-4, abs=1e-8)
    assert torch.autograd.gradgradcheck(lambda z: model(z)[:, 1], (x,)), "alignment needs the second derivative"


@pytest.mark.slow
def test_a_resized_network_is_certified() -> None:
    model = resized(options={"width": 2})
    x = torch.rand(6, 1, 8, 8)
    rows = certify(model, x, model(x).argmax(1), eps="1e-4", methods=["ibp", "pgd"])
    assert set(rows["ibp"]["status"]) == {int(Status.CERTIFIED)}, set(rows["ibp"]["status"])
    assert (rows["ibp"]["radius"] > 0).all()


def test_resizing_comes_from_the_configuration_and_lasts(tmp_path: Path) -> None:
    model = for_training(ModelConfig(name="certkd:cnn", options={"width": 4}, resize=12), load(DataConfig()), 0)
    assert model.spec.resize == (12, 12) and model.spec.shape == (1, 8, 8)
    save(Checkpoint(model), tmp_path / "net.pt")
    again, x = load_checkpoint(tmp_path / "net.pt").model, torch.rand(2, 1, 8, 8)
    assert again.spec == model.spec and torch.equal(again(x), model.eval()(x))


def test_a_checkpoint_from_before_resizing_loads(tmp_path: Path) -> None:
    model = build(spec("certkd:mlp", (1, 8, 8)))
    save(Checkpoint(model), tmp_path / "net.pt")
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    del content["architecture"]["resize"]
    torch.save(content, tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt").model.spec.resize is None
    assert not any("resize" in name for name, _ in model.named_modules()), "nothing is added where nothing is resized"


def test_a_transformer_is_built_for_the_size_it_sees() -> None:
    model = build(spec("timm:vit_tiny_patch16_224", (3, 32, 32), 4, resize=(48, 48)))
    assert model.network.patch_embed.img_size == (48, 48) and logits(model).shape == (2, 4)


def test_resizing_what_is_no_image_is_refused() -> None:
    assert "resize needs images" in refusal(spec("certkd:mlp", (10,), resize=(4, 4)))


def test_an_adapted_network_shares_its_weights_and_sees_its_own_size() -> None:
    model = build(spec("certkd:cnn", (1, 12, 10), 4, mean=(0.5,), std=(0.25,))).eval()
    other, x = adapted(model, (1, 8, 8)), torch.rand(2, 1, 8, 8)
    large = nn.functional.interpolate(x, (12, 10), mode="bilinear", align_corners=False)
    assert torch.equal(other(x), model(large)) and not other.training
    assert {id(p) for p in other.parameters()} == {id(p) for p in model.parameters()}
    again = adapted(other, (1, 5, 5))
    assert again.spec.shape == (1, 5, 5) and again.spec.resize == (12, 10), "always its own size"
    for shape in ((3, 8, 8), (64,)):
        with pytest.raises(InputError, match="only height and width may differ"):
            adapted(model, shape)
