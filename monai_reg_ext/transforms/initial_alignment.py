# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms.conventions import voxel_to_mm
from monai_reg_ext.transforms.linear_alignment import linear_alignment
from monai_reg_ext.transforms.normalize_robust import NormalizeRobust
from monai_reg_ext.transforms.padding_mask import PaddingMask
from monai_reg_ext.transforms.scan_extent import centre_mm, inside_volume, lattice_mm, scan_extent_mm
from monai_reg_ext.transforms.spatial_displacement import SpatialDisplacement
from monai_reg_ext.transforms.transform_files import read_matrix_or_field

__all__ = ["Initial", "centre_alignment", "initial_alignment", "mass_alignment", "overlap_fraction"]

LOGGER = logging.getLogger(__name__)
LINEAR = ("rigid", "affine")
MODES = ("auto", "headers", "centres", "mass", *LINEAR)

Initial = str | Path | torch.Tensor | np.ndarray | Sequence | SpatialDisplacement


def initial_alignment(
    fixed: MetaTensor,
    moving: MetaTensor,
    initial: Initial = "auto",
    min_overlap: float = 0.25,
    pair: str = "",
    fixed_mask: MetaTensor | None = None,
    moving_mask: MetaTensor | None = None,
) -> torch.Tensor | SpatialDisplacement:
    """World to world transform with which a registration starts.

    Args:
        fixed: ``(1, I, J, K)``; only its grid counts, but for ``"mass"``, ``"rigid"`` and ``"affine"``.
        moving: ``(1, I, J, K)``, likewise.
        initial: ``"headers"`` (identity), ``"centres"`` (geometric centres of the volumes brought together), ``"auto"``
            (headers, but centres when they overlap less than ``min_overlap``; the log says so), ``"mass"`` (see
            :py:func:`mass_alignment`), ``"rigid"`` or ``"affine"`` (found by :py:func:`linear_alignment`); or what is
            given from elsewhere: a ``(4, 4)`` matrix from fixed to moving space, mm RAS, a
            :py:class:`SpatialDisplacement`, or transform files, one or several, as :py:func:`read_transform` takes
            them.
        min_overlap: fraction of the smaller volume.
        pair: name for the log and for errors.
        fixed_mask: where the fixed image counts, for ``"mass"``, ``"rigid"`` and ``"affine"``.
        moving_mask: likewise.

    Returns:
        ``(4, 4)`` float64: a point p of fixed space is looked for at ``initial @ p`` in moving space; or a field, where
        one was given.

    Raises:
        ValueError: for anything else as ``initial``, a field that lies elsewhere than the fixed image, or when the
            volumes do not overlap after it; as :py:func:`linear_alignment` and :py:func:`read_transform`.
        FileNotFoundError: when a transform file does not exist.
    """
    start = _start(fixed, moving, initial, pair, fixed_mask, moving_mask)
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
        given = initial if isinstance(initial, (str, Path)) else "given transform"
        raise ValueError(
            f"{pair or 'pair'}: fixed and moving do not overlap in space after the initial alignment ({given}). Start "
            "with initial='centres', or give a transform from fixed to moving space: a 4x4 matrix in mm RAS or a file."
        )
    return start


def centre_alignment(fixed: MetaTensor, moving: MetaTensor) -> torch.Tensor:
    """Shift ``(4, 4)``, float64, that takes the centre of the fixed volume to the centre of the moving volume."""
    return _shift(centre_mm(moving) - centre_mm(fixed))


def mass_alignment(
    fixed: MetaTensor,
    moving: MetaTensor,
    fixed_mask: MetaTensor | None = None,
    moving_mask: MetaTensor | None = None,
) -> torch.Tensor:
    """Shift ``(4, 4)``, float64, that takes the fixed image's centre of mass to the moving image's.

    A voxel weighs by how much brighter it is than the mean, inside the mask and beside padding, so that air and
    background weigh nothing. It serves bodies of one kind that lie off-centre in their scans, shown whole in both.

    Args:
        fixed: ``(1, I, J, K)``.
        moving: ``(1, I, J, K)``, of any grid.
        fixed_mask: as ``fixed``, not 0 where it counts.
        moving_mask: likewise.

    Raises:
        ValueError: for a constant image, or a mask that is empty or of another size.
    """
    return _shift(_mass_centre_mm(moving, moving_mask) - _mass_centre_mm(fixed, fixed_mask))


def overlap_fraction(fixed: MetaTensor, moving: MetaTensor, initial: torch.Tensor | SpatialDisplacement) -> float:
    """Part of the smaller volume that lies inside the other, 0 to 1, measured at 32 x 32 x 32 points of it.

    With a field it is the part of the fixed volume, as far as the field's grid covers it, that lands inside the moving.

    Raises:
        ValueError: when the field covers no part of the fixed image.
    """
    if isinstance(initial, SpatialDisplacement):
        points = lattice_mm(fixed)
        covered = inside_volume(points, initial.affine, initial.size)
        if not covered.any():
            raise ValueError(
                "the initial displacement field lies elsewhere in space than the fixed image. Is it the field of "
                "another image, or of the other direction?"
            )
        return _part_inside(initial.warp_points(points[covered]), moving)
    if scan_extent_mm(fixed).prod() <= scan_extent_mm(moving).prod():
        return _part_inside(voxel_to_mm(lattice_mm(fixed), initial), moving)
    return _part_inside(voxel_to_mm(lattice_mm(moving), torch.linalg.inv(initial)), fixed)


def _start(
    fixed: MetaTensor,
    moving: MetaTensor,
    initial: Initial,
    pair: str,
    fixed_mask: MetaTensor | None,
    moving_mask: MetaTensor | None,
) -> torch.Tensor | SpatialDisplacement:
    if isinstance(initial, str) and initial in MODES:
        if initial in LINEAR:
            return linear_alignment(fixed, moving, initial, fixed_mask, moving_mask, pair)
        if initial == "centres":
            return centre_alignment(fixed, moving)
        if initial == "mass":
            return mass_alignment(fixed, moving, fixed_mask, moving_mask)
        return torch.eye(4, dtype=torch.float64)
    if isinstance(initial, SpatialDisplacement):
        return initial
    if _names_files(initial):
        given = read_matrix_or_field(initial, fixed)
        return given if isinstance(given, SpatialDisplacement) else _checked_matrix(given)
    return _checked_matrix(initial)


def _names_files(initial: Initial) -> bool:
    if isinstance(initial, str):
        if not Path(initial).suffix:
            raise ValueError(f"initial must be one of {MODES}, a 4x4 matrix or a transform file, got {initial!r}.")
        return True
    if isinstance(initial, (list, tuple)):
        return bool(initial) and all(isinstance(part, (str, Path)) for part in initial)
    return isinstance(initial, Path)


def _shift(vector_mm: torch.Tensor) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = vector_mm
    return matrix


def _mass_centre_mm(scan: MetaTensor, mask: torch.Tensor | None) -> torch.Tensor:
    known = PaddingMask()(scan, mask)
    values = NormalizeRobust()(scan, known).as_subclass(torch.Tensor)[0].double()
    inside = torch.ones_like(values) if known is None else (known.as_subclass(torch.Tensor)[0] != 0).to(values)
    mean = (values * inside).sum() / inside.sum()
    weight = (values - mean).clamp(min=0) * inside
    centre = []
    for axis in range(3):
        along = weight.sum([other for other in range(3) if other != axis])
        centre.append((along * torch.arange(len(along)).to(along)).sum() / along.sum())
    return voxel_to_mm(torch.stack(centre)[None].cpu(), scan.affine)[0]


def _part_inside(points_mm: torch.Tensor, image: MetaTensor) -> float:
    return inside_volume(points_mm, image.affine, tuple(image.shape[1:])).to(torch.float64).mean().item()


def _checked_matrix(initial: torch.Tensor | np.ndarray | Sequence) -> torch.Tensor:
    try:
        matrix = torch.as_tensor(np.asarray(initial, dtype=np.float64))
    except (TypeError, ValueError):
        matrix = torch.empty(0)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    if (
        matrix.shape != (4, 4)
        or not torch.isfinite(matrix).all()
        or not torch.equal(matrix[3], bottom)
        or torch.linalg.det(matrix[:3, :3]).abs() < 1e-6
    ):
        raise ValueError(
            "initial must be an invertible 4x4 matrix with last row 0 0 0 1, from fixed to moving space in mm RAS, or "
            f"transform files; got {initial.tolist() if hasattr(initial, 'tolist') else initial}."
        )
    return matrix
