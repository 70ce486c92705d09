# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.apps.write_volume import write_volume
from monai_reg_ext.transforms import SpatialDisplacement, grid_voxels, write_transform


def turned(angle: float, spacing: tuple[float, float, float], origin: tuple[float, float, float]) -> torch.Tensor:
    """Affine with a flipped first axis, turned about the third."""
    cos, sin = np.cos(angle), np.sin(angle)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.tensor([[-cos, -sin, 0], [-sin, cos, 0], [0, 0, 1]]) @ torch.diag(
        torch.tensor(spacing).double()
    )
    affine[:3, 3] = torch.tensor(origin)
    return affine


@pytest.fixture
def space(tmp_path):
    """Two scans of different geometry, and an affine transform between them, as files.

    Intensities are a linear function of position, so that linear interpolation is exact. ``matrix`` leads from fixed to
    moving space, mm RAS. Files: ``fixed.nii.gz moving.nii.gz field.nii.gz matrix.tfm`` in ``folder``.
    """
    fixed_affine, moving_affine = (
        turned(0.2, (2.0, 1.5, 3.0), (12, -8, 5)),
        turned(-0.1, (1.0, 1.25, 2.0), (20, -15, 0)),
    )
    fixed_size, moving_size = (9, 10, 7), (40, 30, 24)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] += torch.tensor([[0.05, 0.02, 0], [-0.03, 0.0, 0.01], [0.0, 0.02, -0.04]])
    matrix[:3, 3] = torch.tensor([1.5, -0.5, 2.0])

    def ramp(world):
        return 3 * world[0] - 2 * world[1] + 0.5 * world[2]

    def scan(size, affine):
        return MetaTensor(ramp(grid_voxels(size, affine)).float()[None], affine=affine)

    field = SpatialDisplacement.from_chain([matrix], fixed_affine, fixed_size)
    fixed, moving = scan(fixed_size, fixed_affine), scan(moving_size, moving_affine)
    write_volume(fixed, tmp_path / "fixed.nii.gz")
    write_volume(moving, tmp_path / "moving.nii.gz")
    write_transform(field, tmp_path / "field.nii.gz")
    write_transform(matrix, tmp_path / "matrix.tfm")
    return SimpleNamespace(folder=tmp_path, fixed=fixed, moving=moving, field=field, matrix=matrix, ramp=ramp)
