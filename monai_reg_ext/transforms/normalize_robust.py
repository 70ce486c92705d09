# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

__all__ = ["NormalizeRobust", "NormalizeRobustD", "NormalizeRobustDict", "NormalizeRobustd"]


class NormalizeRobust(Transform):
    """Intensities of one image to [0, 1], whatever their scale.

    Two percentiles of the voxels above the image's minimum become 0 and 1, values beyond are clipped. The minimum is
    left out because padding, air and masked background sit there, often most of the volume; where nothing lies between
    the percentiles (a binary image), minimum and maximum serve instead.

    Args:
        lower: percentile that becomes 0.
        upper: percentile that becomes 1.
        clip: for calibrated intensities such as CT: this range (low, high) becomes [0, 1] in every image and
            percentiles are not taken.

    Shape:
        ``(1, I, J, K)``, or any other; float32, meta kept.

    Raises:
        ValueError: for percentiles or a range out of order, or a constant image.
    """

    def __init__(self, lower: float = 0.5, upper: float = 99.5, clip: tuple[float, float] | None = None) -> None:
        if not 0 <= lower < upper <= 100:
            raise ValueError(f"percentiles need 0 <= lower < upper <= 100, got {lower} and {upper}.")
        if clip is not None and not clip[0] < clip[1]:
            raise ValueError(f"clip needs (low, high) with low < high, got {clip}.")
        self.lower = lower
        self.upper = upper
        self.clip = clip

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        values = image.to(torch.float32)
        plain = values.as_tensor() if isinstance(values, MetaTensor) else values
        low, high = self.clip or self._range(plain)
        return ((values - low) / (high - low)).clamp(0, 1)

    def _range(self, values: torch.Tensor) -> tuple[float, float]:
        minimum, maximum = (limit.item() for limit in torch.aminmax(values))
        if not minimum < maximum:
            raise ValueError(f"a constant image ({minimum:g} everywhere) has no contrast to normalize.")
        # interpolated padding differs from the minimum by rounding
        above = values[values > minimum + 1e-5 * (maximum - minimum)]
        low, high = _percentile(above, self.lower), _percentile(above, self.upper)
        return (low, high) if low < high else (minimum, maximum)


class NormalizeRobustd(MapTransform):
    """Dictionary version of :py:class:`NormalizeRobust`."""

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        clip: tuple[float, float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.normalizer = NormalizeRobust(lower, upper, clip)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.normalizer(out[key])
        return out


def _percentile(values: torch.Tensor, percent: float) -> float:
    # torch.quantile refuses more than 16 million values
    rank = 1 + round(percent / 100 * (values.numel() - 1))
    return values.kthvalue(rank).values.item()


NormalizeRobustD = NormalizeRobustDict = NormalizeRobustd
