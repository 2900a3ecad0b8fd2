"""Samples and batches: what is refused before anything is certified, and parts of a batch that stay aligned."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from verifiers.core.errors import InputError
from verifiers.core.reporter import Reporter
from verifiers.core.status import Status
from verifiers.runtime.alone import probes
from verifiers.runtime.certifier import Answering, Batch, Certifier, as_columns
from verifiers.runtime.samples import PIXEL_TOLERANCE, Data, as_data, check_pixels, device_of, first_images, validate


class Fixed(nn.Module):
    """Logits that a function of the image gives."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        bright = self.weight * x.flatten(1).mean(1)
        return torch.stack([bright, 1 - bright], 1)


class Listener(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.accuracy, self.warnings = [], []

    def clean(self, accuracy: float, samples: int) -> None:
        self.accuracy.append((accuracy, samples))

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def pictures(count: int = 30) -> tuple[Tensor, Tensor]:
    """Images of one brightness each, and their classes: 0 is bright."""
    x = torch.linspace(0.01, 0.99, count)[:, None].expand(count, 4)
    return x, (x.mean(1) < 0.5).long()


def test_samples_know_their_predictions_and_indices() -> None:
    (x, y), listener = pictures(), Listener()
    samples = validate(
        Fixed(), Data(x, y.clone().index_fill_(0, torch.tensor([0, 29]), 0), torch.arange(30) + 7), listener
    )
    assert samples.classes == 2 and samples.indices.tolist() == list(range(7, 37))
    assert torch.equal(samples.predicted, y) and samples.correct.sum() == 29
    assert listener.accuracy == [(pytest.approx(29 / 30), 30)] and not listener.warnings
    assert torch.equal(samples.batch(np.array([3, 1]), torch.device("cpu")), x[[3, 1]])


def test_guessing_is_warned_of() -> None:
    (x, y), listener = pictures(), Listener()
    validate(Fixed(), (x, 1 - y), listener)
    assert len(listener.warnings) == 1 and "is near chance for 2 classes" in listener.warnings[0]


def test_logits_that_are_not_numbers_predict_nothing() -> None:
    x, y = pictures()
    samples = validate(Fixed(float("inf")), (x, torch.zeros_like(y)), Reporter())
    assert not samples.finite.any() and not samples.correct.any()


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.rand(2, 4), torch.zeros(3).long(), "need as many images as labels and at least one: got 2 and 3"),
        (torch.rand(0, 4), torch.zeros(0).long(), "got 0 and 0"),
        (torch.zeros(2, 4).long(), torch.zeros(2).long(), "got torch.int64: divide bytes by 255"),
        (torch.full((2, 4), 1.5), torch.zeros(2).long(), "got values from 1.5 to 1.5: undo the normalisation"),
        (torch.full((2, 4), 200.0), torch.zeros(2).long(), "got values from 200 to 200: divide by 255"),
        (torch.full((2, 4), float("nan")), torch.zeros(2).long(), "images must be in"),
        (torch.rand(2, 4), torch.tensor([0, 2]), "labels run from 0 to 2, the network has 2 classes"),
        (torch.rand(2, 4), torch.tensor([-1, 0]), "labels run from -1 to 0"),
    ],
)
def test_wrong_samples_are_refused_in_one_line(x: Tensor, y: Tensor, words: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(Fixed(), (x, y), Reporter())
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_rounding_of_an_image_pipeline_is_forgiven() -> None:
    check_pixels(torch.tensor([-PIXEL_TOLERANCE / 2, 1 + PIXEL_TOLERANCE / 2]))
    for beyond in (-2 * PIXEL_TOLERANCE, 1 + 2 * PIXEL_TOLERANCE):
        with pytest.raises(InputError, match="undo the normalisation"):
            check_pixels(torch.tensor([beyond, 0.5]))


def test_the_first_images_are_repeated_where_there_is_one() -> None:
    x, y = pictures(1)
    samples = validate(Fixed(), (x, y), Reporter())
    assert torch.equal(first_images(samples, Fixed()), x.repeat(2, 1))
    assert device_of(Fixed()) == device_of(nn.Flatten()) == torch.device("cpu")


def test_a_part_of_a_batch_has_its_own_rows() -> None:
    asked: list[int] = []

    def clean() -> Tensor:
        asked.append(1)
        return torch.tensor([1.0, 2.0, 3.0])

    batch = Batch(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0]), torch.tensor([7, 8, 9]), 2, clean)
    part = batch.take(torch.tensor([2, 0]))
    assert not asked, "margins are computed before anybody asks"
    assert len(part) == 2 and part.rows.tolist() == [0, 1] and part.indices.tolist() == [9, 7]
    assert part.x.tolist() == [[4.0, 5.0], [0.0, 1.0]] and part.predicted.tolist() == [0, 0]
    assert part.margin.tolist() == [3.0, 1.0]


def test_a_function_that_answers_a_batch_is_a_certifier() -> None:
    def answer(batch: Batch) -> dict[str, np.ndarray]:
        return as_columns(torch.full((len(batch),), int(Status.CERTIFIED)), {"radius": batch.predicted.double()})

    certifier = Answering(answer, batch_size=4)
    assert isinstance(certifier, Certifier) and certifier.notes == {}
    batch = Batch(torch.rand(2, 3), torch.tensor([1, 0]), torch.arange(2), 2, lambda: torch.ones(2))
    (found,) = certifier(batch)
    assert found.rows.tolist() == [0, 1] and found.columns["status"].dtype == np.uint8
    assert found.columns["radius"].tolist() == [1.0, 0.0]


def test_arrays_and_lists_become_tensors() -> None:
    images, labels = pictures()
    given = as_data((images.numpy(), labels.tolist()))
    assert torch.equal(given.images, images) and torch.equal(given.labels, labels)
    assert as_data(given) is given


@pytest.mark.parametrize("data", [torch.zeros(3, 2), {"x": 1}, (torch.zeros(1),), "digits"], ids=repr)
def test_data_that_is_no_pair_is_refused(data: object) -> None:
    with pytest.raises(InputError, match=r"data must be a pair of images and labels, got \w+: give \(images, labels\)"):
        as_data(data)


def test_images_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="must be tensors or arrays of numbers"):
        as_data((["a", "b"], [0, 1]))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_network_that_runs_on_few_images_is_compared_on_few(error: Exception) -> None:
    class Tight(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 20:
                raise error
            return super().forward(x)

    class Mixing(Tight):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) - x.mean()

    x, y = pictures(4)
    images = probes(Tight(), x)
    assert 2 <= len(images) <= 20 and torch.equal(images[0], x[0])
    assert len(validate(Tight(), Data(x, y), Reporter()).predicted) == 4
    with pytest.raises(InputError, match="mixes the images of a batch"):
        validate(Mixing(), Data(x, y), Reporter())
