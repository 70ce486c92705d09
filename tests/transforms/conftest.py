# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from monai_reg_ext.transforms import SpatialDisplacement


def _affine(angles: tuple[float, float, float], spacing: tuple, origin: tuple, order: tuple) -> torch.Tensor:
    axes = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()[:, list(order)]
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = origin
    return torch.from_numpy(affine)


@pytest.fixture
def fixed_size() -> tuple[int, int, int]:
    return 17, 14, 11


@pytest.fixture
def fixed_affine() -> torch.Tensor:
    """Oblique, anisotropic, first axis flipped."""
    return _affine((12.0, -8.0, 20.0), (-1.5, 1.8, 2.6), (31.0, -17.0, -9.0), (0, 1, 2))


@pytest.fixture
def moving_size() -> tuple[int, int, int]:
    return 19, 23, 21


@pytest.fixture
def moving_affine() -> torch.Tensor:
    """Oblique another way, axes 0 and 1 swapped, last one flipped; its volume holds the fixed one."""
    return _affine((-5.0, 14.0, 7.0), (1.9, 2.1, -2.4), (-6.0, -32.0, 38.0), (1, 0, 2))


@pytest.fixture
def smooth_ddf() -> Callable[..., torch.Tensor]:
    """Smooth displacement of up to ``amplitude`` voxels, every component another function of all axes."""

    def make(size: tuple[int, ...], amplitude: float = 2.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        i, j, k = np.meshgrid(*[np.linspace(0, 1, extent) for extent in size], indexing="ij")
        components = [np.sin(3 * i + j - k), np.cos(2 * j - 2 * i * k), np.sin(1 + 2 * k + i * j)]
        return torch.from_numpy(amplitude * np.stack(components)).to(dtype)

    return make


@pytest.fixture
def smooth_image() -> Callable[..., MetaTensor]:
    """MetaTensor ``(1, I, J, K)``, smooth enough for linear interpolation, positive, different along all axes."""

    def make(size: tuple[int, ...], affine: torch.Tensor) -> MetaTensor:
        i, j, k = np.meshgrid(*[np.arange(extent) for extent in size], indexing="ij")
        values = 100 + 40 * np.sin(0.3 * i + 0.1 * k) + 20 * np.cos(0.25 * j) + 3 * k
        return MetaTensor(torch.from_numpy(values[None]).float(), affine=affine, meta={"filename_or_obj": "scan.mha"})

    return make


@pytest.fixture
def to_sitk() -> Callable[..., sitk.Image]:
    """SimpleITK image of an array in nibabel's axis order, geometry turned to LPS by hand."""

    def convert(array: np.ndarray, affine: torch.Tensor, is_vector: bool = False) -> sitk.Image:
        array = np.asarray(array)
        image = sitk.GetImageFromArray(array.transpose(2, 1, 0, *range(3, array.ndim)), isVector=is_vector)
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine.numpy()
        spacing = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        return image

    return convert


@pytest.fixture
def field(smooth_ddf, fixed_size, fixed_affine) -> SpatialDisplacement:
    return SpatialDisplacement(smooth_ddf(fixed_size, 1.7), fixed_affine)


@pytest.fixture
def fixed(smooth_image, fixed_size, fixed_affine) -> MetaTensor:
    return smooth_image(fixed_size, fixed_affine)
