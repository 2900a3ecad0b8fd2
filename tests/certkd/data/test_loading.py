"""Batches of an epoch: the same whoever loads them, transformed by what is keyed to each image, from whole files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from certkd.config.settings import DataConfig, Recipe
from certkd.data import sources
from certkd.data.loading import OF_IMAGES, Batches, loaded, transform
from certkd.data.splits import Split, TensorImages, original
from certkd.objectives import Standard
from tests.training import train
from verifiers.core.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes of pictures of several sizes: a bright square in one corner, by the class."""
    chance = np.random.default_rng(0)
    for number in range(24):
        split, name = ("train" if number < 16 else "val"), f"class{number % 2}"
        height, width = 20 + number % 5, 30 - number % 3
        pixels = chance.integers(0, 80, (height, width, 3), dtype=np.uint8)
        pixels[: height // 2, : width // 2] += np.uint8(150 * (number % 2))
        place = tmp_path / split / name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path


def split_of(folder: Path, size: int = 12) -> Split:
    return sources.load(DataConfig(name=str(folder), image_size=size)).splits["train"]


def in_memory(count: int = 20) -> Split:
    x = torch.rand(count, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    return Split(TensorImages(x), torch.arange(count) % 2, torch.arange(count) + 100)


def all_of(batches: Batches, loaders: int = 0) -> list[torch.Tensor]:
    found = [part for batch in loaded(batches, loaders, CPU) for part in batch]
    assert len(found) == 3 * len(batches)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["none", *OF_IMAGES])
def test_processes_load_the_same_batches_in_their_order(augment: str, folders: Path) -> None:
    split = split_of(folders)
    parts = list(torch.randperm(len(split), generator=torch.Generator().manual_seed(3)).split(3))
    batches = Batches(split, parts, augment, seed=1, epoch=2)
    alone = all_of(batches)
    before = torch.get_rng_state()
    ahead = all_of(batches, loaders=2)
    assert torch.equal(torch.get_rng_state(), before), "random numbers of the training are not touched"
    assert all(torch.equal(a, b) for a, b in zip(alone, ahead, strict=True))
    assert torch.equal(torch.cat(alone[::3]), torch.cat(parts)) and torch.equal(alone[2], split.labels[parts[0]])


@pytest.mark.parametrize("augment", OF_IMAGES)
def test_what_is_drawn_depends_on_seed_epoch_and_image_alone(augment: str) -> None:
    split, whole = in_memory(), [torch.arange(20)]
    before = torch.get_rng_state()
    (_, images, labels) = all_of(Batches(split, whole, augment, seed=1, epoch=2))
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(labels, split.labels)
    assert images.shape == (20, 3, 10, 10) and images.min() >= 0 and images.max() <= 1
    again = all_of(Batches(split, [torch.tensor([7]), torch.tensor([3, 7])], augment, seed=1, epoch=2))
    assert torch.equal(again[1][0], images[7]) and torch.equal(again[4], images[[3, 7]])
    for seed, epoch in ((1, 3), (2, 2)):
        other = all_of(Batches(split, whole, augment, seed=seed, epoch=epoch))[1]
        assert not torch.equal(other, images)
    moved = Split(split.images, split.labels, split.indices + 1)
    assert not torch.equal(all_of(Batches(moved, whole, augment, seed=1, epoch=2))[1], images)


def test_the_transform_is_that_of_torchvision_on_the_whole_file(folders: Path) -> None:
    split = split_of(folders)
    (_, images, _) = all_of(Batches(split, [torch.arange(4)], "resized-crop", seed=5, epoch=0))
    for row in range(4):
        whole = original(split.images, row)
        assert whole.shape[1:] != (12, 12), "its own size"
        drawn = np.random.SeedSequence((5, 0, 7, int(split.indices[row]))).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(drawn >> np.uint64(1)))
        assert torch.equal(images[row], transform("resized-crop", (12, 12))(whole).clamp(0, 1))


def test_without_an_augmentation_images_are_those_of_the_data_set(folders: Path) -> None:
    split = split_of(folders)
    (rows, images, labels) = all_of(Batches(split, [torch.tensor([5, 2])]))
    assert torch.equal(images, split.images[rows]) and torch.equal(labels, split.labels[rows])
    kept = split.take(torch.tensor([4, 1, 0]))
    assert torch.equal(original(kept.images, 1), original(split.images, 1)), "a part of a split has its own order"


@pytest.mark.slow
@pytest.mark.parametrize("loaders", [0, 2])
def test_an_image_that_cannot_be_read_is_one_line(loaders: int, folders: Path) -> None:
    split = split_of(folders)
    (folders / "train" / "class1" / "3.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"3\.png") as refusal:
        all_of(Batches(split, list(torch.arange(len(split)).split(4))), loaders)
    assert "\n" not in str(refusal.value) and "Traceback" not in str(refusal.value)


@pytest.mark.slow
def test_a_training_does_not_notice_who_loads(folders: Path) -> None:
    found = []
    for loaders in (0, 2):
        torch.manual_seed(0)
        student = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(3 * 12 * 12, 2))
        recipe = Recipe(epochs=2, batch_size=4, augment="rand-augment", loaders=loaders)
        train(student, split_of(folders), Standard(), recipe=recipe)
        found.append(student.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("augment", "shape", "words"),
    [
        ("rand-augment", (2, 6, 6), "augment rand-augment is for 1 or 3 channels, not 2: use resized-crop"),
        ("resized-crop", (3, 64), "augment resized-crop is for pictures .* not \\(3, 64\\): use none"),
        ("crop-flip", (64,), "augment crop-flip is for pictures"),
    ],
)
def test_what_cannot_be_augmented_is_refused_before_anything_is_written(
    augment: str, shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    x = torch.rand(8, *shape)
    student = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 2))
    recipe = Recipe(epochs=1, batch_size=4, augment=augment)
    with pytest.raises(InputError, match=words):
        train(student, (x, torch.arange(8) % 2), Standard(), recipe=recipe, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
