# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ImageMetaKey, ensure_tuple, ensure_tuple_rep

from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.transforms.conventions import grid_voxels, moving_voxels, voxel_spacing, voxel_to_voxel
from monai_reg_ext.transforms.initial_alignment import Initial, initial_alignment
from monai_reg_ext.transforms.spatial_displacement import SpatialDisplacement

__all__ = ["ResampleToFixed", "ResampleToFixedD", "ResampleToFixedDict", "ResampleToFixedd"]

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
ALIASING_RATIO = 1.5
AUTO, NONE = "auto", "none"
AUTO_ANISOTROPY = 1.5
AUTO_VOXELS = 2**24
LEAST_SHARE = 0.01  # of voxels inside a mask, from which their mean is taken


class ResampleToFixed(Transform):
    """Copies of a fixed and a moving image on one working grid, and the transform between their worlds.

    The working grid is the fixed image's, or with ``spacing`` one of that voxel size with the same directions, outer
    corner and (up to one voxel more) extent. Moving is resampled onto it through physical space after the initial
    alignment, once. Axes that become coarser by more than 1.5 are smoothed first, to the width of the new voxels. With
    a mask, values inside it are means over voxels inside it, so that nothing from beyond its edge comes in.

    Args:
        spacing: voxel size of the working grid, mm: one number, three, or ``None`` or ``"none"`` for the fixed image's
            own (a bundle's command line passes no ``None``). ``"auto"`` keeps the fixed image's grid unless its voxels
            are more than 1.5 times longer than wide, which become cubes of the same volume, or more than 16 million,
            which become so large that no more are left.
        initial, min_overlap: see :py:func:`initial_alignment`.
        outside: intensity beyond the moving image. ``None`` repeats its border, which puts no false edge at the end of
            the field of view into descriptors such as MIND; a number suits features that know background.

    Raises:
        ValueError: for a spacing that is not positive, and as :py:func:`initial_alignment`.
    """

    def __init__(
        self,
        spacing: float | Sequence[float] | str | None = None,
        initial: Initial = "auto",
        min_overlap: float = 0.25,
        outside: float | None = None,
    ) -> None:
        self.spacing = None if spacing == NONE else spacing
        if self.spacing is not None and self.spacing != AUTO:
            self.spacing = ensure_tuple_rep(spacing, 3)
        if isinstance(self.spacing, tuple) and not all(_is_positive(size) for size in self.spacing):
            raise ValueError(f"spacing must be {AUTO!r}, {NONE!r}, or above 0 mm along every axis, got {spacing!r}.")
        self.initial = initial
        self.min_overlap = min_overlap
        self.outside = outside

    def __call__(
        self,
        fixed: MetaTensor,
        moving: MetaTensor,
        fixed_mask: MetaTensor | None = None,
        moving_mask: MetaTensor | None = None,
    ) -> tuple[MetaTensor, MetaTensor, torch.Tensor | SpatialDisplacement]:
        """Fixed and moving ``(1, I, J, K)`` on the working grid, and ``initial``: ``(4, 4)`` float64, or a field."""
        initial = self.alignment(fixed, moving, "", fixed_mask, moving_mask)
        size, affine = self.working_grid(fixed)
        return (
            self.intensities(fixed, size, affine, mask=fixed_mask),
            self.intensities(moving, size, affine, initial, moving_mask),
            initial,
        )

    def alignment(
        self,
        fixed: MetaTensor,
        moving: MetaTensor,
        pair: str = "",
        fixed_mask: MetaTensor | None = None,
        moving_mask: MetaTensor | None = None,
    ) -> torch.Tensor | SpatialDisplacement:
        """Transform from fixed to moving space, see :py:func:`initial_alignment`."""
        return initial_alignment(fixed, moving, self.initial, self.min_overlap, pair, fixed_mask, moving_mask)

    def working_grid(self, fixed: MetaTensor) -> tuple[tuple[int, ...], torch.Tensor]:
        """Extent and affine of the working grid; its first voxel's outer corner is the fixed image's."""
        affine = fixed.affine.to(torch.float64)
        size = tuple(fixed.shape[1:])
        spacing = _auto_spacing(size, affine) if self.spacing == AUTO else self.spacing
        if spacing is None:
            return size, affine
        scale = torch.tensor(spacing, dtype=torch.float64) / voxel_spacing(affine)
        working = torch.eye(4, dtype=torch.float64)
        working[:3, :3] = torch.diag(scale)
        working[:3, 3] = (scale - 1) / 2
        # a hundredth of a voxel less is no reason for another voxel: headers round
        covering = (torch.tensor(size, dtype=torch.float64) / scale - 0.01).ceil().clamp(min=1)
        return tuple(int(extent) for extent in covering), affine @ working

    def intensities(
        self,
        image: MetaTensor,
        size: Sequence[int],
        affine: torch.Tensor,
        initial: torch.Tensor | SpatialDisplacement | None = None,
        mask: torch.Tensor | None = None,
    ) -> MetaTensor:
        """Image ``(1, I, J, K)`` on a grid; with ``initial`` a moving image, without the fixed one."""
        coordinates, matrix = _positions(image, size, affine, initial)
        if coordinates is None:
            return _on_grid(image.as_tensor(), affine, image)  # to the last bit
        is_extended = initial is None or self.outside is None
        offset = 0 if is_extended else self.outside
        values = image.as_tensor() - offset
        if mask is not None:
            inside = (mask.as_subclass(torch.Tensor) != 0).to(values)
            values = torch.cat([values, values * inside, inside])
        values = _without_aliasing(values, matrix)
        values = sample(values[None], coordinates[None], padding="border" if is_extended else "zeros")[0]
        if mask is not None:
            plain, total, share = values.split(1)
            values = torch.where(share > LEAST_SHARE, total / share, plain)
        return _on_grid(values + offset, affine, image)

    def labels(
        self,
        label: MetaTensor,
        size: Sequence[int],
        affine: torch.Tensor,
        initial: torch.Tensor | SpatialDisplacement | None = None,
    ) -> MetaTensor:
        """Label map or mask ``(1, I, J, K)`` on a grid, nearest neighbour, 0 beyond a moving one."""
        coordinates, _ = _positions(label, size, affine, initial)
        if coordinates is None:
            return _on_grid(label.as_tensor(), affine, label)
        padding = "border" if initial is None else "zeros"
        return _on_grid(sample(label.as_tensor()[None], coordinates[None], "nearest", padding)[0], affine, label)


class ResampleToFixedd(MapTransform):
    """Dictionary version of :py:class:`ResampleToFixed`: adds copies, the originals stay as they are.

    Writes ``<key>_working`` for fixed and every moving key, ``<key>_mask_working`` for those that have a mask and
    ``<label key>_working`` for ``label_keys``. The mask of an image is ``<key>_known`` where :py:class:`PaddingMaskd`
    wrote one, else ``<key>_mask``. Writes ``initial``, the transform from fixed to moving space: ``(4, 4)`` float64, mm
    RAS, or where a field was given a MetaTensor ``(3, I, J, K)`` of its voxels with its affine.

    Args:
        fixed_key: image that gives the grid.
        moving_keys: images in moving space; the first decides on the initial alignment.
        label_keys: label maps for features or a loss, ``<key>_label`` or ``<key>_prediction`` of these images.
        spacing, initial, min_overlap, outside: see :py:class:`ResampleToFixed`.
    """

    def __init__(
        self,
        fixed_key: str = "fixed",
        moving_keys: KeysCollection = ("moving",),
        label_keys: Sequence[str] = (),
        spacing: float | Sequence[float] | str | None = None,
        initial: Initial = "auto",
        min_overlap: float = 0.25,
        outside: float | None = None,
    ) -> None:
        super().__init__(moving_keys)
        self.fixed_key = fixed_key
        self.label_keys = ensure_tuple(label_keys)
        self.resampler = ResampleToFixed(spacing, initial, min_overlap, outside)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        fixed, first = out[self.fixed_key], self.keys[0]
        masks = {key: out.get(f"{key}_known", out.get(f"{key}_mask")) for key in (self.fixed_key, *self.keys)}
        pair = str(out.get("pair", ""))
        initial = self.resampler.alignment(fixed, out[first], pair, masks[self.fixed_key], masks[first])
        size, affine = self.resampler.working_grid(fixed)
        for key, mask in masks.items():
            start = None if key == self.fixed_key else initial
            out[f"{key}_working"] = self.resampler.intensities(out[key], size, affine, start, mask)
            if mask is not None:
                out[f"{key}_mask_working"] = self.resampler.labels(mask, size, affine, start)
            for label_key in {f"{key}_label", f"{key}_prediction"}.intersection(self.label_keys):
                out[f"{label_key}_working"] = self.resampler.labels(out[label_key], size, affine, start)
        # batches hold tensors only
        out["initial"] = initial.to_metatensor() if isinstance(initial, SpatialDisplacement) else initial
        return out


def _positions(
    image: MetaTensor, size: Sequence[int], affine: torch.Tensor, initial: torch.Tensor | SpatialDisplacement | None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Where in the image, in its voxels, each voxel of a grid lies, and ``(4, 4)`` float64, the linear part of that.

    The positions are ``None`` where the image is on that grid already.
    """
    if isinstance(initial, SpatialDisplacement):
        field = initial.resample(affine, size)
        positions = moving_voxels(field.ddf.to(image.device), affine, image.affine)
        return positions, _mean_affine(positions)
    matrix = voxel_to_voxel(affine, image.affine, initial)
    if tuple(size) == tuple(image.shape[1:]) and torch.equal(matrix, torch.eye(4, dtype=matrix.dtype)):
        return None, matrix
    return grid_voxels(size, matrix, device=image.device), matrix


def _mean_affine(positions: torch.Tensor) -> torch.Tensor:
    """``(4, 4)`` float64 whose columns are the mean steps of positions ``(3, I, J, K)`` along each axis; no shift."""
    matrix = torch.eye(4, dtype=torch.float64)
    for axis, extent in enumerate(positions.shape[1:]):
        first, last = positions.select(axis + 1, 0), positions.select(axis + 1, extent - 1)
        matrix[:3, axis] = (last - first).mean(dim=(1, 2)).cpu().double() / max(1, extent - 1)
    return matrix


def _is_positive(size: object) -> bool:
    return isinstance(size, (int, float)) and size > 0


def _auto_spacing(size: Sequence[int], affine: torch.Tensor) -> tuple[float, float, float] | None:
    own = voxel_spacing(affine)
    voxels = math.prod(size)
    anisotropic = (own.max() / own.min()).item() > AUTO_ANISOTROPY
    if not anisotropic and voxels <= AUTO_VOXELS:
        return None
    growth = max(1.0, (voxels / AUTO_VOXELS) ** (1 / 3))
    cube = own.prod().item() ** (1 / 3)
    return (growth * cube,) * 3


def _without_aliasing(values: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Gaussian that widens a voxel to the footprint of the target's, along axes where that is much larger.

    Source: Cardoso et al., "Scale factor point spread function matching", MICCAI 2015: variances of Gaussians with the
    two voxel sizes as full width at half maximum subtract.
    """
    ratio = torch.linalg.vector_norm(matrix[:3, :3], dim=1).numpy()
    sigma = np.where(ratio > ALIASING_RATIO, np.sqrt(np.maximum(ratio**2 - 1, 0)) / FWHM_PER_SIGMA, 0)
    if not sigma.any():
        return values
    smooth = scipy.ndimage.gaussian_filter(values.cpu().numpy(), sigma=(0, *sigma), mode="nearest")
    return torch.from_numpy(smooth).to(values.device)


def _on_grid(values: torch.Tensor, affine: torch.Tensor, source: MetaTensor) -> MetaTensor:
    meta = {ImageMetaKey.FILENAME_OR_OBJ: source.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")}
    return MetaTensor(values, affine=affine, meta=meta)


ResampleToFixedD = ResampleToFixedDict = ResampleToFixedd
