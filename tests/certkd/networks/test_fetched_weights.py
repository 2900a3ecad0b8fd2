"""Pre-trained weights are used where they are on this machine, and fetched only with leave."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from torchvision.models import ResNet18_Weights

from certkd.config.settings import DataConfig, ModelConfig, TrainJob
from certkd.networks.builders import check_present
from certkd.objectives import Standard
from certkd.training.job import run_training
from verifiers.core.errors import InputError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torch's weights; nothing is in the cache of any hub."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18", "timm:resnet18,drop_rate=0.1"])
def test_absent_weights_are_named_with_the_way_to_fetch_them(name: str, cache: Path) -> None:
    with pytest.raises(InputError) as caught:
        check_present(name)
    assert str(caught.value) == f"the weights of {name} are not on this machine: add --download to fetch them"


@pytest.mark.parametrize(
    "name", ["certkd:mlp", "torchvision:resnt18", "timm:resnt18", "timm:test_unknown", "net.pt", "robustbench:x"]
)
def test_names_without_weights_are_left_to_the_builder(name: str, cache: Path) -> None:
    check_present(name)


def test_weights_in_the_cache_of_torch_are_there(cache: Path) -> None:
    (cache / Path(ResNet18_Weights.DEFAULT.url).name).touch()
    check_present("torchvision:resnet18")
    (cache / Path(timm.get_pretrained_cfg("resnet18").url).name).touch()
    check_present("timm:resnet18")


def test_weights_in_the_cache_of_a_hub_are_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def cached(*place: Any) -> str | None:
        asked.append(place)
        return "/cache/file" if place[1] == "pytorch_model.bin" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    check_present("timm:resnet18")
    hub = timm.get_pretrained_cfg("resnet18").hf_hub_id
    assert asked == [(hub, "model.safetensors"), (hub, "pytorch_model.bin")]


def test_a_training_fetches_no_weights_without_leave(cache: Path, tmp_path: Path) -> None:
    model = ModelConfig(name="torchvision:resnet18", pretrained=True)
    job = TrainJob(out=str(tmp_path / "out"), objective=Standard(), model=model, data=DataConfig(name="cifar10"))
    with pytest.raises(InputError, match="the weights of torchvision:resnet18 are not on this machine"):
        run_training(job)
    assert not (tmp_path / "out").exists()
