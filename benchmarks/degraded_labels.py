# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Label maps as a segmentation network might make them: borders that waver, and parts of organs missing."""

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers import box_filter, pool_to_grid, upsample_ddf, warp

__all__ = ["degraded"]

CELL = 4  # voxels, along each axis, between the values of the noise


def degraded(
    label: torch.Tensor,
    generator: torch.Generator,
    waver: float = 0.6,
    missing: float = 0.3,
    radius: float = 0.4,
) -> torch.Tensor:
    """A label map whose borders have moved by a smooth random field and whose organs lack a part here and there.

    Args:
        label: ``(1, 1, *size)`` whole numbers, background 0.
        generator: of the noise and of the parts.
        waver: standard deviation of the borders' displacement along each axis, in voxels.
        missing: share of the organs that lack a part: a ball around one of their voxels becomes background.
        radius: of that ball, as a multiple of the edge of a cube of the organ's volume.

    Returns:
        Label map of the same shape and type.
    """
    result = warp(label, _noise(label, generator) * waver, mode="nearest")
    for organ in label.unique().tolist():
        if organ > 0 and torch.rand((), generator=generator) < missing:
            _remove_part(result, organ, radius, generator)
    return result


def _noise(label: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A smooth field ``(1, D, *size)`` of standard deviation 1."""
    axes = label.dim() - 2
    spacing = (CELL,) * axes
    cells = pool_to_grid(label.float(), spacing).shape[2:]
    coarse = box_filter(torch.randn((1, axes, *cells), generator=generator), (3,))
    noise = upsample_ddf(coarse, spacing, label.shape[2:])
    return noise / noise.std()


def _remove_part(label: torch.Tensor, organ: int, radius: float, generator: torch.Generator) -> None:
    voxels = (label[0, 0] == organ).nonzero()
    if len(voxels) == 0:
        return
    centre = voxels[torch.randint(len(voxels), (), generator=generator)]
    reach = radius * len(voxels) ** (1 / voxels.shape[1])
    inside = torch.linalg.vector_norm((voxels - centre).float(), dim=1) <= reach
    label[0, 0][tuple(voxels[inside].T)] = 0
