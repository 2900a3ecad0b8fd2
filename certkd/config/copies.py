"""Settings of compressed copies: pruned, low-rank and int8."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from verifiers.core.errors import InputError, quoted
from verifiers.core.quantities import parse_number
from verifiers.core.settings import Count, Positive, Strict


def _share(value: Any) -> Any:
    if isinstance(value, int | float) and not 0 < value < 1:
        raise ValueError(f"a share is between 0 and 1, got {value:g}: 80 % is 0.8")
    return value


def _rule(value: Any) -> str:
    text = str(value).strip()
    kind, _, number = ("ratio", "", text[:-1]) if text.endswith("x") else text.partition("=")
    try:
        given = float(parse_number(number)) if kind in ("ratio", "energy") else None
    except (InputError, OverflowError):
        given = 0.0
    good = {"ratio": given is not None and given > 1, "energy": given is not None and 0 < given <= 1}
    if not good.get(kind, text == "vbmf"):
        raise ValueError(
            f"ranks are a ratio of weights like 2x, a share like energy=0.95, or vbmf, got {quoted(value)}"
        )
    return text


class Prune(Strict):
    """Weights of least magnitude become 0, or channels are removed.

    Attributes:
        share: of the weights of all layers together, or of the channels of each layer.
        what: weights, which become 0, or channels, which are removed, so that the network is smaller.
    """

    kind: Literal["prune"] = "prune"
    share: Annotated[Positive, BeforeValidator(_share), Field(lt=1)] = 0.5
    what: Literal["weights", "channels"] = "weights"
    summary: ClassVar[str] = "weights of least magnitude set to 0, or channels removed"


class LowRank(Strict):
    """Each layer becomes a product of smaller ones, where that has fewer weights: linear ones by the SVD.

    Attributes:
        form: of convolutions: Tucker's in the channels, CP, or a tensor train.
        ranks: how they are chosen: fewer weights per layer by a ratio (2x), a share of the squared singular values
            (energy=0.95), or variational Bayes (vbmf).
    """

    kind: Literal["low-rank"] = "low-rank"
    form: Literal["tucker", "cp", "tt"] = "tucker"
    ranks: Annotated[str, BeforeValidator(_rule)] = "2x"
    summary: ClassVar[str] = "layers as products of smaller ones: SVD, Tucker, CP, tensor trains"


class Int8(Strict):
    """Weights and values in 8 bits, in an ONNX file, with ranges from training images.

    Attributes:
        format: of the file: qdq (a pair of operators at each value) or qoperator.
        scales: of the weights: a scale for each channel, or one for a layer.
        images: the number of training images from which the ranges of values are taken.
    """

    kind: Literal["int8"] = "int8"
    format: Literal["qdq", "qoperator"] = "qdq"
    scales: Literal["per-channel", "per-tensor"] = "per-channel"
    images: Count = 256
    summary: ClassVar[str] = "weights and values in 8 bits, as an ONNX file"


COMPRESSIONS: tuple[type[Strict], ...] = (Prune, LowRank, Int8)
#: Any way to compress a network, selected by ``kind``.
Compression = Prune | LowRank | Int8
AnyCompression = Annotated[Compression, Field(discriminator="kind")]
