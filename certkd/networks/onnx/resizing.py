"""Translate Resize and Upsample: along each axis entries are picked, or a constant matrix is applied."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from certkd.networks.onnx.call import Call, Value, axis_of, integers

#: Most entries of an axis after resizing, and of the matrix of one axis.
LONGEST, LARGEST = 1 << 16, 1 << 22
#: The first opset in which Resize has coordinates other than ``asymmetric``.
COORDINATES = 11


@dataclass(frozen=True)
class Way:
    """The attributes of Resize, under their own names."""

    mode: str = "nearest"
    coordinate_transformation_mode: str = "half_pixel"
    nearest_mode: str = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: int = 0
    antialias: int = 0

    def places(self, before: int, after: int, scale: float) -> np.ndarray:
        """Compute where in the axis before resizing each entry of the axis after it is.

        Raises:
            ValueError: the mode of coordinates is not known.
        """
        i, how = np.arange(after, dtype=np.float64), self.coordinate_transformation_mode
        if how == "asymmetric":
            return i / scale
        if how == "align_corners":
            return i * (before - 1) / (after - 1) if after > 1 else 0 * i
        if how == "pytorch_half_pixel" and after == 1:
            return 0 * i
        if how in ("half_pixel", "pytorch_half_pixel"):
            return (i + 0.5) / scale - 0.5
        if how == "half_pixel_symmetric":
            return before / 2 * (1 - after / (before * scale)) + (i + 0.5) / scale - 0.5
        raise ValueError(f"coordinate_transformation_mode={how!r} is not supported")

    def nearest(self, places: np.ndarray, before: int) -> np.ndarray:
        """Round places to entries."""
        rounded = {
            "round_prefer_floor": lambda: np.ceil(places - 0.5),
            "round_prefer_ceil": lambda: np.floor(places + 0.5),
            "floor": lambda: np.floor(places),
            "ceil": lambda: np.ceil(places),
        }
        if self.nearest_mode not in rounded:
            raise ValueError(f"nearest_mode={self.nearest_mode!r} is not supported")
        return rounded[self.nearest_mode]().clip(0, before - 1).astype(np.int64)

    def matrix(self, places: np.ndarray, before: int, scale: float) -> np.ndarray:
        """Compute the weights of the entries before resizing in each entry after it.

        Raises:
            ValueError: the mode of interpolation is not known.
        """
        if self.mode not in ("linear", "cubic"):
            raise ValueError(f"mode={self.mode!r} is not supported")
        narrow = min(scale, 1.0) if self.antialias else 1.0
        reach = int(np.ceil((1 if self.mode == "linear" else 2) / narrow))
        near = np.floor(places).astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
        weights = self._kernel(narrow * np.abs(near - places[:, None]))
        if self.exclude_outside:
            weights = weights * ((near >= 0) & (near < before))
        weights /= weights.sum(1, keepdims=True)  # 1 but for these two ways
        found = np.zeros((len(places), before))
        np.add.at(found, (np.arange(len(places))[:, None], near.clip(0, before - 1)), weights)
        return found

    def _kernel(self, distance: np.ndarray) -> np.ndarray:
        if self.mode == "linear":
            return (1 - distance).clip(min=0)
        a, d = self.cubic_coeff_a, distance
        inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
        outer = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        return np.where(d <= 1, inner, np.where(d < 2, outer, 0.0))


def resize(
    call: Call, x: Tensor, region: Value = None, scales: Value = None, sizes: Value = None, **attributes: Any
) -> Tensor:
    """Resize; ``region`` is read in a mode that is not supported, and in opset 10 that input is the scales."""
    axes, policy = attributes.pop("axes", None), attributes.pop("keep_aspect_ratio_policy", "stretch")
    attributes.pop("extrapolation_value", None)  # of the mode that has a region
    if policy != "stretch":
        raise call.refuse(f"keep_aspect_ratio_policy={policy!r} is not supported")
    if call.opset < COORDINATES:
        scales, attributes["coordinate_transformation_mode"], attributes["nearest_mode"] = region, "asymmetric", "floor"
    unknown = attributes.keys() - Way.__dataclass_fields__.keys()
    if unknown:
        raise call.refuse(f"attribute {min(unknown)!r} is not known")
    over = list(range(x.dim())) if axes is None else [axis_of(axis, x.dim()) for axis in axes]
    return _resized(call, x, Way(**attributes), over, scales, sizes)


def upsample(
    call: Call, x: Tensor, given: Value = None, *, mode: str = "nearest", scales: Sequence[float] | None = None
) -> Tensor:
    way = Way(mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    return _resized(call, x, way, list(range(x.dim())), scales if given is None else given, None)


def _resized(call: Call, x: Tensor, way: Way, over: list[int], scales: Value, sizes: Value) -> Tensor:
    before = [int(x.shape[axis]) for axis in over]
    if sizes is not None and np.size(sizes):
        after = integers(sizes)
        factors = [new / old for new, old in zip(after, before, strict=True)]
    else:
        factors = [float(factor) for factor in np.asarray(scales, dtype=np.float32)]
        after = [int(old * factor) for old, factor in zip(before, factors, strict=True)]
    whole = all(new == old * factor for new, old, factor in zip(after, before, factors, strict=True))
    if whole and over == list(range(4)) and after[:2] == before[:2]:
        if way == Way(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"):
            return F.interpolate(x, size=after[2:], mode="nearest")
        halves = way.coordinate_transformation_mode in ("half_pixel", "pytorch_half_pixel") and min(after[2:]) > 1
        if way.mode == "linear" and halves and not way.antialias:
            return F.interpolate(x, size=after[2:], mode="bilinear", align_corners=False)
    for axis, old, new, factor in zip(over, before, after, factors, strict=True):
        if new != old or factor != 1:
            x = _along(call, x, axis, way, new, factor)
    return x


def _along(call: Call, x: Tensor, axis: int, way: Way, after: int, scale: float) -> Tensor:
    """Resize along one axis."""
    before = int(x.shape[axis])
    if not 1 <= after <= LONGEST or before * after > LARGEST:
        raise call.refuse(f"resizes {before} entries to {after}: it is too large")
    try:
        places = way.places(before, after, scale)
        if way.mode == "nearest":
            rows = torch.as_tensor(way.nearest(places, before), device=x.device)
            return x.index_select(axis, rows)
        weight = torch.as_tensor(way.matrix(places, before, scale), dtype=torch.float32, device=x.device)
    except ValueError as error:
        raise call.refuse(str(error)) from None
    return F.linear(x.transpose(axis, -1), weight.to(x.dtype)).transpose(axis, -1)
