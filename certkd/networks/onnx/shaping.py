"""Translate ONNX operators that move, pick, repeat and join entries; see ``operators``."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from certkd.networks.onnx.call import Call, Value, axes_of, axis_of, integers, number, sides_of, tensor

#: TensorProto.FLOAT
FLOAT = 1
#: Magnitude from which an end of an interval, written as the largest float32 number, is no end.
ENDLESS = 3.4e38


def reshape(call: Call, x: Tensor, shape: Value, *, allowzero: int = 0) -> Tensor:
    """Reshape; a leading number of the file's images, and a leading batch size both mean one row per image."""
    wanted, sides = integers(shape), [int(side) for side in x.shape]
    if not allowzero:
        wanted = [sides[i] if side == 0 else side for i, side in enumerate(wanted)]
    if call.literal or not call.varying[0] or not wanted:
        return x.reshape(wanted)
    count, batch = math.prod(sides), sides[0]
    if wanted[0] == (call.count or 1) != batch and (-1 in wanted or math.prod(wanted) != count):
        wanted[0] = batch
    if -1 in wanted:
        wanted[wanted.index(-1)] = count // abs(math.prod(wanted))
    if wanted[0] != batch:
        return x.reshape(wanted)
    return x.flatten(1) if len(wanted) == 2 and len(sides) > 1 else x.reshape(-1, *wanted[1:])


def flatten(call: Call, x: Tensor, *, axis: int = 1) -> Tensor:
    """Flatten to two axes; in files for one image, everything into one row is one row per image."""
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 or (axis == 0 and call.count == 1 and not call.literal):
        return torch.flatten(x, 1)
    return x.reshape(math.prod(int(side) for side in x.shape[:axis]), -1)


def transpose(call: Call, x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(*(range(x.dim())[::-1] if perm is None else perm))


def squeeze(call: Call, x: Tensor, given: Value = None, *, axes: Sequence[int] | None = None) -> Tensor:
    over = axes_of(call, given, axes, x.dim())
    single = [axis for axis in range(0 if call.literal else 1, x.dim()) if x.shape[axis] == 1]
    for axis in sorted(single if over is None else over, reverse=True):
        x = x.squeeze(axis)
    return x


def unsqueeze(call: Call, x: Tensor, given: Value = None, *, axes: Sequence[int] | None = None) -> Tensor:
    count = len(integers(axes if given is None else given))
    for axis in sorted(axes_of(call, given, axes, x.dim() + count) or []):
        x = x.unsqueeze(axis)
    return x


def expand(call: Call, x: Tensor, shape: Value) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(int(side) for side in x.shape), tuple(integers(shape))))


def tile(call: Call, x: Tensor, repeats: Value) -> Tensor:
    return x.repeat(integers(repeats))


def concat(call: Call, *parts: Value, axis: int) -> Tensor:
    """Concatenate; constant parts, like class tokens, are repeated for every image."""
    varying = [part for part, varies in zip(parts, call.varying, strict=True) if varies]
    like = next(part for part in (*varying, *parts) if isinstance(part, Tensor))
    axis = axis_of(axis, like.dim())
    batch = like.shape[0] if varying and axis != 0 and not call.literal else None
    rows = [
        tensor(part, like) if varies or batch is None else tensor(part, like)[:1].expand(batch, *part.shape[1:])
        for part, varies in zip(parts, call.varying, strict=True)
    ]
    return torch.cat(rows, axis)


def split(
    call: Call,
    x: Tensor,
    given: Value = None,
    *,
    axis: int = 0,
    split: Sequence[int] | None = None,
    num_outputs: int | None = None,
) -> tuple[Tensor, ...]:
    """Split into the given sizes, or into equal parts, of which the last ones may be smaller or empty."""
    size = int(x.shape[axis])
    sizes = split if given is None else integers(given)
    if sizes is None:
        ends = [min(size, i * -(-size // call.outputs)) for i in range(call.outputs + 1)]
        sizes = [end - start for start, end in pairwise(ends)]
    return x.split(list(sizes), axis)


def slices(
    call: Call,
    x: Tensor,
    first: Value = None,
    last: Value = None,
    given: Value = None,
    stride: Value = None,
    *,
    starts: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
) -> Tensor:
    low, high = (integers(starts if first is None else first), integers(ends if last is None else last))
    over = axes_of(call, given, axes, x.dim()) or list(range(len(low)))
    steps = [1] * len(low) if stride is None else integers(stride)
    index = [slice(None)] * x.dim()
    for axis, *ends_ in zip(over, low, high, steps, strict=True):
        size = int(x.shape[axis])
        taken = range(*slice(*ends_).indices(size))
        if taken.step < 0:
            x, taken = x.flip(axis), range(size - 1 - taken.start, size - 1 - taken.stop, -taken.step)
        index[axis] = slice(taken.start, taken.stop, taken.step)
    return x[tuple(index)]


def gather(call: Call, x: Tensor, indices: Value, *, axis: int = 0) -> Tensor:
    if isinstance(indices, Tensor):
        raise call.refuse("looks up indices that depend on the image")
    axis, size = axis % x.dim(), int(x.shape[axis])
    if np.ndim(indices) == 0:
        return x.select(axis, int(indices) % size)
    rows = torch.as_tensor(np.asarray(indices).reshape(-1) % size, dtype=torch.int64, device=x.device)
    after = [*x.shape[:axis], *np.shape(indices), *x.shape[axis + 1 :]]
    return x.index_select(axis, rows) if np.ndim(indices) == 1 else x.index_select(axis, rows).reshape(after)


def gather_nd(call: Call, x: Tensor, indices: Value, *, batch_dims: int = 0) -> Tensor:
    """Pick entries by constant indices of the first axes, which become one."""
    if isinstance(indices, Tensor) or batch_dims:
        raise call.refuse("looks up indices that depend on the image, or others for each image")
    index = np.asarray(indices)
    depth, sides = index.shape[-1], [int(side) for side in x.shape]
    places = [index[..., axis] % sides[axis] for axis in range(depth)]
    rows = torch.as_tensor(np.ravel_multi_index(places, sides[:depth]).reshape(-1), device=x.device)
    picked = x.reshape(-1, *sides[depth:]).index_select(0, rows)
    return picked.reshape(*index.shape[:-1], *sides[depth:])


def pad(
    call: Call,
    x: Tensor,
    given: Value = None,
    filling: Value = None,
    along: Value = None,
    *,
    pads: Sequence[int] | None = None,
    mode: str = "constant",
    value: float = 0.0,
) -> Tensor:
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    if mode not in modes:
        raise call.refuse(f"mode={mode!r} is not supported")
    amounts = integers(pads if given is None else given)
    axes = list(range(x.dim())) if along is None else [axis_of(axis, x.dim()) for axis in integers(along)]
    before, after = [0] * x.dim(), [0] * x.dim()
    for i, axis in enumerate(axes):
        before[axis], after[axis] = amounts[i], amounts[i + len(axes)]
    if before[0] or after[0]:
        raise call.refuse("mixes the images of a batch: it pads the first axis")
    sides = sides_of(before[2:], after[2:]) if not (before[1] or after[1]) else sides_of(before[1:], after[1:])
    filled = value if filling is None else number(call, filling)
    return F.pad(x, sides, value=filled) if mode == "constant" else F.pad(x, sides, modes[mode])


def cast(call: Call, x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    if to != FLOAT:
        raise call.refuse("converts a value that depends on the image to whole numbers or truths: it has no gradient")
    return x.to(torch.float32) if x.dtype == torch.bool else x


def where(call: Call, condition: Value, left: Value, right: Value) -> Tensor:
    """Choose entries by a constant mask, or by a comparison of values of the image."""
    like = next(value for value in (left, right) if isinstance(value, Tensor))
    mask = condition if isinstance(condition, Tensor) else np.array(condition, dtype=bool)
    chosen = torch.as_tensor(mask, device=like.device)
    return torch.where(chosen, tensor(left, like), tensor(right, like))


def depth_to_space(call: Call, x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    if mode != "DCR":
        raise call.refuse(f"mode={mode!r} is not supported")
    channels, height, width = (int(side) for side in x.shape[1:])
    blocks = x.reshape(-1, blocksize**2, channels // blocksize**2, height, width)
    return F.pixel_shuffle(blocks.transpose(1, 2).reshape(-1, channels, height, width), blocksize)


def space_to_depth(call: Call, x: Tensor, *, blocksize: int) -> Tensor:
    channels, height, width = (int(side) for side in x.shape[1:])
    folded = F.pixel_unshuffle(x, blocksize)  # by channel, then by place in the block
    height, width = height // blocksize, width // blocksize
    return folded.reshape(-1, channels, blocksize**2, height, width).transpose(1, 2).flatten(1, 2)
