"""Translate convolutions, pooling and normalisations; see ``operators``."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from certkd.networks.onnx.call import Call, Value, sides_of

Sides = tuple[int, ...]
#: Most channels over which a local response is summed by a matrix.
MOST_CHANNELS = 4096


def conv(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Value = None,
    *,
    kernel_shape: Sequence[int] = (),
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    size = tuple(weight.shape[2:])
    x, *steps = placed(call, x, size, strides=strides, pads=pads, dilations=dilations, auto_pad=auto_pad)
    return _of_rank(call, "conv", size)(x, weight, bias, *steps, group)


def placed(
    call: Call,
    x: Tensor,
    size: Sides,
    *,
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    auto_pad: str = "NOTSET",
) -> tuple[Tensor, Sides, Sides, Sides]:
    """Return an image, padded if its sides are uneven, with the strides, padding and dilations of a convolution."""
    size, step, spread = _window(size, strides, dilations)
    before, after = _padding(call, x, size, step, spread, pads, auto_pad)
    if before != after:
        x, before = F.pad(x, sides_of(before, after)), (0,) * len(size)
    return x, step, before, spread


def conv_transpose(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Value = None,
    *,
    kernel_shape: Sequence[int] = (),
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    output_padding: Sequence[int] = (),
    output_shape: Sequence[int] = (),
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    size, step, spread = _window(tuple(weight.shape[2:]), strides, dilations)
    extra = tuple(output_padding) or (0,) * len(size)
    sides = [int(side) for side in x.shape[2:]]
    reach = [d * (k - 1) + 1 for k, d in zip(size, spread, strict=True)]
    whole = [s * (n - 1) + r + e for n, s, r, e in zip(sides, step, reach, extra, strict=True)]
    wanted = list(output_shape[-len(size) :])
    if not wanted and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(sides, step, strict=True)]
    if wanted:
        cut = [full - side for full, side in zip(whole, wanted, strict=True)]
        if min(cut) < 0:
            raise call.refuse(f"output_shape={wanted} is larger than what it computes, {whole}")
        less, more = tuple(c // 2 for c in cut), tuple(c - c // 2 for c in cut)
        before, after = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    else:
        before, after = _padding(call, x, size, step, spread, pads, auto_pad)
    function = _of_rank(call, "conv_transpose", size)
    if before == after:
        return function(x, weight, bias, step, before, extra, group, spread)
    found = function(x, weight, bias, step, 0, extra, group, spread)
    kept = [slice(low, full - high) for low, high, full in zip(before, after, whole, strict=True)]
    return found[(slice(None), slice(None), *kept)]


def max_pool(
    call: Call,
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    ceil_mode: int = 0,
    storage_order: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    if call.outputs > 1:
        raise call.refuse("also returns the positions of the maxima")
    size, step, spread = _window(kernel_shape, strides, dilations)
    before, after = _padding(call, x, size, step, spread, pads, auto_pad)
    pool = _of_rank(call, "max_pool", size)
    if any(2 * side > length for side, length in zip(before, size, strict=True)):
        return pool(_apart(call, x, before, after, size, spread), size, step, 0, spread, bool(ceil_mode))
    if before == after:
        return pool(x, size, step, before, spread, bool(ceil_mode))
    reach = [d * (k - 1) + 1 for k, d in zip(size, spread, strict=True)]
    sides = zip(x.shape[2:], before, after, reach, step, strict=True)
    spare = [(int(n) + low + high - r, s) for n, low, high, r, s in sides]
    wanted = [(-(-room // s) if ceil_mode else room // s) + 1 for room, s in spare]
    found = pool(x, size, step, before, spread, True)  # windows may end after the last entry, where nothing is padded
    if any(side < w for side, w in zip(found.shape[2:], wanted, strict=True)):
        return pool(_apart(call, x, before, after, size, spread), size, step, 0, spread, bool(ceil_mode))
    return found[(slice(None), slice(None), *(slice(w) for w in wanted))]


def _apart(call: Call, x: Tensor, before: Sides, after: Sides, size: Sides, spread: Sides) -> Tensor:
    """Pad so that maxima do not change: by copies of the last entries, which are in the same windows."""
    if max(spread) > 1 or any(side >= k for sides in (before, after) for side, k in zip(sides, size, strict=True)):
        raise call.refuse(f"pads={before + after} with dilations={spread} are not supported")
    return F.pad(x, sides_of(before, after), "replicate")


def average_pool(
    call: Call,
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """Average over windows; uneven padding that does not count is divided out by each window's share of the image."""
    size, step, spread = _window(kernel_shape, strides, dilations)
    if max(spread) > 1:
        raise call.refuse(f"dilations={spread} are not supported")
    before, after = _padding(call, x, size, step, spread, pads, auto_pad)
    pool = _of_rank(call, "avg_pool", size)
    if before == after:
        return pool(x, size, step, before, bool(ceil_mode), bool(count_include_pad))
    if ceil_mode:
        raise call.refuse(f"pads={before + after} with ceil_mode=1 are not supported")
    padded = F.pad(x, sides_of(before, after))
    if count_include_pad:
        return pool(padded, size, step)
    shares = np.ones(())
    for n, k, s, low, high in zip(x.shape[2:], size, step, before, after, strict=True):
        start = np.arange((int(n) + low + high - k) // s + 1) * s - low
        inside = np.minimum(start + k, int(n)) - np.maximum(start, 0)
        shares = np.multiply.outer(shares, k / inside.clip(min=1))
    return pool(padded, size, step) * torch.as_tensor(shares, dtype=torch.float32, device=x.device).to(x.dtype)


def _window(size: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> tuple[Sides, Sides, Sides]:
    ones = (1,) * len(size)
    return tuple(size), tuple(strides) or ones, tuple(dilations) or ones


def _padding(
    call: Call, x: Tensor, size: Sequence[int], step: Sequence[int], spread: Sequence[int], pads: Value, auto: str
) -> tuple[Sides, Sides]:
    """Compute the padding before and after each spatial axis."""
    rank = len(size)
    if auto in ("NOTSET", "VALID"):
        pads = tuple(pads) if auto == "NOTSET" and len(pads) else (0,) * (2 * rank)
        return pads[:rank], pads[rank:]
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise call.refuse(f"auto_pad={auto!r} is not supported")
    sides = [int(side) for side in x.shape[2:]]
    reach = [d * (k - 1) + 1 for k, d in zip(size, spread, strict=True)]
    wanted = [max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(sides, step, reach, strict=True)]
    less, more = tuple(w // 2 for w in wanted), tuple(w - w // 2 for w in wanted)
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def _of_rank(call: Call, name: str, size: Sequence[int]) -> Callable[..., Tensor]:
    if not 1 <= len(size) <= 3:
        raise call.refuse(f"{len(size)} spatial axes are not supported")
    return getattr(F, f"{name}{len(size)}d")


def global_average_pool(call: Call, x: Tensor) -> Tensor:
    return _of_rank(call, "adaptive_avg_pool", x.shape[2:])(x, 1)


def global_max_pool(call: Call, x: Tensor) -> Tensor:
    size = tuple(int(side) for side in x.shape[2:])
    return _of_rank(call, "max_pool", size)(x, size)


def batch_norm(
    call: Call,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> Tensor:
    if training_mode or call.outputs > 1 or not spatial:
        raise call.refuse("is in training mode or not per channel: export the network in eval mode")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.group_norm(x, len(scale), scale, bias, epsilon)


def group_norm(
    call: Call,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Normalise groups of channels; before opset 21 with one scale and one bias per group."""
    each = int(x.shape[1]) // num_groups
    if call.opset < 21:
        scale, bias = (value[:, None].expand(num_groups, each).reshape(-1) for value in (scale, bias))
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def layer_norm(
    call: Call,
    x: Tensor,
    scale: Tensor,
    bias: Value = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    shape = [int(side) for side in x.shape[axis:]]
    if call.outputs > 1:
        raise call.refuse("also returns mean and deviation")
    return F.layer_norm(x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), epsilon)


def standardised(call: Call, x: Tensor, *, axes: int, epsilon: float) -> Tensor:
    """Normalise the last axes without a scale: what exporters write out before opset 17."""
    return F.layer_norm(x, [int(side) for side in x.shape[x.dim() - axes :]], None, None, epsilon)


def local_response(
    call: Call, x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Divide by a power of the sum of squares over neighbouring channels."""
    channels = int(x.shape[1])
    if x.dim() != 4 or size < 1 or channels > MOST_CHANNELS:
        raise call.refuse(f"size={size} over {channels} channels is not supported")
    apart = np.arange(channels)[:, None] - np.arange(channels)
    near = (apart <= (size - 1) // 2) & (apart >= -(size // 2))
    band = torch.as_tensor(near * (alpha / size), dtype=torch.float32, device=x.device).to(x.dtype)
    return x * torch.pow(F.conv2d(x * x, band[:, :, None, None]) + bias, -beta)
