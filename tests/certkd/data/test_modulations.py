"""Signals: power, noise, constellations, the converter's range, and that each depends on its own key alone."""

import numpy as np
import pytest
import torch

from certkd.config.settings import DataConfig, ModelConfig
from certkd.data import modulations, sources
from certkd.data.splits import DataSet
from certkd.networks.resolve import for_training
from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig


@pytest.fixture(scope="module")
def data() -> DataSet:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(modulations, "SIZES", {"train": 48, "validation": 24, "test": 24})
        return sources.load(DataConfig(name="modulations", seed=3))


def named(kind: str, count: int, seed: int = 0) -> list[np.ndarray]:
    """Signals of one modulation."""
    numbers = (modulations.MODULATIONS.index(kind) + len(modulations.MODULATIONS) * k for k in range(count))
    return [modulations.signal(seed, "train", number) for number in numbers]


def test_a_signal_depends_on_seed_split_and_number_alone(data: DataSet) -> None:
    for split, number in (("train", 40), ("test", 7)):
        alone = modulations.converted(modulations.signal(3, split, number))
        assert torch.equal(data.splits[split].images[torch.tensor([number])][0], torch.from_numpy(alone))
    keys = [(3, "train", 7), (4, "train", 7), (3, "test", 7), (3, "train", 31)]
    signals = [modulations.signal(*each) for each in keys]
    assert all(not np.array_equal(signals[0], other) for other in signals[1:])


def test_classes_and_shapes(data: DataSet) -> None:
    assert data.names == modulations.MODULATIONS and data.shape == (2, 64)
    for split in data.splits.values():
        counts = torch.bincount(split.labels, minlength=6)
        assert bool((counts == counts[0]).all()), "classes are not balanced"
    x = data.splits["train"].images[torch.arange(48)]
    assert float(x.min()) >= 0 and float(x.max()) <= 1
    steps = x.double() * 4095
    assert float((steps - steps.round()).abs().max()) < 1e-3, "not what a converter of 12 bits gives"


def test_an_l2_ball_is_a_ratio_of_powers(data: DataSet) -> None:
    x = data.splits["train"].images[torch.arange(48)].double()
    sent = 8 * x - 4
    torch.testing.assert_close(sent.square().sum((1, 2)), torch.full((48,), 64.0).double(), rtol=2e-3, atol=0)
    change = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    change *= 0.1 / change.flatten(1).norm(dim=1)[:, None, None]
    power = (8 * change).square().sum((1, 2)) / sent.square().sum((1, 2))
    torch.testing.assert_close(10 * power.log10(), torch.full((48,), -20.0).double(), rtol=1e-3, atol=0)


def test_what_is_beyond_the_range_is_cut_off() -> None:
    assert modulations.converted(np.array([9 - 9j])).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(("kind", "points"), [("BPSK", 2), ("QPSK", 4), ("8PSK", 8), ("16QAM", 16), ("64QAM", 64)])
def test_constellations_have_their_points_and_power_one(kind: str, points: int) -> None:
    drawn = modulations._points(kind, np.random.default_rng(0), 5000)
    different = np.unique(drawn.round(9))
    assert len(different) == points
    assert np.mean(np.abs(different) ** 2) == pytest.approx(1)
    nearest = min(abs(a - b) for a in different for b in different if a != b)
    side = np.sqrt(points)
    expected = 2 * np.sin(np.pi / points) if points < 16 else 2 / np.sqrt(2 * (side**2 - 1) / 3)
    assert nearest == pytest.approx(expected)


@pytest.mark.parametrize("kind", modulations.MODULATIONS)
def test_noise_has_the_ratio_that_is_stated(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for ratio in modulations.RATIOS:
        monkeypatch.setattr(modulations, "RATIOS", (ratio,))
        noisy = named(kind, 40)
        monkeypatch.setattr(modulations, "RATIOS", (300,))
        products = [np.vdot(s, r) / 64 for s, r in zip(named(kind, 40), noisy, strict=True)]
        share = np.mean([abs(p) ** 2 for p in products])  # of the power that is the signal's
        assert 10 * np.log10(share / (1 - share)) == pytest.approx(ratio, abs=1.0)


def test_gfsk_has_a_constant_envelope_and_turns_by_no_more_than_a_quarter_per_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(modulations, "RATIOS", (300,))
    for sent in named("GFSK", 6):
        np.testing.assert_allclose(np.abs(sent), 1, rtol=1e-6)
        turns = np.angle(sent[1:] / sent[:-1])
        assert np.abs(turns).max() <= np.pi / 2 / 4 + 1e-6 and np.abs(turns).max() > np.pi / 2 / 4 * 0.9


@pytest.mark.slow
def test_a_signal_network_is_certified_and_no_signal_of_the_ball_has_another_class(data: DataSet) -> None:
    model = for_training(ModelConfig(name="certkd:resnet", options={"width": 2}), data, seed=0).eval()
    x = data.splits["test"].images[torch.arange(4)]
    with torch.no_grad():
        y = model(x).argmax(1)
    rows = certify(model, (x, y), CertifyConfig(eps="0.02", norm="l2", methods=("crown",)))["crown"]
    assert rows.attributes["engine"] == "native" and bool((rows["radius"] > 0).all())
    draws = torch.Generator().manual_seed(0)
    for radius, image, label in zip(rows["radius"], x, y, strict=True):
        change = torch.randn((200, *image.shape), generator=draws)
        change *= 0.999 * radius / change.flatten(1).norm(dim=1)[:, None, None]
        with torch.no_grad():
            assert bool((model((image + change).clamp(0, 1)).argmax(1) == label).all())
