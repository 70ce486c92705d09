# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import look_up_option
from scipy.ndimage import map_coordinates

from monai_reg_ext.metrics.pair_metric import PairMetric

__all__ = ["TREMetric", "compute_learn2reg_tre", "compute_tre"]

SPLINE_ORDER = {"linear": 1, "cubic": 3}


def compute_tre(
    ddf: torch.Tensor,
    affine: torch.Tensor,
    fixed_points_mm: torch.Tensor,
    moving_points_mm: torch.Tensor,
    interpolation: str = "linear",
    snap_affine: torch.Tensor | None = None,
) -> torch.Tensor:
    """Target registration error of corresponding points in physical space.

    A fixed point is moved by the displacement at its place, and its distance to the moving point is the error. As
    ``ddf`` counts voxels of the fixed grid, one affine does for both images: voxel *x* of the fixed image belongs to
    ``affine @ (x + ddf(x))`` of the moving one, whatever grid that lies on.

    Args:
        ddf: ``(3, I, J, K)`` in voxels of the fixed grid.
        affine: ``(4, 4)``, voxels of the fixed grid to world mm.
        fixed_points_mm: ``(N, 3)``, world mm. The outermost voxels reach half a voxel beyond their centres.
        moving_points_mm: ``(N, 3)``, world mm, row by row the same places.
        interpolation: of the field between voxels, ``"linear"`` or ``"cubic"``.
        snap_affine: ``(4, 4)``, voxels of the moving image to world mm: a moved point goes to the nearest of their
            centres before its distance is taken, as published figures on DIR-Lab's landmarks have it, which lie at
            centres (half way between two it goes to the higher index). By default it stays where it is.

    Returns:
        ``(N,)`` float64, mm, on the CPU.

    Raises:
        ValueError: when the two point sets do not correspond or points lie outside the fixed image, where the field
            says nothing; for an unknown interpolation.
    """
    fixed_mm, moving_mm = _corresponding(fixed_points_mm, moving_points_mm)
    affine = np.asarray(torch.as_tensor(affine).cpu(), dtype=np.float64)
    points_voxel = _to_voxel(fixed_mm, affine)
    last = np.array(ddf.shape[1:]) - 1
    outside = ~((points_voxel >= -0.5) & (points_voxel <= last + 0.5)).all(axis=1)
    if outside.any():
        raise ValueError(
            f"{outside.sum()} of {len(outside)} fixed points lie outside the fixed image {tuple(ddf.shape[1:])}, the "
            f"first is row {outside.argmax()} at voxel {points_voxel[outside.argmax()].round(1).tolist()}. Points must "
            "be world mm (RAS) of the fixed image; check units and axes, or leave out points that it does not show."
        )
    displacement = _displacement_at(ddf, points_voxel.clip(0, last), interpolation)
    moved_mm = _to_mm(points_voxel + displacement, affine)
    if snap_affine is not None:
        moving_affine = np.asarray(torch.as_tensor(snap_affine).cpu(), dtype=np.float64)
        moved_mm = _to_mm(np.floor(_to_voxel(moved_mm, moving_affine) + 0.5), moving_affine)
    return torch.from_numpy(np.linalg.norm(moved_mm - moving_mm, axis=1))


def compute_learn2reg_tre(
    ddf: torch.Tensor,
    fixed_points_voxel: torch.Tensor,
    moving_points_voxel: torch.Tensor,
    moving_spacing: Sequence[float],
) -> torch.Tensor:
    """Target registration error as Learn2Reg's evaluation takes it, in voxels times the spacing of the moving image.

    The displacement is interpolated by cubic splines; points outside the grid are not moved.

    Args:
        ddf: ``(3, I, J, K)`` in voxels.
        fixed_points_voxel: ``(N, 3)``, voxel coordinates on the fixed grid.
        moving_points_voxel: ``(N, 3)``, voxel coordinates on the moving grid.
        moving_spacing: of the moving image, mm per voxel.

    Returns:
        ``(N,)`` float64, mm, on the CPU.

    Raises:
        ValueError: when the two point sets do not correspond.
    """
    fixed, moving = _corresponding(fixed_points_voxel, moving_points_voxel)
    moved = fixed + _displacement_at(ddf, fixed, "cubic")
    return torch.from_numpy(np.linalg.norm((moved - moving) * np.asarray(moving_spacing, dtype=np.float64), axis=1))


def _corresponding(fixed_points: torch.Tensor, moving_points: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    if fixed_points.shape != moving_points.shape or fixed_points.shape[1:] != (3,):
        raise ValueError(
            "TRE needs corresponding points, two sets (N, 3) with the same N, got fixed "
            f"{tuple(fixed_points.shape)} and moving {tuple(moving_points.shape)}."
        )
    return tuple(torch.as_tensor(points).cpu().numpy().astype(np.float64) for points in (fixed_points, moving_points))


def _to_voxel(points_mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return (points_mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T


def _to_mm(points_voxel: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return points_voxel @ affine[:3, :3].T + affine[:3, 3]


def _displacement_at(ddf: torch.Tensor, points_voxel: np.ndarray, interpolation: str) -> np.ndarray:
    order = look_up_option(interpolation, SPLINE_ORDER)
    components = [component.double().cpu().numpy() for component in ddf.detach()]
    return np.stack([map_coordinates(values, points_voxel.T, order=order) for values in components], axis=1)


class TREMetric(PairMetric):
    """Mean target registration error of each pair in mm, and of all pairs; see :py:func:`compute_tre`.

    ``metric(y_pred=[ddf], y=[moving_points_mm], fixed_points_mm=[fixed_points_mm], affine=[affine])``

    Args:
        interpolation: of the field between voxels, ``"linear"`` or ``"cubic"``.
    """

    def __init__(self, interpolation: str = "linear") -> None:
        super().__init__()
        self.interpolation = interpolation

    def compute_pair(
        self, y_pred: torch.Tensor, y: torch.Tensor, fixed_points_mm: torch.Tensor, affine: torch.Tensor
    ) -> torch.Tensor:
        return compute_tre(y_pred, affine, fixed_points_mm, y, self.interpolation).mean()
