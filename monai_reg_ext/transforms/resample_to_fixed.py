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
from monai_reg_ext.transforms.conventions import grid_voxels, voxel_spacing, voxel_to_voxel
from monai_reg_ext.transforms.initial_alignment import initial_alignment

__all__ = ["ResampleToFixed", "ResampleToFixedD", "ResampleToFixedDict", "ResampleToFixedd"]

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
ALIASING_RATIO = 1.5
AUTO = "auto"
AUTO_ANISOTROPY = 1.5
AUTO_VOXELS = 2**24


class ResampleToFixed(Transform):
    """Copies of a fixed and a moving image on one working grid, and the transform between their worlds.

    The working grid is the fixed image's, or with ``spacing`` one of that voxel size with the same directions, outer
    corner and (up to one voxel more) extent. Moving is resampled onto it through physical space after the initial
    alignment. Axes that become coarser by more than 1.5 are smoothed first, to the width of the new voxels.

    Args:
        spacing: voxel size of the working grid, mm: one number, three, or ``None`` for the fixed image's own.
            ``"auto"`` keeps the fixed image's grid unless its voxels are more than 1.5 times longer than wide, which
            become cubes of the same volume, or more than 16 million, which become so large that no more are left.
        initial: ``"auto"``, ``"headers"``, ``"centres"`` or a ``(4, 4)`` matrix, see :py:func:`initial_alignment`.
        min_overlap: see :py:func:`initial_alignment`.
        outside: intensity beyond the moving image. ``None`` repeats its border, which puts no false edge at the end of
            the field of view into descriptors such as MIND; a number suits features that know background.

    Raises:
        ValueError: for a spacing that is not positive, and as :py:func:`initial_alignment`.
    """

    def __init__(
        self,
        spacing: float | Sequence[float] | str | None = None,
        initial: str | torch.Tensor | np.ndarray | list = "auto",
        min_overlap: float = 0.25,
        outside: float | None = None,
    ) -> None:
        self.spacing = spacing if spacing is None or spacing == AUTO else ensure_tuple_rep(spacing, 3)
        if isinstance(self.spacing, tuple) and not all(_is_positive(size) for size in self.spacing):
            raise ValueError(f"spacing must be {AUTO!r}, None, or above 0 mm along every axis, got {spacing!r}.")
        self.initial = initial
        self.min_overlap = min_overlap
        self.outside = outside

    def __call__(self, fixed: MetaTensor, moving: MetaTensor) -> tuple[MetaTensor, MetaTensor, torch.Tensor]:
        """Fixed and moving ``(1, I, J, K)`` on the working grid, and ``initial`` ``(4, 4)`` float64."""
        initial = self.alignment(fixed, moving)
        size, affine = self.working_grid(fixed)
        return self.intensities(fixed, size, affine), self.intensities(moving, size, affine, initial), initial

    def alignment(self, fixed: MetaTensor, moving: MetaTensor, pair: str = "") -> torch.Tensor:
        return initial_alignment(fixed, moving, self.initial, self.min_overlap, pair)

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
        self, image: MetaTensor, size: Sequence[int], affine: torch.Tensor, initial: torch.Tensor | None = None
    ) -> MetaTensor:
        """Image ``(1, I, J, K)`` on a grid; with ``initial`` a moving image, without the fixed one."""
        matrix = voxel_to_voxel(affine, image.affine, initial)
        if tuple(size) == tuple(image.shape[1:]) and torch.equal(matrix, torch.eye(4, dtype=matrix.dtype)):
            return _on_grid(image.as_tensor(), affine, image)  # to the last bit
        values = _without_aliasing(image.as_tensor(), matrix)
        coordinates = grid_voxels(size, matrix, device=image.device)[None]
        if initial is None or self.outside is None:
            values = sample(values[None], coordinates)[0]
        else:
            values = sample((values - self.outside)[None], coordinates, padding="zeros")[0] + self.outside
        return _on_grid(values, affine, image)

    def labels(
        self, label: MetaTensor, size: Sequence[int], affine: torch.Tensor, initial: torch.Tensor | None = None
    ) -> MetaTensor:
        """Label map or mask ``(1, I, J, K)`` on a grid, nearest neighbour, 0 beyond a moving one."""
        matrix = voxel_to_voxel(affine, label.affine, initial)
        padding = "border" if initial is None else "zeros"
        coordinates = grid_voxels(size, matrix, device=label.device)[None]
        return _on_grid(sample(label.as_tensor()[None], coordinates, "nearest", padding)[0], affine, label)


class ResampleToFixedd(MapTransform):
    """Dictionary version of :py:class:`ResampleToFixed`: adds copies, the originals stay as they are.

    Writes ``<key>_working`` for fixed and every moving key, for their masks (``<key>_mask``) where present and for
    ``label_keys``, and ``initial``, the ``(4, 4)`` float64 transform from fixed to moving space, mm RAS.

    Args:
        fixed_key: image that gives the grid.
        moving_keys: images in moving space; the first decides on the initial alignment.
        label_keys: label maps that serve as features, ``<fixed_key>_label`` or of a moving key.
        spacing, initial, min_overlap, outside: see :py:class:`ResampleToFixed`.
    """

    def __init__(
        self,
        fixed_key: str = "fixed",
        moving_keys: KeysCollection = ("moving",),
        label_keys: Sequence[str] = (),
        spacing: float | Sequence[float] | str | None = None,
        initial: str | torch.Tensor | np.ndarray | list = "auto",
        min_overlap: float = 0.25,
        outside: float | None = None,
    ) -> None:
        super().__init__(moving_keys)
        self.fixed_key = fixed_key
        self.label_keys = ensure_tuple(label_keys)
        self.resampler = ResampleToFixed(spacing, initial, min_overlap, outside)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        fixed = out[self.fixed_key]
        initial = self.resampler.alignment(fixed, out[self.keys[0]], str(out.get("pair", "")))
        size, affine = self.resampler.working_grid(fixed)
        for image_key in (self.fixed_key, *self.keys):
            start = None if image_key == self.fixed_key else initial
            out[f"{image_key}_working"] = self.resampler.intensities(out[image_key], size, affine, start)
            for key in (f"{image_key}_mask", f"{image_key}_label"):
                if key in self.label_keys or (key.endswith("_mask") and key in out):
                    out[f"{key}_working"] = self.resampler.labels(out[key], size, affine, start)
        out["initial"] = initial
        return out


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
