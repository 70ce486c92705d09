# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import math

import torch
from monai.data import MetaTensor

from monai_reg_ext.networks.blocks.linear_registration import LinearRegistration
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.transforms.conventions import grid_voxels, voxel_spacing, voxel_to_mm, voxel_to_voxel
from monai_reg_ext.transforms.fill_outside_mask import FillOutsideMask
from monai_reg_ext.transforms.normalize_robust import NormalizeRobust
from monai_reg_ext.transforms.padding_mask import PaddingMask
from monai_reg_ext.transforms.scan_extent import centre_mm, scan_extent_mm

__all__ = ["linear_alignment"]

LOGGER = logging.getLogger(__name__)
LINEAR_VOXELS = 300_000
LEAST_CUBES = 12.5


@torch.no_grad()
def linear_alignment(
    fixed: MetaTensor,
    moving: MetaTensor,
    kind: str = "affine",
    fixed_mask: MetaTensor | None = None,
    moving_mask: MetaTensor | None = None,
    pair: str = "",
) -> torch.Tensor:
    """Rigid or affine transform by what the images show, wherever their headers place them.

    Both are brought to cubes of one size, along their own axes, and given to :py:class:`LinearRegistration`. Places
    outside a mask, and padding around a CT that :py:func:`find_padding` finds, take the nearest value inside and do not
    count.

    Args:
        fixed: ``(1, I, J, K)``.
        moving: ``(1, I, J, K)``, of any grid, oblique or flipped. The headers agree on the body's orientation to within
            some 25 degrees; where it lies is not asked.
        kind: ``"rigid"`` or ``"affine"``.
        fixed_mask: as ``fixed``, not 0 where it counts.
        moving_mask: likewise.
        pair: name for the log and for errors.

    Returns:
        ``(4, 4)`` float64: a point p of fixed space is looked for at ``matrix @ p`` in moving space, mm RAS. The same
        images give the same matrix.

    Raises:
        ValueError: for a constant image, a mask that is empty or of another size, or a scan too thin for the cubes.
    """
    size_mm = _cube_mm(fixed, moving)
    affines, images, masks = [], [], []
    for side, scan, given in (("fixed", fixed, fixed_mask), ("moving", moving, moving_mask)):
        known = PaddingMask()(scan, given, f"{pair or 'pair'}, {side}")
        image, mask, affine = _cubes(NormalizeRobust()(scan, known), _counting(scan, known), size_mm)
        affines.append(affine)
        images.append(FillOutsideMask()(MetaTensor(image, affine=affine), mask).as_tensor()[None])
        masks.append(mask[None])
    try:
        directions = torch.linalg.solve(affines[1][:3, :3], affines[0][:3, :3])
        matrix = LinearRegistration(kind)(*images, *masks, directions[None])[0]
    except ValueError as error:
        message = f"{pair or 'pair'}: no {kind} alignment on cubes of {size_mm:.3g} mm. {error} Try initial='centres'."
        raise ValueError(message) from None
    start = affines[1] @ matrix @ torch.linalg.inv(affines[0])
    shift = voxel_to_mm(centre_mm(fixed)[None], start)[0] - centre_mm(fixed)
    LOGGER.info(
        "%s: the %s alignment turns by %.1f degrees and shifts the centre of the fixed scan by %s mm",
        pair or "pair",
        kind,
        _degrees(start),
        [round(part, 1) for part in shift.tolist()],
    )
    return start


def _degrees(matrix: torch.Tensor) -> float:
    turned = torch.linalg.svd(matrix[:3, :3])
    return math.degrees(math.acos(min(1.0, max(-1.0, ((turned.U @ turned.Vh).trace().item() - 1) / 2))))


def _cube_mm(fixed: MetaTensor, moving: MetaTensor) -> float:
    """Size of the cubes: about 300 000 in the fixed image, smaller ones where a scan is thin."""
    extents = scan_extent_mm(fixed), scan_extent_mm(moving)
    volume = max(extents[0].prod().item(), extents[1].prod().item() / 4)
    size = (volume / LINEAR_VOXELS) ** (1 / 3)
    thinnest = min(extent.min().item() for extent in extents)
    return max(size / 2, min(size, thinnest / LEAST_CUBES))


def _cubes(
    image: MetaTensor, counting: torch.Tensor, size_mm: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image and mask ``(1, I, J, K)`` on cubes along the image's own axes, and their affine.

    Means are over the voxels that count, so that nothing from beyond a mask's edge comes in.
    """
    affine = image.affine.to(torch.float64)
    steps = [max(1, int(size_mm / spacing + 0.01)) for spacing in voxel_spacing(affine).tolist()]
    sums = pool_to_grid(torch.stack([image.as_tensor() * counting, counting], 1), steps, compat=True)
    affine = affine @ _coarser(torch.tensor(steps, dtype=torch.float64))
    scale = size_mm / voxel_spacing(affine)
    size = [max(1, int(extent / step + 0.01)) for extent, step in zip(sums.shape[2:], scale.tolist(), strict=True)]
    cubes = affine @ _coarser(scale)
    voxels = grid_voxels(size, voxel_to_voxel(cubes, affine), device=image.device)
    total, share = sample(sums, voxels[None])[0].split(1)
    inside = (share > 0.5).to(share)
    return inside * total / share.clamp(min=0.5), inside, cubes


def _coarser(scale: torch.Tensor) -> torch.Tensor:
    """From voxels ``scale`` times as large, with the same outer corner, to voxels."""
    matrix = torch.diag(torch.cat([scale, scale.new_ones(1)]))
    matrix[:3, 3] = (scale - 1) / 2
    return matrix


def _counting(scan: MetaTensor, known: torch.Tensor | None) -> torch.Tensor:
    """``(1, I, J, K)`` float32, 1 or 0."""
    values = scan.as_tensor()
    if known is None:
        return torch.ones_like(values, dtype=torch.float32)
    return (known.as_subclass(torch.Tensor) != 0).to(values.device, torch.float32)
