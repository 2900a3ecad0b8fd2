"""The short call: images, labels and settings by name, for a pair and a configuration."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from verifiers.certify.certify import as_config, certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.errors import InputError

SETTINGS: dict[str, Any] = {"eps": "1/50", "methods": ("ibp",), "options": {"cross_check": 0}, "seed": 3}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 4, generator=torch.Generator().manual_seed(1))


def test_the_short_call_is_the_long_one(network: nn.Module, images: Tensor) -> None:
    labels = network(images).argmax(1)
    long = certify(network, (images, labels), CertifyConfig(**SETTINGS))["ibp"]["radius"]
    assert (long > 0).any()
    for short in (
        certify(network, images, labels, **SETTINGS),
        certify(network, images.numpy(), labels.tolist(), **SETTINGS),
        certify(network, (images, labels), **SETTINGS),
        certify(network, TensorDataset(images, labels), **SETTINGS),
    ):
        np.testing.assert_array_equal(short["ibp"]["radius"], long)


def test_settings_become_a_configuration() -> None:
    data, config = as_config("images", "labels", SETTINGS)
    assert data == ("images", "labels") and config == CertifyConfig(**SETTINGS)
    assert as_config("data", None, SETTINGS)[0] == "data"
    assert as_config("data", config, {}) == ("data", config)


REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "both": (
        (CertifyConfig(eps="1/50"),),
        {"eps": "1/10"},
        r"eps and a config were given: write eps in the config, CertifyConfig\(eps=...\)",
    ),
    "no eps": (([0, 1, 2],), {"methods": "ibp"}, "the setting eps is missing: give one, like eps=8/255"),
    "a near name": (([0, 1, 2],), {"eps": 0.1, "method": "ibp"}, "unknown setting 'method'. Did you mean 'methods'"),
    "nothing": ((), {}, "config must be a CertifyConfig, got NoneType: write CertifyConfig"),
    "labels alone": (([0, 1, 2],), {}, "config must be a CertifyConfig, got list: write CertifyConfig"),
    "no labels": ((), {"eps": 0.1}, "data must be a pair of images and labels, got Tensor"),
}


@pytest.mark.parametrize(("given", "settings", "line"), REFUSED.values(), ids=REFUSED)
def test_a_call_that_says_too_little_or_twice_is_one_line(
    network: nn.Module, images: Tensor, given: tuple[Any, ...], settings: dict[str, Any], line: str
) -> None:
    with pytest.raises(InputError, match=line) as refusal:
        certify(network, images, *given, **settings)
    assert "\n" not in str(refusal.value)
