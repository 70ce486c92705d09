# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from monai.data import MetaTensor

from monai_reg_ext.networks.blocks.linear_registration import LinearRegistration
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.transforms.conventions import grid_voxels, mm_to_voxel, voxel_spacing, voxel_to_mm, voxel_to_voxel
from monai_reg_ext.transforms.fill_outside_mask import FillOutsideMask
from monai_reg_ext.transforms.normalize_robust import NormalizeRobust

__all__ = ["centre_alignment", "initial_alignment", "linear_alignment", "overlap_fraction"]

LOGGER = logging.getLogger(__name__)
LINEAR = ("rigid", "affine")
MODES = ("auto", "headers", "centres", *LINEAR)
LINEAR_VOXELS = 300_000
LEAST_CUBES = 12.5
PADDING_GAP = 0.2


def initial_alignment(
    fixed: MetaTensor,
    moving: MetaTensor,
    initial: str | torch.Tensor | np.ndarray | list = "auto",
    min_overlap: float = 0.25,
    pair: str = "",
    fixed_mask: MetaTensor | None = None,
    moving_mask: MetaTensor | None = None,
) -> torch.Tensor:
    """World to world transform with which a registration starts.

    Args:
        fixed: ``(1, I, J, K)``; only its grid counts, but for ``"rigid"`` and ``"affine"``.
        moving: ``(1, I, J, K)``, likewise.
        initial: ``"headers"`` (identity), ``"centres"`` (geometric centres of the volumes brought together), ``"auto"``
            (headers, but centres when they overlap less than ``min_overlap``; the log says so), ``"rigid"`` or
            ``"affine"`` (found by :py:func:`linear_alignment`), or a ``(4, 4)`` matrix from fixed to moving space, mm
            RAS.
        min_overlap: fraction of the smaller volume.
        pair: name for the log and for errors.
        fixed_mask: where the fixed image counts, for ``"rigid"`` and ``"affine"``.
        moving_mask: likewise.

    Returns:
        ``(4, 4)`` float64: a point p of fixed space is looked for at ``initial @ p`` in moving space.

    Raises:
        ValueError: for anything else as ``initial``, or when the volumes do not overlap after it; as
            :py:func:`linear_alignment`.
    """
    if isinstance(initial, str):
        if initial not in MODES:
            raise ValueError(f"initial must be one of {MODES} or a 4x4 matrix, got {initial!r}.")
        if initial == "centres":
            return centre_alignment(fixed, moving)
        if initial in LINEAR:
            start = linear_alignment(fixed, moving, initial, fixed_mask, moving_mask, pair)
        else:
            start = torch.eye(4, dtype=torch.float64)
    else:
        start = _checked_matrix(initial)

    overlap = overlap_fraction(fixed, moving, start)
    if isinstance(initial, str) and initial == "auto" and overlap < min_overlap:
        start = centre_alignment(fixed, moving)
        LOGGER.warning(
            "%s: by their headers fixed and moving overlap by %.0f %% of the smaller one, less than %.0f %%; starting "
            "with their centres brought together, a shift of %s mm",
            pair or "pair",
            100 * overlap,
            100 * min_overlap,
            [round(shift, 1) for shift in start[:3, 3].tolist()],
        )
    elif overlap == 0:
        raise ValueError(
            f"{pair or 'pair'}: fixed and moving do not overlap in space after the initial alignment "
            f"({initial if isinstance(initial, str) else 'given matrix'}). Start with initial='centres', or give a 4x4 "
            "matrix from fixed to moving space in mm RAS."
        )
    return start


def centre_alignment(fixed: MetaTensor, moving: MetaTensor) -> torch.Tensor:
    """Shift ``(4, 4)``, float64, that takes the centre of the fixed volume to the centre of the moving volume."""
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = _centre_mm(moving) - _centre_mm(fixed)
    return shift


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
    outside a mask, and padding far below everything else such as -2048 around a CT, take the nearest value inside and
    do not count.

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
    for scan, given in ((fixed, fixed_mask), (moving, moving_mask)):
        image, mask, affine = _cubes(NormalizeRobust()(scan), _counting(scan, given), size_mm)
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
    shift = voxel_to_mm(_centre_mm(fixed)[None], start)[0] - _centre_mm(fixed)
    LOGGER.info(
        "%s: the %s alignment turns by %.1f degrees and shifts the centre of the fixed scan by %s mm",
        pair or "pair",
        kind,
        _degrees(start),
        [round(part, 1) for part in shift.tolist()],
    )
    return start


def overlap_fraction(fixed: MetaTensor, moving: MetaTensor, initial: torch.Tensor) -> float:
    """Part of the smaller volume that lies inside the other, 0 to 1, measured at 32 x 32 x 32 points of it."""
    if _volume_mm3(fixed) <= _volume_mm3(moving):
        return _inside(voxel_to_mm(_lattice(fixed), initial @ fixed.affine.to(torch.float64)), moving)
    to_fixed = torch.linalg.inv(initial)
    return _inside(voxel_to_mm(_lattice(moving), to_fixed @ moving.affine.to(torch.float64)), fixed)


def _degrees(matrix: torch.Tensor) -> float:
    turned = torch.linalg.svd(matrix[:3, :3])
    return math.degrees(math.acos(min(1.0, max(-1.0, ((turned.U @ turned.Vh).trace().item() - 1) / 2))))


def _cube_mm(fixed: MetaTensor, moving: MetaTensor) -> float:
    """Size of the cubes: about 300 000 in the fixed image, smaller ones where a scan is thin."""
    volume = max(_volume_mm3(fixed), _volume_mm3(moving) / 4)
    size = (volume / LINEAR_VOXELS) ** (1 / 3)
    thinnest = min((voxel_spacing(scan.affine) * _size(scan)).min().item() for scan in (fixed, moving))
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


def _counting(scan: MetaTensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Where a scan counts, ``(1, I, J, K)`` float32, 1 or 0: inside its mask and not in its padding.

    Padding are the voxels at the minimum, where nothing else comes near it.
    """
    values = scan.as_tensor()
    if mask is None:
        counting = torch.ones_like(values, dtype=torch.float32)
    elif mask.shape == scan.shape:
        counting = torch.as_tensor(mask != 0).as_subclass(torch.Tensor).to(values.device, torch.float32)
    else:
        raise ValueError(f"a mask for a scan {tuple(scan.shape)} has its shape, got {tuple(mask.shape)}.")
    above = values > values.min()
    lowest, highest = (limit.item() for limit in torch.aminmax(values[above]))
    padded = lowest < highest and lowest - values.min().item() > PADDING_GAP * (highest - lowest)
    return counting * above if padded else counting


def _inside(points_mm: torch.Tensor, image: MetaTensor) -> float:
    voxel = mm_to_voxel(points_mm, image.affine)
    inside = (voxel >= -0.5) & (voxel <= _size(image) - 0.5)
    return inside.all(dim=1).to(torch.float64).mean().item()


def _lattice(image: MetaTensor, points_per_axis: int = 32) -> torch.Tensor:
    parts = (torch.arange(points_per_axis, dtype=torch.float64) + 0.5) / points_per_axis
    return torch.cartesian_prod(parts, parts, parts) * _size(image) - 0.5


def _centre_mm(image: MetaTensor) -> torch.Tensor:
    return voxel_to_mm((_size(image)[None] - 1) / 2, image.affine)[0]


def _volume_mm3(image: MetaTensor) -> float:
    return (voxel_spacing(image.affine) * _size(image)).prod().item()


def _size(image: MetaTensor) -> torch.Tensor:
    return torch.tensor(image.shape[1:], dtype=torch.float64)


def _checked_matrix(initial: torch.Tensor | np.ndarray | list) -> torch.Tensor:
    matrix = torch.as_tensor(np.asarray(initial), dtype=torch.float64)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    if (
        matrix.shape != (4, 4)
        or not torch.isfinite(matrix).all()
        or not torch.equal(matrix[3], bottom)
        or torch.linalg.det(matrix[:3, :3]).abs() < 1e-6
    ):
        raise ValueError(
            "initial must be an invertible 4x4 matrix with last row 0 0 0 1, from fixed to moving space in mm RAS, "
            f"got {matrix.tolist()}."
        )
    return matrix
