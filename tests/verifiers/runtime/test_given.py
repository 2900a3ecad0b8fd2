"""Data as people have them in Python: each form gives the same images and classes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.errors import InputError
from verifiers.core.reporter import Reporter
from verifiers.runtime import given
from verifiers.runtime.classes import disagreement, out_of_range
from verifiers.runtime.given import Items, labelled
from verifiers.runtime.samples import validate

COUNT = 12
BYTES = torch.randint(0, 256, (COUNT, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
X, Y = BYTES.float() / 255, torch.arange(COUNT) % 4
LAST = BYTES.permute(0, 2, 3, 1).numpy()


class Listed(Dataset[Any]):
    """A data set of entries."""

    def __init__(self, entries: list[Any]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, row: int) -> Any:
        return self.entries[row]


class Streamed(IterableDataset[Any]):
    """A data set that can be read in order alone."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y.tolist(), strict=True))


class Flipping(Listed):
    """A data set with a random transform."""

    def __getitem__(self, row: int) -> Any:
        image, label = self.entries[row]
        return torch.rand(()) * image, label


def pairs(images: Any) -> Listed:
    """A data set of (image, label)."""
    return Listed(list(zip(images, Y.tolist(), strict=True)))


def halves(entries: list[Any]) -> tuple[Tensor, Tensor]:
    """Collate a batch in one's own way."""
    return torch.stack([x for x, _ in entries]), torch.tensor([y for _, y in entries])


FORMS: dict[str, Any] = {
    "tensors": (X, Y),
    "a list of two": [X, Y],
    "byte tensors": (BYTES, Y),
    "arrays": (X.numpy(), Y.numpy()),
    "byte arrays": (BYTES.numpy(), Y.numpy()),
    "lists of tensors": (list(X), Y.tolist()),
    "lists of arrays": (list(X.numpy()), list(Y.numpy())),
    "nested lists": (X.tolist(), Y.tolist()),
    "labels in a column": (X, Y[:, None]),
    "labels as floats": (X, Y.float()),
    "one-hot labels": (X, nn.functional.one_hot(Y)),
    "one-hot floats": (X, nn.functional.one_hot(Y).double()),
    "arrays with turned axes": (LAST.transpose(0, 3, 1, 2), Y.numpy()),
    "16-bit arrays": (BYTES.numpy().astype(np.uint16) * 257, Y),
    "TensorDataset": TensorDataset(X, Y),
    "TensorDataset of bytes": TensorDataset(BYTES, Y),
    "Dataset of tensors": pairs(X),
    "Dataset of byte tensors": pairs(BYTES),
    "Dataset of arrays, channels last": pairs(LAST),
    "Dataset of arrays, channels first": pairs(BYTES.numpy()),
    "Dataset of PIL images": pairs([Image.fromarray(image) for image in LAST]),
    "Dataset of dictionaries": Listed([{"image": x, "label": y} for x, y in zip(X, Y, strict=True)]),
    "Dataset of dictionaries of vision models": Listed(
        [{"pixel_values": x, "labels": int(y)} for x, y in zip(X, Y, strict=True)]
    ),
    "Dataset with more in an item": Listed([(x, int(y), "name") for x, y in zip(X, Y, strict=True)]),
    "a list of pairs": list(zip(X, Y.tolist(), strict=True)),
    "Subset": Subset(Listed(list(zip([*X, *X], [*Y.tolist(), *Y.tolist()], strict=True))), range(COUNT)),
    "loader": DataLoader(pairs(X), batch_size=5),
    "shuffled loader": DataLoader(pairs(X), batch_size=5, shuffle=True, drop_last=True),
    "loader of one image at a time": DataLoader(pairs(X), batch_size=None),
    "loader with own batches": DataLoader(
        pairs(X), batch_sampler=BatchSampler(SequentialSampler(range(COUNT)), 5, drop_last=False)
    ),
    "loader with own collation": DataLoader(pairs(X), batch_size=5, collate_fn=halves),
    "stream": Streamed(),
    "loader of a stream": DataLoader(Streamed(), batch_size=5),
    "loader of a tensor data set": DataLoader(TensorDataset(BYTES, Y), batch_size=4, shuffle=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images_and_classes(form: str) -> None:
    before = torch.get_rng_state()
    images, labels = labelled(FORMS[form])
    assert torch.equal(torch.get_rng_state(), before), "torch's random numbers must not depend on how data are given"
    assert images.dtype == torch.float32 and torch.allclose(
        images, X, rtol=0, atol=1e-7 if form.startswith("16-bit") else 0
    ), form
    assert labels.dtype == torch.int64 and torch.equal(labels, Y), form


def test_a_sampler_of_a_subset_gives_that_subset_in_the_order_of_the_data() -> None:
    images, labels = labelled(DataLoader(pairs(X), batch_size=2, sampler=SubsetRandomSampler([7, 2, 5])))
    assert torch.equal(images, X[[2, 5, 7]]) and labels.tolist() == [2, 1, 3]


def test_grey_and_deep_pictures_of_a_data_set_keep_their_pixels() -> None:
    grey = [Image.fromarray(np.full((4, 4), 51, np.uint8)), Image.fromarray(np.full((4, 4), 13107, np.uint16))]
    images, _ = labelled(Listed([(grey[0], 0), (grey[1], 1), (Image.new("1", (4, 4)), 0)]))
    assert images.shape == (3, 1, 4, 4)
    assert images[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.2, 0.0])


def test_large_data_sets_are_read_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "IN_MEMORY", 100)
    images, labels = labelled(pairs(BYTES))
    assert isinstance(images, Items) and len(images) == COUNT
    assert torch.equal(images[torch.tensor([3, 3, 0])], X[[3, 3, 0]]) and torch.equal(labels, Y)


def test_random_data_are_refused_to_certify_and_read_anew_to_train() -> None:
    flipping = Flipping(list(zip(X, Y.tolist(), strict=True)))
    with pytest.raises(InputError, match="another image each time it is read"):
        labelled(flipping)
    images, labels = labelled(flipping, random=True)
    rows = torch.arange(4)
    assert torch.equal(labels, Y) and not torch.equal(images[rows], images[rows]), "the transform must stay random"


class Broken(Listed):
    """A data set that fails."""

    def __getitem__(self, row: int) -> Any:
        raise KeyError("lost")


REFUSED: dict[str, tuple[Any, str]] = {
    "an item without a label": (Listed([(X[0],)] * 3), r"must be \(image, label\), got tuple"),
    "a tensor alone": (Listed(list(X)), r"must be \(image, label\), got Tensor"),
    "a dictionary without a label": (Listed([{"image": X[0], "id": 3}] * 3), "have image, id: they need an image and"),
    "images of several shapes": (
        Listed([(X[0], 0), (X[0, :, :4], 1)]),
        r"several shapes, like \(3, 4, 4\) and \(3, 5, 4\): resize",
    ),
    "words as labels": (Listed([(X[0], "cat")] * 3), "labels must be tensors or arrays of numbers"),
    "words as images": (Listed([("cat.png", 0)] * 3), "images of the data set must be tensors or arrays"),
    "a failing data set": (Broken([0, 0, 0]), "item 0 of the data set cannot be read: 'lost'"),
    "no items": (Listed([]), "at least one: got 0 and 0"),
    "fewer labels": ((X, Y[:3]), "as many images as labels and at least one: got 12 and 3"),
    "bytes of 0 and 1": ((torch.eye(COUNT, dtype=torch.uint8), Y), "bytes that are 0 or 1 alone: save it as bool"),
    "items of bytes of 0 and 1": (
        Listed([(row, 0) for row in np.eye(COUNT, dtype=np.uint8)[:, None]]),
        "the brightest pixel of the data set is 1/255",
    ),
    "12 bits": ((BYTES.numpy().astype(np.uint16) * 16, Y), "uint16 from 0 to 40..: divide by the largest possible"),
    "shares": ((X, torch.full((COUNT, 4), 0.25)), "rows that are not one-hot"),
    "a number": ((3, 4), "images must be one per row"),
    "an empty stream": (DataLoader(Listed([]), batch_size=2, collate_fn=halves), "gives no images with labels"),
    "a path": ("images/", r"got str: give \(images, labels\), or a torch Dataset or DataLoader"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_gives_no_images_with_classes_is_refused(case: str) -> None:
    data, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        labelled(data)


class Linear4(nn.Module):
    """A linear network for four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(60, 4)
        nn.init.normal_(self.last.weight, generator=torch.Generator().manual_seed(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1))


@pytest.mark.slow
def test_certify_takes_a_data_set_a_loader_and_arrays_alike() -> None:
    network = Linear4()
    question = CertifyConfig(eps="1/255", methods=("ibp",))
    expected = certify(network, (X, Y), question)
    for data in (FORMS["Dataset of PIL images"], FORMS["shuffled loader"], FORMS["byte arrays"]):
        found = certify(network, data, question)
        assert found.attributes["data_sha256"] == expected.attributes["data_sha256"]
        assert np.array_equal(found["ibp"]["radius"], expected["ibp"]["radius"])


def test_channels_last_and_labels_from_one_are_named_as_the_likely_mistake() -> None:
    with pytest.raises(InputError, match=r"\(5, 4, 3\).*channels last, give images.permute\(0, 3, 1, 2\)"):
        validate(nn.Conv2d(3, 2, 3), (X.permute(0, 2, 3, 1), Y), Reporter())
    with pytest.raises(
        InputError, match="labels run from 1 to 4, the network has 4 classes: do the labels count from 1"
    ):
        validate(Linear4(), (X, Y + 1), Reporter())
    assert out_of_range(0, 3, 4, "it") is None and out_of_range(0, 4, 4, "it") == (
        "labels run from 0 to 4, it has 4 classes"
    )


def test_classes_in_another_order_are_told_from_guessing() -> None:
    labels, generator = torch.arange(200) % 10, torch.Generator().manual_seed(0)
    moved = (labels + 3) % 10
    said = disagreement(moved, labels, 10, 0)
    assert said == (
        "0.0% is near chance for 10 classes: are the classes in another order? In the network's own order 100.0% are "
        "right: class 0 of the data is its class 3"
    )
    guessed = torch.randint(0, 10, (200,), generator=generator)
    said = disagreement(guessed, labels, 10, int((guessed == labels).sum()))
    assert said is not None and said.endswith("near chance for 10 classes: are these the right weights?")
    constant = torch.zeros(200, dtype=torch.long)
    assert "right weights" in str(disagreement(constant, labels, 10, 20))
    assert disagreement(labels, labels, 10, 200) is None
    assert disagreement(moved[:19], labels[:19], 10, 0) is None, "a few samples show nothing"
