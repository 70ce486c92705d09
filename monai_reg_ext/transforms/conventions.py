# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Every change of unit, axis order, sign or grid that points, affines and displacement fields go through.

Inside the package a ``ddf`` is ``(3, I, J, K)``: voxels of the fixed grid, channel *c* moves along array axis *c*, and
``warped(x) = moving(x + ddf(x))``. An ``affine`` is ``(4, 4)`` and leads from voxel indices to millimetres RAS. All
other conventions (millimetres, LPS, ITK, Learn2Reg) exist only here.

Algebra of affines is float64; fields come back in the dtype of the field given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.ndimage
import torch

from monai_reg_ext.networks.layers.warp import sample

__all__ = [
    "affine_to_itk",
    "ddf_to_itk_field",
    "ddf_to_learn2reg",
    "ddf_to_mm",
    "grid_voxels",
    "itk_field_to_ddf",
    "itk_to_affine",
    "learn2reg_to_ddf",
    "lps_to_ras_affine",
    "lps_to_ras_points",
    "mm_to_ddf",
    "mm_to_voxel",
    "moving_voxels",
    "ras_to_lps_affine",
    "ras_to_lps_points",
    "resample_ddf",
    "total_ddf",
    "voxel_spacing",
    "voxel_to_mm",
    "voxel_to_voxel",
]


# --- points -----------------------------------------------------------------------------------------------------------


def voxel_to_mm(points_voxel: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """World coordinates ``(N, 3)`` in mm RAS, float64, of voxel indices ``(N, 3)``."""
    return _apply(_float64(affine), points_voxel)


def mm_to_voxel(points_mm: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Voxel indices ``(N, 3)``, float64, not rounded, of world coordinates ``(N, 3)`` in mm RAS."""
    return _apply(torch.linalg.inv(_float64(affine)), points_mm)


def ras_to_lps_points(points: torch.Tensor) -> torch.Tensor:
    """Points ``(N, 3)`` or vectors ``(..., 3)`` in mm LPS, given in mm RAS."""
    return points * points.new_tensor([-1.0, -1.0, 1.0])


def lps_to_ras_points(points: torch.Tensor) -> torch.Tensor:
    """Points ``(N, 3)`` or vectors ``(..., 3)`` in mm RAS, given in mm LPS."""
    return ras_to_lps_points(points)  # the reflection is its own inverse


# --- affines ----------------------------------------------------------------------------------------------------------


def ras_to_lps_affine(affine: torch.Tensor) -> torch.Tensor:
    """Voxel to mm LPS, float64, from voxel to mm RAS."""
    return torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)) @ _float64(affine)


def lps_to_ras_affine(affine: torch.Tensor) -> torch.Tensor:
    """Voxel to mm RAS, float64, from voxel to mm LPS."""
    return ras_to_lps_affine(affine)  # the reflection is its own inverse


def voxel_spacing(affine: torch.Tensor) -> torch.Tensor:
    """Voxel size in mm along array axes 0, 1, 2: the lengths of the affine's columns, ``(3,)`` float64."""
    return torch.linalg.vector_norm(_float64(affine)[:3, :3], dim=0)


def affine_to_itk(affine: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Spacing (3), origin (3) and direction (9, row by row) as ITK images take them, in mm LPS."""
    lps = ras_to_lps_affine(affine)
    spacing = voxel_spacing(lps)
    direction = lps[:3, :3] / spacing
    return tuple(spacing.tolist()), tuple(lps[:3, 3].tolist()), tuple(direction.flatten().tolist())


def itk_to_affine(spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]) -> torch.Tensor:
    """Affine, voxel to mm RAS, float64, from an ITK image's spacing, origin and direction."""
    lps = torch.eye(4, dtype=torch.float64)
    lps[:3, :3] = _float64(direction).reshape(3, 3) * _float64(spacing)
    lps[:3, 3] = _float64(origin)
    return lps_to_ras_affine(lps)


def voxel_to_voxel(
    affine: torch.Tensor, target_affine: torch.Tensor, initial: torch.Tensor | None = None
) -> torch.Tensor:
    """Matrix from voxel indices of one grid to voxel indices of another through physical space.

    Args:
        affine: of the grid the indices count in.
        target_affine: of the grid they are wanted in.
        initial: ``(4, 4)`` world to world, mm RAS, applied in between; ``None`` is the identity.

    Returns:
        ``(4, 4)`` float64. Entries that are integers but for rounding in headers and algebra (1e-6 in the linear part,
        1e-4 voxels in the shift) are integers exactly, so that equal, flipped or cropped grids map voxel onto voxel
        and the outermost ones do not fall outside by rounding.
    """
    world = _float64(affine) if initial is None else _float64(initial) @ _float64(affine)
    matrix = torch.linalg.solve(_float64(target_affine), world)
    tolerance = torch.tensor([1e-6, 1e-6, 1e-6, 1e-4], dtype=torch.float64)
    whole = matrix.round()
    return torch.where((matrix - whole).abs() < tolerance, whole, matrix)


# --- displacement fields: units, signs, axis order --------------------------------------------------------------------


def ddf_to_mm(ddf: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """World displacement ``(3, I, J, K)`` in mm RAS. Only the linear part acts: displacements are differences."""
    return _turn(_float64(affine)[:3, :3], ddf)


def mm_to_ddf(displacement_mm: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """``ddf`` from a world displacement ``(3, I, J, K)`` in mm RAS on the same grid."""
    return _turn(torch.linalg.inv(_float64(affine)[:3, :3]), displacement_mm)


def ddf_to_itk_field(ddf: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """ITK displacement field: vectors in mm LPS, ``(I, J, K, 3)``, axes in nibabel's order.

    SimpleITK's array of the same image is ``(K, J, I, 3)``: ``field.permute(2, 1, 0, 3).numpy()``. Its geometry is
    :py:func:`affine_to_itk`; ITK maps a point p of fixed space to ``p + field(p)`` in moving space, as we do.
    """
    return ras_to_lps_points(ddf_to_mm(ddf, affine).movedim(0, -1))


def itk_field_to_ddf(field: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """``ddf`` from an ITK displacement field ``(I, J, K, 3)`` in mm LPS; ``affine`` is the field's, in RAS."""
    return mm_to_ddf(lps_to_ras_points(field).movedim(-1, 0), affine)


def ddf_to_learn2reg(ddf: torch.Tensor) -> torch.Tensor:
    """Learn2Reg's array ``(I, J, K, 3)``: voxels, component *c* along array axis *c*."""
    return _plain(ddf).movedim(0, -1)


def learn2reg_to_ddf(displacement: torch.Tensor | np.ndarray, size: Sequence[int]) -> torch.Tensor:
    """``ddf`` ``(3, *size)``, float32, from any form of Learn2Reg's displacement files.

    Args:
        displacement: ``(*size, 3)`` (since 2022), ``(3, *size)`` (HippocampusMR 2020) or ``(3, *size / 2)`` (2020 and
            2021). Always in voxels of the full grid. The half form is enlarged by quadratic splines, as the challenge
            does.
        size: extent of the fixed image.

    Raises:
        ValueError: when the array has none of these shapes.
    """
    array = np.asarray(displacement, dtype=np.float32)
    size = tuple(size)
    half = tuple(extent // 2 for extent in size)
    if array.shape == (*size, 3):
        array = np.moveaxis(array, -1, 0)
    elif array.shape == (3, *half) and array.shape != (3, *size):
        array = np.stack([scipy.ndimage.zoom(component, np.divide(size, half), order=2) for component in array])
    elif array.shape != (3, *size):
        raise ValueError(
            f"a Learn2Reg displacement for a fixed image of {size} has shape {(*size, 3)}, {(3, *size)} or "
            f"{(3, *half)}, got {array.shape}. Is it the field of another fixed image?"
        )
    return torch.from_numpy(np.ascontiguousarray(array))


# --- displacement fields: grids ---------------------------------------------------------------------------------------


def grid_voxels(
    size: Sequence[int],
    matrix: torch.Tensor,
    ddf: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """``matrix @ (x + ddf(x))`` for every voxel x of a grid.

    Args:
        size: extent of the grid.
        matrix: ``(4, 4)`` from its voxels to others, e.g. of :py:func:`voxel_to_voxel`.
        ddf: ``(3, *size)`` in voxels of the grid; ``None`` is zero.
        dtype: of the result; sums are float64.
        device: of the result where no ddf is given.

    Returns:
        ``(3, *size)``. Memory: one float64 volume beside it.
    """
    return _affine_of_position_and_ddf(matrix, matrix, size, ddf, dtype, device)


def moving_voxels(
    ddf: torch.Tensor, fixed_affine: torch.Tensor, moving_affine: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Where in the moving image, in its own voxels, each fixed voxel is looked for.

    Args:
        ddf: ``(3, I, J, K)``, total displacement on the fixed grid.
        fixed_affine: of the fixed image.
        moving_affine: of the moving image, whatever its grid.
        dtype: of the result; float64 where a tie of nearest-neighbour rounding matters.

    Returns:
        ``(3, I, J, K)``. Memory: one float64 volume beside it.
    """
    matrix = voxel_to_voxel(fixed_affine, moving_affine)
    return grid_voxels(ddf.shape[1:], matrix, ddf, dtype)


def resample_ddf(
    ddf: torch.Tensor, affine: torch.Tensor, target_affine: torch.Tensor, target_size: Sequence[int]
) -> torch.Tensor:
    """The same displacement of physical space on another grid.

    Vectors are interpolated linearly, repeated beyond the border, and expressed in voxels of the target.

    Args:
        ddf: ``(3, I, J, K)`` on the grid of ``affine``.
        affine: of the grid the field lives on.
        target_affine: of the grid it is wanted on.
        target_size: extent of that grid.

    Returns:
        ``(3, *target_size)``; ``ddf`` itself when the grids are one.
    """
    ddf = _plain(ddf)
    matrix = voxel_to_voxel(target_affine, affine)
    if tuple(ddf.shape[1:]) == tuple(target_size) and _is_identity(matrix):
        return ddf
    positions = grid_voxels(target_size, matrix, device=ddf.device)
    return _turn(torch.linalg.inv(matrix[:3, :3]), sample(ddf[None], positions[None])[0])


def total_ddf(ddf: torch.Tensor, affine: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """Displacement that includes an initial alignment: ``affine @ (x + total(x)) = initial @ affine @ (x + ddf(x))``.

    Args:
        ddf: ``(3, I, J, K)`` on the fixed grid, found after the initial alignment.
        affine: of the fixed grid.
        initial: ``(4, 4)`` world to world, mm RAS: where in moving space a point of fixed space is looked for.

    Returns:
        ``(3, I, J, K)``; ``ddf`` itself for the identity.
    """
    ddf = _plain(ddf)
    matrix = voxel_to_voxel(affine, affine, initial)
    if _is_identity(matrix):
        return ddf
    return _affine_of_position_and_ddf(
        matrix - torch.eye(4, dtype=torch.float64), matrix, ddf.shape[1:], ddf, ddf.dtype, None
    )


# --- helpers ----------------------------------------------------------------------------------------------------------


def _affine_of_position_and_ddf(
    of_position: torch.Tensor,
    of_ddf: torch.Tensor,
    size: Sequence[int],
    ddf: torch.Tensor | None,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> torch.Tensor:
    """``of_position @ x + of_ddf[:3, :3] @ ddf(x)`` per channel, so that only one float64 volume exists at a time."""
    if ddf is not None:
        ddf = _plain(ddf)
        device = ddf.device
    i, j, k = (torch.arange(extent, dtype=torch.float64, device=device) for extent in size)
    result = torch.empty((3, *size), dtype=dtype, device=device)
    for channel, (row, ddf_row) in enumerate(zip(of_position.tolist()[:3], of_ddf.tolist()[:3], strict=True)):
        values = (row[0] * i)[:, None, None] + (row[1] * j)[:, None] + (row[2] * k + row[3])
        for axis, weight in enumerate(ddf_row[:3]):
            if ddf is not None and weight != 0:
                values.add_(ddf[axis], alpha=weight)
        result[channel] = values
    return result


def _float64(values: torch.Tensor | np.ndarray | Sequence) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


def _plain(field: torch.Tensor) -> torch.Tensor:
    # a MetaTensor would carry the affine of the grid it came from into results on another
    return field.as_subclass(torch.Tensor)


def _is_identity(matrix: torch.Tensor) -> bool:
    return torch.equal(matrix, torch.eye(4, dtype=matrix.dtype))


def _apply(matrix: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    points = torch.as_tensor(points, dtype=torch.float64)
    matrix = matrix.to(points.device)
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _turn(linear: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    field = _plain(field)
    return torch.tensordot(linear.to(field.device, field.dtype), field, dims=1)
