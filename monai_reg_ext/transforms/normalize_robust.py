# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple

__all__ = ["NormalizeRobust", "NormalizeRobustD", "NormalizeRobustDict", "NormalizeRobustd", "percentile"]


class NormalizeRobust(Transform):
    """Intensities of one image to [0, 1], whatever their scale.

    Two percentiles of the voxels above the image's minimum become 0 and 1, values beyond are clipped. The minimum is
    left out because padding, air and masked background sit there, often most of the volume; where nothing lies between
    the percentiles (a binary image), minimum and maximum serve instead. With a mask all of this is taken inside it:
    what does not count for the registration, padding included, has no say in the contrast either.

    Args:
        lower: percentile that becomes 0.
        upper: percentile that becomes 1.
        clip: for calibrated intensities such as CT: this range (low, high) becomes [0, 1] in every image and
            percentiles are not taken.

    Shape:
        - image: ``(1, I, J, K)``, or any other.
        - mask: as the image, not 0 inside; optional.
        - output: as the image; float32, meta kept.

    Raises:
        ValueError: for percentiles or a range out of order, an image that is constant (inside its mask), or a mask that
            is empty or of another size.
    """

    def __init__(self, lower: float = 0.5, upper: float = 99.5, clip: tuple[float, float] | None = None) -> None:
        if not 0 <= lower < upper <= 100:
            raise ValueError(f"percentiles need 0 <= lower < upper <= 100, got {lower} and {upper}.")
        if clip is not None and not clip[0] < clip[1]:
            raise ValueError(f"clip needs (low, high) with low < high, got {clip}.")
        self.lower = lower
        self.upper = upper
        self.clip = clip

    def __call__(self, image: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        values = image.to(torch.float32)
        low, high = self.clip or self._range(_inside(values.as_subclass(torch.Tensor), mask))
        return ((values - low) / (high - low)).clamp(0, 1)

    def _range(self, values: torch.Tensor) -> tuple[float, float]:
        minimum, maximum = (limit.item() for limit in torch.aminmax(values))
        if not minimum < maximum:
            raise ValueError(f"a constant image ({minimum:g} everywhere) has no contrast to normalize.")
        # interpolated padding differs from the minimum by rounding
        above = values[values > minimum + 1e-5 * (maximum - minimum)]
        low, high = percentile(above, self.lower), percentile(above, self.upper)
        return (low, high) if low < high else (minimum, maximum)


class NormalizeRobustd(MapTransform):
    """Dictionary version of :py:class:`NormalizeRobust`.

    Args:
        keys: images.
        lower, upper, clip: see :py:class:`NormalizeRobust`.
        allow_missing_keys: whether images may be absent.
        mask_keys: their masks, one per key; an image whose mask is absent is taken whole. ``None``: all are.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        clip: tuple[float, float] | None = None,
        allow_missing_keys: bool = False,
        mask_keys: KeysCollection | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_keys = ensure_tuple(mask_keys) if mask_keys is not None else (None,) * len(self.keys)
        if len(self.mask_keys) != len(self.keys):
            raise ValueError(f"mask_keys needs one mask per key, got {self.mask_keys} for {self.keys}.")
        self.normalizer = NormalizeRobust(lower, upper, clip)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key, mask_key in self.key_iterator(out, self.mask_keys):
            out[key] = self.normalizer(out[key], out.get(mask_key))
        return out


def percentile(values: torch.Tensor, percent: float) -> float:
    """The value at this rank, in percent, of a tensor of any shape and size."""
    # torch.quantile refuses more than 16 million values
    rank = 1 + round(percent / 100 * (values.numel() - 1))
    return values.flatten().kthvalue(rank).values.item()


def _inside(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return values
    if mask.shape != values.shape:
        raise ValueError(f"a mask for an image {tuple(values.shape)} has its shape, got {tuple(mask.shape)}.")
    inside = values[(mask.as_subclass(torch.Tensor) != 0).to(values.device)]
    if not inside.numel():
        raise ValueError("the mask is empty: no voxel to take the contrast from.")
    return inside


NormalizeRobustD = NormalizeRobustDict = NormalizeRobustd
