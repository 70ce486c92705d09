# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import ImageMetaKey

from monai_reg_ext.transforms.conventions import mm_to_voxel, voxel_spacing, voxel_to_mm

__all__ = ["CheckPairD", "CheckPairDict", "CheckPaird"]

LOGGER = logging.getLogger(__name__)

SIDES = ("fixed", "moving")


class CheckPaird(Transform):
    """Refuse a loaded pair that cannot be registered, before any work is done; the item passes unchanged.

    Checked are: affine (finite, voxel size above zero, invertible), image (finite, not constant), label map and mask
    (on the grid of their image), mask (not empty), points (shape, finite, inside their image, at least half of them in
    its mask, as many fixed as moving). Fewer points outside a mask are a warning: some landmarks lie on its edge.

    Raises:
        ValueError: one line with the key, the file, what is wrong and what to do.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for side in SIDES:
            image = out[side]
            check_affine(_where(side, image), image.affine)
            check_intensities(_where(side, image), image)
            for key in (f"{side}_label", f"{side}_prediction", f"{side}_mask"):
                if key in out:
                    check_same_grid(_where(key, out[key]), out[key], image, side)
            if f"{side}_mask" in out and not out[f"{side}_mask"].any():
                where = _where(f"{side}_mask", out[f"{side}_mask"])
                raise ValueError(f"{where}: the mask is empty. Give one with voxels above 0, or none.")
            if f"{side}_points" in out:
                check_points(f"{side}_points", out[f"{side}_points"], image, out.get(f"{side}_mask"))
        check_correspondence(out)
        return out


def check_affine(where: str, affine: torch.Tensor) -> None:
    """Refuse an affine that is not finite, has a voxel size of zero, or squeezes space into a plane."""
    if not torch.isfinite(affine).all():
        raise ValueError(f"{where}: the affine has NaN or infinite entries. Correct the header.")
    spacing = voxel_spacing(affine)
    if not (spacing > 0).all():
        raise ValueError(f"{where}: voxel size must be above 0 mm, the header says {_rounded(spacing)}. Correct it.")
    if torch.linalg.det(affine[:3, :3].to(torch.float64) / spacing).abs() < 1e-3:
        raise ValueError(f"{where}: the affine is singular, two axes point the same way. Correct the header.")


def check_intensities(where: str, image: MetaTensor) -> None:
    """Refuse an image with voxels that are not finite, or without any contrast."""
    values = image.as_tensor()
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(f"{where}: {bad} voxels are NaN or infinite. Replace them, e.g. by the background's value.")
    low, high = torch.aminmax(values)
    if low == high:
        raise ValueError(f"{where}: the image is constant ({low.item():g} everywhere). Is it the right file?")


def check_same_grid(where: str, volume: MetaTensor, image: MetaTensor, side: str) -> None:
    """Refuse a label map or mask of another size, or whose corners lie over a tenth of a voxel from the image's."""
    if volume.shape[1:] != image.shape[1:]:
        raise ValueError(
            f"{where}: has {tuple(volume.shape[1:])} voxels, its image {side} {tuple(image.shape[1:])}. "
            "Resample it to the image (nearest neighbour)."
        )
    last = torch.tensor(image.shape[1:], dtype=torch.float64) - 1
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3) * last
    apart = (voxel_to_mm(corners, volume.affine) - voxel_to_mm(corners, image.affine)).norm(dim=1).max().item()
    if not apart < 0.1 * voxel_spacing(image.affine).min().item():
        raise ValueError(
            f"{where}: lies elsewhere in space than its image {side}, corners are up to {apart:.3g} mm apart. "
            "Resample it to the image (nearest neighbour) or correct its header."
        )


def check_points(key: str, points: torch.Tensor, image: MetaTensor, mask: MetaTensor | None = None) -> None:
    """Refuse points that are not ``(N, 3)``, not finite, outside the volume of their image, or most outside its mask.

    Args:
        key: their name in messages.
        points: ``(N, 3)`` mm RAS.
        image: ``(C, I, J, K)`` with its affine.
        mask: ``(1, I, J, K)`` on the grid of the image. A few points outside are a warning.

    Raises:
        ValueError: one line with the key, what is wrong and what to do.
    """
    if points.ndim != 2 or points.shape[1] != 3 or points.shape[0] == 0:
        raise ValueError(f"{key}: needs points of shape (N, 3) in mm RAS, got {tuple(points.shape)}.")
    if not torch.isfinite(points).all():
        raise ValueError(f"{key}: has NaN or infinite coordinates. Remove these points from both sides.")
    outside = points_outside(points, image)
    if outside:
        raise ValueError(
            f"{key}: {outside} of {len(points)} points lie outside their image. Is their space right (voxel, ras or "
            "lps) and the voxel size in the image's header?"
        )
    unmasked = 0 if mask is None else int((~_are_in_mask(points, mask)).sum())
    if 2 * unmasked > len(points):
        raise ValueError(
            f"{key}: {unmasked} of {len(points)} points lie outside the mask of their image. Do mask and points "
            "belong to it, and is the points' space right (voxel, ras or lps)?"
        )
    if unmasked:
        LOGGER.warning("%s: %d of %d points lie outside the mask of their image.", key, unmasked, len(points))


def _are_in_mask(points_mm: torch.Tensor, mask: MetaTensor) -> torch.Tensor:
    """Which points lie in a voxel of the mask, ``(N,)`` bool."""
    voxel = mm_to_voxel(points_mm, mask.affine).round().long().to(mask.device)
    last = torch.tensor(mask.shape[1:], device=mask.device) - 1
    return mask.as_tensor()[(0, *voxel.clamp(min=torch.zeros_like(last), max=last).unbind(1))] > 0


def points_outside(points_mm: torch.Tensor, image: MetaTensor) -> int:
    """How many points ``(N, 3)``, mm RAS, lie outside the volume that the image's voxels fill."""
    return int(are_outside(points_mm, image).sum())


def are_outside(points_mm: torch.Tensor, image: MetaTensor) -> torch.Tensor:
    """Which points ``(N, 3)``, mm RAS, lie outside the volume that the image's voxels fill, ``(N,)`` bool."""
    voxel = mm_to_voxel(points_mm, image.affine)
    end = torch.tensor(image.shape[1:], dtype=torch.float64, device=voxel.device) - 0.5
    tolerance = 1e-3  # voxels: coordinates in text files are rounded
    return ((voxel < -0.5 - tolerance) | (voxel > end + tolerance)).any(dim=1)


def check_correspondence(data: Mapping[Hashable, Any]) -> None:
    """Refuse point sets whose rows cannot correspond."""
    if "fixed_points" not in data or "moving_points" not in data:
        return
    fixed, moving = len(data["fixed_points"]), len(data["moving_points"])
    if fixed != moving:
        raise ValueError(f"row i of fixed_points and of moving_points must be one landmark, got {fixed} and {moving}.")


def _where(key: str, volume: MetaTensor) -> str:
    name = volume.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")
    return f"{key} ({name})" if name else key


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


CheckPairD = CheckPairDict = CheckPaird
