# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from monai_reg_ext.transforms.normalize_robust import percentile

__all__ = ["PaddingMask", "PaddingMaskD", "PaddingMaskDict", "PaddingMaskd", "find_padding"]

LOGGER = logging.getLogger(__name__)
AUTO, NONE = "auto", "none"
LOWEST_HU = -1100.0  # air has -1000, noise and rounding go a little below
GAP = 0.2
ROUNDING = 1e-5  # of the range, by which interpolation makes equal voxels differ


def find_padding(image: torch.Tensor) -> float | None:
    """Value that fills up what a CT scanner did not see, such as -2048, where nothing else can be meant.

    It is the minimum of the image, below -1100, so darker than air in Hounsfield units, and separated from the next
    value by more than a fifth of the range of all others (their brightest 1 % left out: metal).

    Args:
        image: of any shape; finite.

    Returns:
        The value, or ``None`` where there is no such value.
    """
    values = image.as_subclass(torch.Tensor)
    if not values.numel():
        return None
    lowest, highest = (limit.item() for limit in torch.aminmax(values))
    if not lowest < LOWEST_HU:
        return None
    others = values[values > lowest + ROUNDING * (highest - lowest)]
    if not others.numel():
        return None
    darkest, bright = others.min().item(), percentile(others, 99)
    return lowest if darkest < bright and darkest - lowest > GAP * (bright - darkest) else None


class PaddingMask(Transform):
    """Where an image counts: inside its mask, if it has one, and not in its padding.

    Padding are the voxels of one value, and voxels beside them that are darker than nearly all others: between padding
    and tissue an image that was resampled once has mixtures of the two. Padding outside the mask is not looked for.

    Args:
        padding: the value; ``"auto"`` is what :py:func:`find_padding` finds; ``None`` or ``"none"``: there is none.

    Raises:
        ValueError: for anything else as ``padding``, a mask of another size, or where nothing is left.
    """

    def __init__(self, padding: float | str | None = AUTO) -> None:
        is_number = isinstance(padding, (int, float)) and not isinstance(padding, bool) and math.isfinite(padding)
        if not is_number and padding not in (None, NONE, AUTO):
            raise ValueError(f"padding must be {AUTO!r}, {NONE!r} or the value of padded voxels, got {padding!r}.")
        self.padding = None if padding == NONE else padding

    def __call__(self, image: MetaTensor, mask: torch.Tensor | None = None, name: str = "image") -> torch.Tensor | None:
        """Combine.

        Args:
            image: ``(1, I, J, K)``.
            mask: as the image, not 0 inside; ``None`` is everywhere.
            name: of the image, for the log and for errors.

        Returns:
            MetaTensor ``(1, I, J, K)`` uint8; ``mask`` itself where the image has no padding.
        """
        if mask is not None and mask.shape != image.shape:
            raise ValueError(f"{name}: a mask for {tuple(image.shape)} has its shape, got {tuple(mask.shape)}.")
        values = image.as_subclass(torch.Tensor)
        inside = torch.ones_like(values, dtype=torch.bool) if mask is None else _bool(mask, values.device)
        value = find_padding(values[inside]) if self.padding == AUTO else self.padding
        if value is None:
            return mask
        padded = _padded_voxels(values, value)
        if not padded.any():
            LOGGER.warning("%s: no voxel has the value %g that was given as padding", name, value)
        if not (padded & inside).any():
            return mask
        LOGGER.info("%s: %.1f %% is padding of %g and does not count", name, 100 * padded.float().mean().item(), value)
        known = inside & ~padded
        if not known.any():
            where = "" if mask is None else " inside the mask"
            raise ValueError(f"{name}: every voxel{where} is padding of {value:g}. Give its value, or padding='none'.")
        return MetaTensor(known.to(torch.uint8), affine=image.affine)


class PaddingMaskd(MapTransform):
    """Dictionary version of :py:class:`PaddingMask`: writes ``<key>_known`` for images that have padding.

    It holds what also lies inside ``<key>_mask``, where there is one. Those masks stay as they are, since smoothness is
    measured inside them; :py:class:`ResampleToFixedd` prefers ``<key>_known``.

    Args:
        keys: images.
        padding: see :py:class:`PaddingMask`.
        allow_missing_keys: whether images may be absent.
    """

    def __init__(
        self,
        keys: KeysCollection = ("fixed", "moving"),
        padding: float | str | None = AUTO,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.masker = PaddingMask(padding)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            mask = out.get(f"{key}_mask")
            known = self.masker(out[key], mask, f"{out['pair']}, {key}" if "pair" in out else str(key))
            if known is not mask:
                out[f"{key}_known"] = known
        return out


def _bool(mask: torch.Tensor, device: torch.device) -> torch.Tensor:
    return (mask.as_subclass(torch.Tensor) != 0).to(device)


def _padded_voxels(values: torch.Tensor, padding: float) -> torch.Tensor:
    """Voxels of that value, and the darker mixtures with it beside them, bool."""
    lowest, highest = (limit.item() for limit in torch.aminmax(values))
    padded = (values - padding).abs() <= ROUNDING * (highest - lowest)
    beside = F.max_pool3d(padded[None].float(), 3, 1, 1)[0] > 0
    others = values[~beside]
    if not padded.any() or not others.numel():
        return padded
    return padded | (beside & (values > padding) & (values < percentile(others, 0.1)))


PaddingMaskD = PaddingMaskDict = PaddingMaskd
