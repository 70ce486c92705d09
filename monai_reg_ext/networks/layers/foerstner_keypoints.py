# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.networks.layers.farthest_points import farthest_points
from monai_reg_ext.networks.layers.foerstner_distinctiveness import foerstner_distinctiveness

__all__ = ["SELECTIONS", "foerstner_keypoints"]

SELECTIONS = ("farthest", "strongest")
_REACH = 12  # voxels beyond the mask that the distinctiveness inside may depend on, with the usual sigma


def foerstner_keypoints(
    image: torch.Tensor,
    mask: torch.Tensor | None = None,
    number: int = 2000,
    sigma: float = 1.4,
    window: int = 3,
    threshold: float = 1e-8,
    selection: str = "farthest",
    spacing: Sequence[float] | None = None,
) -> list[torch.Tensor]:
    """Places that can be found again in another image: local maxima of the distinctiveness.

    Kept are voxels that no other one within the window exceeds, and whose face neighbours lie inside the mask too.

    Args:
        image: ``(B, C, *size)``, two or three axes.
        mask: ``(B, 1, *size)``, not 0 where keypoints may lie; by default everywhere.
        number: most keypoints of an image.
        sigma: see :py:func:`foerstner_distinctiveness`.
        window: voxels across within which a keypoint is the most distinct place, odd.
        threshold: keypoints are more distinct than that, for an image that ranges from 0 to 1.
        selection: ``"farthest"`` spreads them evenly, from the most distinct one on, see :py:func:`farthest_points`;
            ``"strongest"`` takes the most distinct ones.
        spacing: size of a voxel along each axis, of which slopes and distances are taken; equal sides by default.

    Returns:
        For every image ``(N, axes)`` float32 in voxels, ``N <= number``: fewer where there are fewer maxima.

    Raises:
        ValueError: for a mask on another grid, an even window, a number below one, an unknown selection.

    Source: see :py:func:`foerstner_distinctiveness`.
    """
    _check(image, mask, number, window, selection)
    masks = [None] * len(image) if mask is None else mask.split(1)
    return [
        _of_one(item, of_item, number, sigma, window, threshold, selection, spacing)
        for item, of_item in zip(image.split(1), masks, strict=True)
    ]


def _check(image: torch.Tensor, mask: torch.Tensor | None, number: int, window: int, selection: str) -> None:
    if mask is not None and mask.shape != (len(image), 1, *image.shape[2:]):
        raise ValueError(f"a mask for images {tuple(image.shape)} has one channel, got shape {tuple(mask.shape)}.")
    if window < 1 or window % 2 == 0 or number < 1:
        raise ValueError(f"keypoints need an odd window and number >= 1, got window={window}, number={number}.")
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {SELECTIONS}, got {selection!r}.")


def _of_one(
    image: torch.Tensor,
    mask: torch.Tensor | None,
    number: int,
    sigma: float,
    window: int,
    threshold: float,
    selection: str,
    spacing: Sequence[float] | None,
) -> torch.Tensor:
    mask = image.new_ones(1, 1, *image.shape[2:], dtype=torch.bool) if mask is None else mask != 0
    crop = _box_around(mask, _REACH + window)
    image, mask = image[(..., *crop)].contiguous(), mask[(..., *crop)]
    distinct = foerstner_distinctiveness(image, sigma, spacing)
    least = threshold * (image.max() - image.min()).square()
    maxima = (distinct == _windowed_maximum(distinct, window)) & (distinct > least) & _eroded(mask)
    points = maxima[0, 0].nonzero()
    points = points[distinct[0, 0][maxima[0, 0]].argsort(descending=True, stable=True)]
    if selection == "farthest":
        scaled = points.float() * points.new_tensor(spacing or [1.0] * points.shape[1], dtype=torch.float32)
        points = points[farthest_points(scaled, number)]
    first = points.new_tensor([axis.start for axis in crop])
    return (points[:number] + first).float()


def _box_around(mask: torch.Tensor, margin: int) -> tuple[slice, ...]:
    """The part of the grid with all that is inside; nothing where nothing is."""
    slices = []
    for dim in range(2, mask.dim()):
        inside = mask.transpose(2, dim).flatten(3).any(3).flatten(0, 1).any(0).nonzero()
        first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, -1)
        slices.append(slice(max(0, first - margin), last + 1 + margin))
    return tuple(slices)


def _windowed_maximum(volume: torch.Tensor, window: int) -> torch.Tensor:
    """Maximum over a window around every voxel, one axis after the other."""
    for dim in range(2, volume.dim()):
        size, maximum = volume.shape[dim], volume.clone()
        for shift in range(1, min(window // 2, size - 1) + 1):
            ahead, behind = maximum.narrow(dim, 0, size - shift), maximum.narrow(dim, shift, size - shift)
            torch.maximum(ahead, volume.narrow(dim, shift, size - shift), out=ahead)
            torch.maximum(behind, volume.narrow(dim, 0, size - shift), out=behind)
        volume = maximum
    return volume


def _eroded(mask: torch.Tensor) -> torch.Tensor:
    """Where a voxel and all that share a face with it are inside; beyond the faces of the grid is outside."""
    kept = mask.clone()
    for dim in range(2, mask.dim()):
        size = mask.shape[dim]
        kept.narrow(dim, 0, size - 1).logical_and_(mask.narrow(dim, 1, size - 1))
        kept.narrow(dim, 1, size - 1).logical_and_(mask.narrow(dim, 0, size - 1))
        kept.narrow(dim, 0, 1).fill_(False)
        kept.narrow(dim, size - 1, 1).fill_(False)
    return kept
