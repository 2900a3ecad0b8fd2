"""Fingerprints: equal for equal values however they are held, different for everything that rows depend on."""

import copy
import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from verifiers.core.columns import indices_sha256
from verifiers.runtime.fingerprint import DataFingerprint, structure_sha256, weights_sha256


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.LeakyReLU(0.1))


def test_weights_are_hashed_as_written_here() -> None:
    weights = {"b": torch.tensor([[1.0, -2.0]]), "a": torch.tensor([], dtype=torch.int64)}
    literal = b"a|int64|(0,)|" + b"b|float32|(1, 2)|" + np.array([1.0, -2.0], "<f4").tobytes()
    assert weights_sha256(weights) == hashlib.sha256(literal).hexdigest()


def test_the_same_weights_have_the_same_hash_however_they_are_held() -> None:
    one = network()
    known = weights_sha256(one)
    assert weights_sha256(one.state_dict()) == known == weights_sha256(dict(reversed(one.state_dict().items())))
    strided = {
        name: value.mT.contiguous().mT if value.dim() == 2 else value for name, value in one.state_dict().items()
    }
    assert not strided["0.weight"].is_contiguous() and weights_sha256(strided) == known
    assert weights_sha256(one.train().requires_grad_(False)) == known


CHANGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "one bit": lambda state: state["0.bias"].view(torch.int32).__ixor__(torch.tensor([1, 0, 0], dtype=torch.int32)),
    "a sign of zero": lambda state: state["1.bias"].neg_(),
    "a dtype": lambda state: state.update({"0.bias": state["0.bias"].view(torch.int32)}),
    "a shape": lambda state: state.update({"0.bias": state["0.bias"][None]}),
    "a name": lambda state: state.update({"2.bias": state.pop("0.bias")}),
    "statistics": lambda state: state["1.running_mean"].add_(1e-7),
    "a tensor less": lambda state: state.pop("1.num_batches_tracked"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_weights_shows(change: str) -> None:
    state = copy.deepcopy(network().state_dict())
    CHANGES[change](state)
    assert weights_sha256(state) != weights_sha256(network()), f"{change} does not show"


def test_the_structure_is_what_weights_leave_out() -> None:
    one, other = network(), network()
    other[2].negative_slope = 0.2
    assert weights_sha256(one) == weights_sha256(other) and structure_sha256(one) != structure_sha256(other)
    assert structure_sha256(one) == structure_sha256(network())
    for value, same in ((1.0, True), (2.0, False)):
        first, second = network(), network()
        first.register_buffer("mean", torch.tensor(1.0), persistent=False)
        second.register_buffer("mean", torch.tensor(value), persistent=False)
        assert (structure_sha256(first) == structure_sha256(second)) == same, "buffers that are not saved do not count"


def test_data_have_one_fingerprint_in_any_batches() -> None:
    images, labels = torch.rand(7, 1, 2, 3, generator=torch.Generator().manual_seed(0)), torch.arange(7)

    def fingerprint(images: Tensor, labels: Tensor, size: int) -> str:
        found = DataFingerprint()
        for start in range(0, len(labels), size):
            found.update(images[start : start + size], labels[start : start + size])
        return found.hexdigest()

    known = fingerprint(images, labels, 7)
    assert {fingerprint(images, labels, size) for size in (1, 2, 5)} == {known}
    assert fingerprint(images.double(), labels.int(), 3) == known, "the dtype that holds them counts"
    assert fingerprint(images.flip(0), labels, 7) != known != fingerprint(images, labels.flip(0), 7)
    assert fingerprint(images[:6], labels[:6], 7) != known != fingerprint(images + 1e-6, labels, 7)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        DataFingerprint().update(images, labels[:3])


def test_indices_count_in_their_order() -> None:
    assert indices_sha256(np.array([3, 1, 2])) == indices_sha256(np.array([3, 1, 2], dtype=np.int32))
    assert indices_sha256(np.array([3, 1, 2])) != indices_sha256(np.array([1, 2, 3]))
