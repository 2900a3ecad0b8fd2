"""Adversarial images of other tools against a certificate file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from certkd.exchange.adversarial import compare, read_adversarial
from tests.certifying import certify
from verifiers.core.errors import InputError
from verifiers.results.rows import Certificates

IMAGES = torch.tensor([[0.5, 0.25], [0.5, 0.375], [0.25, 0.5]])
EPS = 0.0625


def network() -> nn.Module:
    """The class of the larger entry."""
    linear = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2))
    return nn.Sequential(linear).eval()


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return certify(network(), IMAGES, torch.tensor([0, 0, 1]), eps=str(EPS), methods=("pgd", "crown"))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("a.pth", ["adv_complete"]),
        ("a.pt", ["apgd-ce", "square"]),
        ("tensor.pt", ["images"]),
        ("a.npz", ["x_adv"]),
        ("a.npy", ["images"]),
    ],
)
def test_files_as_they_are_saved(name: str, keys: list[str], tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, IMAGES.numpy())
    elif name == "a.npz":
        np.savez(path, x_adv=IMAGES.double().numpy(), y=np.arange(3))
    elif name == "tensor.pt":
        torch.save(IMAGES, path)
    else:
        torch.save({"note": 1, "labels": torch.arange(3), **{key: IMAGES for key in keys}}, path)
    found = read_adversarial(path)
    assert list(found) == keys and all(torch.equal(value, IMAGES) for value in found.values())


def test_files_of_other_kinds(tmp_path: Path) -> None:
    torch.save({"labels": torch.arange(3)}, tmp_path / "a.pt")
    (tmp_path / "b.pth").write_bytes(b"nothing")
    for name, said in (
        ("a.pt", "no float images"),
        ("b.pth", "is not a file of adversarial"),
        ("c.pt", "no such file"),
    ):
        with pytest.raises(InputError, match=said):
            read_adversarial(tmp_path / name)


def test_images_within_the_proved_radius_that_fool_are_contradictions(certificates: Certificates) -> None:
    honest = IMAGES + torch.tensor([[-0.0625, 0.0625], [-0.0625, 0.0625], [0.0625, -0.0625]])
    honest[1] += torch.tensor([-0.001, 0.001])
    found = compare(certificates, network(), IMAGES, {"apgd": honest})
    assert not found.contradictions
    assert any("0 of 3 images within eps" in line for line in found.lines), found.lines
    forged = IMAGES.clone()
    forged[1] = torch.tensor([0.46, 0.46 + 1e-6])
    certificates["crown"].columns["radius"][1] = 0.25
    try:
        found = compare(certificates, network(), IMAGES, {"apgd": forged})
    finally:
        certificates["crown"].columns["radius"][1] = 0.06
    assert len(found.contradictions) == 1 and "crown, sample 1: certified to 0.25" in found.contradictions[0]
    assert "gets class 1" in found.contradictions[0]


def test_what_the_file_says_about_fooled_images_is_counted(certificates: Certificates) -> None:
    attacked = IMAGES.clone()
    attacked[1] = torch.tensor([0.4375, 0.4375 + 1e-6])  # at distance 0.0625 + 1e-6: outside
    attacked[0] = torch.tensor([2.0, 3.0])  # outside of the image box
    found = compare(certificates, network(), IMAGES, {"square": attacked})
    assert not found.contradictions and all("0 of 3" in line for line in found.lines)


def test_other_samples_are_refused(certificates: Certificates) -> None:
    with pytest.raises(InputError, match="same samples in the same order"):
        compare(certificates, network(), IMAGES, {"adv": IMAGES[:2]})
