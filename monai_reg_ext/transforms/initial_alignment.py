# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging

import numpy as np
import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms.conventions import mm_to_voxel, voxel_spacing, voxel_to_mm

__all__ = ["centre_alignment", "initial_alignment", "overlap_fraction"]

LOGGER = logging.getLogger(__name__)
MODES = ("auto", "headers", "centres")


def initial_alignment(
    fixed: MetaTensor,
    moving: MetaTensor,
    initial: str | torch.Tensor | np.ndarray | list = "auto",
    min_overlap: float = 0.25,
    pair: str = "",
) -> torch.Tensor:
    """World to world transform with which a registration starts.

    Args:
        fixed: ``(1, I, J, K)``; only its grid counts.
        moving: ``(1, I, J, K)``; only its grid counts.
        initial: ``"headers"`` (identity), ``"centres"`` (geometric centres of the volumes brought together), ``"auto"``
            (headers, but centres when they overlap less than ``min_overlap``; the log says so), or a ``(4, 4)`` matrix
            from fixed to moving space, mm RAS.
        min_overlap: fraction of the smaller volume.
        pair: name for the log and for errors.

    Returns:
        ``(4, 4)`` float64: a point p of fixed space is looked for at ``initial @ p`` in moving space.

    Raises:
        ValueError: for anything else as ``initial``, or when the volumes do not overlap after it.
    """
    identity = torch.eye(4, dtype=torch.float64)
    if isinstance(initial, str):
        if initial not in MODES:
            raise ValueError(f"initial must be one of {MODES} or a 4x4 matrix, got {initial!r}.")
        if initial == "centres":
            return centre_alignment(fixed, moving)
        start = identity
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


def overlap_fraction(fixed: MetaTensor, moving: MetaTensor, initial: torch.Tensor) -> float:
    """Part of the smaller volume that lies inside the other, 0 to 1, measured at 32 x 32 x 32 points of it."""
    if _volume_mm3(fixed) <= _volume_mm3(moving):
        return _inside(voxel_to_mm(_lattice(fixed), initial @ fixed.affine.to(torch.float64)), moving)
    to_fixed = torch.linalg.inv(initial)
    return _inside(voxel_to_mm(_lattice(moving), to_fixed @ moving.affine.to(torch.float64)), fixed)


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
