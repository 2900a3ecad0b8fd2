"""Images of samples and counterexamples as small PNGs inside the page."""

import base64
import io
from collections.abc import Iterable, Mapping

import numpy as np

#: The thumbnails of a page take at most this many bytes, counterexamples and disagreements as many together; and
#: counterexamples are of at most this many samples.
BYTES, COUNTEREXAMPLES = 1_200_000, 60


def picture(image: np.ndarray) -> str:
    """Write an image of channels, height and width in [0, 1] as a PNG in a data URI."""
    from PIL import Image

    pixels = np.clip(np.nan_to_num(image) * 255, 0, 255).round().astype("uint8")
    made = (
        Image.fromarray(pixels[0], "L") if len(pixels) == 1 else Image.fromarray(pixels[:3].transpose(1, 2, 0), "RGB")
    )
    made.thumbnail((96, 96))
    out = io.BytesIO()
    made.save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def difference(image: np.ndarray, point: np.ndarray) -> str:
    """Draw what a counterexample adds, amplified to the whole range; grey is no change."""
    change = point.astype(float) - image
    largest = float(np.abs(change).max())
    return picture(0.5 + change / (2 * largest) if largest > 0 else np.full_like(change, 0.5))


def is_drawn(shape: tuple[int, ...]) -> bool:
    """Return whether images of a shape can be drawn: one or three channels."""
    return len(shape) == 3 and shape[0] in (1, 3)


def thumbnails(images: Mapping[int, np.ndarray], rows: Iterable[int], budget: int = BYTES) -> dict[int, str]:
    """Draw the images of rows in their order, as many as fit."""
    made: dict[int, str] = {}
    for row in rows:
        if row in images and is_drawn(images[row].shape):
            drawn = picture(images[row])
            budget -= len(drawn) + 20
            if budget < 0:
                break
            made[row] = drawn
    return made
