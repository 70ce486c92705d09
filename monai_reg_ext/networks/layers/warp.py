# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
import torch.nn.functional as F

from monai_reg_ext.networks.kernels.runtime import compiled_twin

__all__ = ["identity_grid", "sample", "warp"]


def identity_grid(size: list[int], like: torch.Tensor) -> torch.Tensor:
    """Voxel coordinates of a grid.

    Args:
        size: extent of the grid, two or three axes.
        like: tensor whose device the coordinates share.

    Returns:
        ``(1, len(size), *size)`` float32; channel *c* counts along array axis *c*.
    """
    axes = [torch.arange(s, device=like.device, dtype=torch.float32) for s in size]
    return torch.stack(torch.meshgrid(axes, indexing="ij")).unsqueeze(0)


def sample(
    image: torch.Tensor, coordinates: torch.Tensor, mode: str = "bilinear", padding: str = "border"
) -> torch.Tensor:
    """Values of an image at voxel coordinates.

    Args:
        image: ``(B, C, *image_size)``, two or three spatial axes.
        coordinates: ``(B, D, *size)`` in voxels of ``image``; channel *c* counts along array axis *c*. ``size`` may
            differ from the image's.
        mode: ``"bilinear"`` (linear on every axis) or ``"nearest"`` (index ``floor(x + 0.5)``, as
            ``scipy.ndimage.map_coordinates(order=0)``; keeps the dtype, blocks gradients).
        padding: ``"border"`` repeats the outermost voxel, ``"zeros"`` gives 0 outside. With ``"nearest"`` outside
            begins at coordinates below 0 or above ``size - 1``, as in Learn2Reg's evaluation; with ``"bilinear"``
            values fade to 0 over one voxel.

    Returns:
        ``(B, C, *size)``; computed in float32, returned in the dtype of ``image``, whole numbers rounded.

    Raises:
        ValueError: for an unknown mode or padding, or when the channels of ``coordinates`` are not the spatial axes.
    """
    if mode != "bilinear" and mode != "nearest":
        raise ValueError("mode must be 'bilinear' or 'nearest', got '" + mode + "'.")
    if padding != "border" and padding != "zeros":
        raise ValueError("padding must be 'border' or 'zeros', got '" + padding + "'.")
    axes = image.dim() - 2
    if coordinates.shape[1] != axes or coordinates.dim() != image.dim():
        raise ValueError(
            f"coordinates need one channel per spatial axis of the image {list(image.shape)}, "
            f"got {list(coordinates.shape)}."
        )
    coordinates = coordinates.to(torch.float32)
    if mode == "nearest":
        return _nearest(image, coordinates, padding)

    values = _linear(image.to(torch.float32), coordinates, padding)
    if not image.is_floating_point():
        values = values.round()
    return values.to(image.dtype)


def _linear(image: torch.Tensor, coordinates: torch.Tensor, padding: str) -> torch.Tensor:
    axes = image.dim() - 2
    if not torch.jit.is_scripting():
        # torch keeps the type of a MetaTensor
        plain = type(image) is torch.Tensor and type(coordinates) is torch.Tensor
        twin = compiled_twin("sample", image, coordinates) if plain and axes == 3 and padding == "border" else None
        if twin is not None and image.numel() and len(image) == len(coordinates):
            return twin.sample(image, coordinates)
    normalized: list[torch.Tensor] = []
    for axis in range(axes - 1, -1, -1):
        normalized.append((2.0 * coordinates[:, axis] + 1.0) / image.shape[2 + axis] - 1.0)
    return F.grid_sample(image, torch.stack(normalized, -1), mode="bilinear", padding_mode=padding, align_corners=False)


def _nearest(image: torch.Tensor, coordinates: torch.Tensor, padding: str) -> torch.Tensor:
    axes = image.dim() - 2
    index = torch.zeros_like(coordinates[:, 0], dtype=torch.int64)
    inside = torch.ones_like(index, dtype=torch.bool)
    for axis in range(axes):
        last = image.shape[2 + axis] - 1
        position = coordinates[:, axis]
        inside = inside & (position >= 0) & (position <= last)
        index = index * (last + 1) + torch.floor(position + 0.5).clamp(0, last).to(torch.int64)
    flat_index = index.flatten(1).unsqueeze(1).expand(-1, image.shape[1], -1)
    values = image.flatten(2).gather(2, flat_index).reshape(image.shape[:2] + coordinates.shape[2:])
    if padding == "zeros":
        values = values * inside.unsqueeze(1).to(image.dtype)
    return values


def warp(image: torch.Tensor, ddf: torch.Tensor, mode: str = "bilinear", padding: str = "border") -> torch.Tensor:
    """Pull an image back along a displacement field: ``warped(x) = image(x + ddf(x))``.

    Args:
        image: ``(B, C, *image_size)``; may be larger or smaller than the field's grid, voxel 0 of both coincides.
        ddf: ``(B, D, *size)`` in voxels; channel *c* moves along array axis *c*.
        mode: see :py:func:`sample`.
        padding: see :py:func:`sample`.

    Returns:
        ``(B, C, *size)`` in the dtype of ``image``.
    """
    return sample(image, identity_grid(ddf.shape[2:], ddf) + ddf.to(torch.float32), mode, padding)
