"""Noise and votes: keyed, whole in the tails, and the same whatever the batch."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from verifiers.smoothing.sampling import BLOCK, Draw, Purpose, Voter, _up, noise_block
from verifiers.smoothing.statistics import Noise

SHAPE = (2, 5, 5)


class Recorder(nn.Module):
    """Keeps what it was shown; votes by the brightest pixel of four."""

    def __init__(self, seen: list[torch.Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def __deepcopy__(self, memo: dict[int, object]) -> "Recorder":
        return Recorder(self.seen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.clone())
        return x.flatten(1)[:, :4]


def _block(copies: int = BLOCK, **changed: int) -> np.ndarray:
    key = {"seed": 3, "index": 5, "purpose": Purpose.ESTIMATION, "block": 2, **changed}
    return noise_block(
        key["seed"], key["index"], Purpose(key["purpose"]), key["block"], (copies, *SHAPE), Noise.GAUSSIAN
    )


def test_every_part_of_the_key_changes_the_noise() -> None:
    same = _block()
    assert np.array_equal(same, _block())
    for changed in ({"seed": 4}, {"index": 6}, {"purpose": int(Purpose.SELECTION)}, {"block": 3}):
        other = _block(**changed)
        assert not (same == other).any(), f"{changed} left values as they were"
        assert abs(np.corrcoef(same.ravel(), other.ravel())[0, 1]) < 0.1


def test_a_shorter_draw_is_the_start_of_a_longer_one() -> None:
    assert np.array_equal(_block(7), _block()[:7]) and len(_block(7)) == 7


def test_uniform_noise_has_the_deviation_and_the_ends_it_should() -> None:
    noise = np.concatenate([noise_block(0, i, Purpose.ESTIMATION, 0, (BLOCK, 1000), Noise.UNIFORM) for i in range(20)])
    assert noise.std() == pytest.approx(1, abs=0.003) and abs(noise.mean()) < 0.003
    assert (
        np.abs(noise).max() <= 3**0.5 * (1 + 1e-6)
        and _up(0.1) >= 0.1
        and _up(0.12) >= 0.12
        and np.abs(noise).max() > 1.73
    )


def test_normal_noise_has_its_moments() -> None:
    noise = np.concatenate([_block(index=i) for i in range(300)]).astype(float).ravel()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        error = (noise**power).std() / len(noise) ** 0.5
        assert abs((noise**power).mean() - moment) < 5 * error, f"moment {power}"


@pytest.mark.slow
def test_normal_noise_has_its_tail() -> None:
    draws, beyond, largest = 0, 0, 0.0
    for index in range(40):
        size = np.abs(noise_block(1, index, Purpose.ESTIMATION, 0, (BLOCK, 200_000), Noise.GAUSSIAN))
        draws, beyond, largest = draws + size.size, beyond + int((size > 5).sum()), max(largest, float(size.max()))
    expected = 2 * norm.sf(5) * draws
    assert abs(beyond - expected) < 5 * expected**0.5, f"{beyond} beyond 5, {expected:.0f} are due"
    assert largest > 5.768, f"the largest of {draws} is {largest}: float32 normals of torch end at 5.768"


def test_copies_are_image_plus_sigma_times_noise_and_not_clamped() -> None:
    seen: list[torch.Tensor] = []
    x = torch.rand(1, *SHAPE)
    draws = [Draw(0, 5, 100, 150)]
    list(Voter(Recorder(seen), Noise.GAUSSIAN, 0.5, 3).labels(x, draws, Purpose.ESTIMATION))
    noise = np.concatenate([_block(block=1)[100 - BLOCK :], _block(22)]).reshape(50, 5, 5, 2).transpose(0, 3, 1, 2)
    assert torch.allclose(seen[0][:50], x + 0.5 * torch.from_numpy(noise), atol=1e-6)
    assert float(seen[0].max()) > 1 and float(seen[0].min()) < 0


def test_two_networks_see_the_same_copies() -> None:
    seen: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    voter = Voter(Recorder(seen[0]), Noise.GAUSSIAN, 0.5, 3, other=Recorder(seen[1]))
    tables = voter.histogram(torch.rand(2, *SHAPE), [Draw(0, 5, 0, 90), Draw(1, 6, 3, 40)], Purpose.ESTIMATION, 4)
    one, other, same = tables
    assert torch.equal(one, other) and torch.equal(one, same) and one.sum(1).tolist() == [90, 37]
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_copies_that_both_networks_give_one_class_are_counted() -> None:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(50, 4)) for _ in range(2)]
    x, draws = torch.rand(2, *SHAPE), [Draw(0, 0, 0, 100), Draw(1, 1, 0, 150)]
    voter = Voter(networks[0], Noise.GAUSSIAN, 1.0, 3, other=networks[1])
    literal = torch.zeros(3, 2, 4, dtype=torch.int64)
    for positions, (one, other) in voter.labels(x, draws, Purpose.ESTIMATION):
        for i, a, b in zip(positions.tolist(), one.tolist(), other.tolist(), strict=True):
            literal[0, i, a] += 1
            literal[1, i, b] += 1
            literal[2, i, a] += a == b
    assert torch.equal(voter.histogram(x, draws, Purpose.ESTIMATION, 4), literal)
    assert 0 < int(literal[2].sum()) < 250


def test_a_network_that_reshapes_with_view_has_the_same_votes() -> None:
    class Viewed(nn.Module):
        def __init__(self, view: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.convolution, self.last, self.view = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(75, 4), view

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.convolution(x)
            return self.last(y.view(len(y), -1) if self.view else y.flatten(1))

    x = torch.rand(1, *SHAPE)
    one, other = (
        Voter(Viewed(view), Noise.GAUSSIAN, 1.0, 3).histogram(x, [Draw(0, 0, 0, 300)], Purpose.ESTIMATION, 4)
        for view in (True, False)
    )
    assert int((one - other).abs().sum()) <= 4, "rounding moves few votes if any"
    assert int(one.sum()) == 300


def test_a_network_that_fails_says_why() -> None:
    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no such thing")

    voter = Voter(Failing(), Noise.GAUSSIAN, 1.0, 3)
    with pytest.raises(RuntimeError, match="no such thing"):
        voter.histogram(torch.rand(1, *SHAPE), [Draw(0, 0, 0, 9)], Purpose.ESTIMATION, 4)


def test_votes_do_not_depend_on_how_draws_are_put_together() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 4))
    x, voter = torch.rand(3, *SHAPE), Voter(network, Noise.GAUSSIAN, 1.0, 3)
    whole = voter.histogram(x, [Draw(i, i, 0, 500) for i in range(3)], Purpose.ESTIMATION, 4)[0]
    alone = [voter.histogram(x[i : i + 1], [Draw(0, i, 0, 500)], Purpose.ESTIMATION, 4)[0][0] for i in range(3)]
    parts = [
        voter.histogram(x[:1], [Draw(0, 0, first, last)], Purpose.ESTIMATION, 4)[0][0]
        for first, last in ((0, 1), (1, 63), (63, 64), (64, 200), (200, 500))
    ]
    assert torch.equal(whole, torch.stack(alone)) and torch.equal(whole[0], torch.stack(parts).sum(0))
    assert bool((whole.amin(1) > 0).all()), "a vote that is not split tells little"


def test_logits_that_are_not_finite_vote_for_no_class() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = x.flatten(1)[:, :3]
            return torch.where(logits[:, :1] > 0.5, float("nan"), logits)

    x = torch.full((1, *SHAPE), 0.5)
    votes = Voter(Broken(), Noise.GAUSSIAN, 0.3, 0).histogram(x, [Draw(0, 0, 0, 400)], Purpose.ESTIMATION, 3)[0]
    assert 100 < int(votes.sum()) < 300, f"about half of 400 copies are broken, {int(votes.sum())} voted"
