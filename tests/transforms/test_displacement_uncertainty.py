# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.networks.layers.symmetric_matrix import entries_of
from monai_reg_ext.transforms import DisplacementUncertainty, DisplacementUncertaintyd, grid_voxels, mm_to_voxel

ISOTROPIC = torch.tensor([1.0, 0, 0, 1, 0, 1]).view(6, 1, 1, 1)


def image(size, affine):
    return MetaTensor(torch.zeros(1, *size), affine=affine, meta={"filename_or_obj": "fixed.nii.gz"})


def covariance_of(errors: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Of errors ``(N, 3)`` in voxels, the same at every voxel of a grid."""
    products = (errors[:, :, None] * errors[:, None]).mean(0, keepdim=True)
    return entries_of(products)[0].view(6, 1, 1, 1).expand(6, *size).float()


@pytest.mark.parametrize("shear", [0.0, 0.4])
def test_it_is_the_root_mean_square_length_in_mm_of_errors_with_this_covariance(shear, moving_affine, fixed):
    # oblique, anisotropic, axes swapped, one flipped; errors longer along one direction than along others
    errors = torch.randn(50, 3, dtype=torch.float64) @ torch.tensor(
        [[2.0, 1, 0], [0, 0.5, -1], [0.3, 0, 1]], dtype=torch.float64
    )
    sheared = moving_affine.clone()
    sheared[:3, 0] += shear * moving_affine[:3, 2]  # a gantry that was tilted
    working = image((8, 7, 9), sheared)

    uncertainty = DisplacementUncertainty()(covariance_of(errors, (8, 7, 9)), working, fixed)

    length = (errors @ sheared[:3, :3].T).square().sum(1).mean().sqrt()
    torch.testing.assert_close(uncertainty.as_tensor(), torch.full(uncertainty.shape, length.item()))


@pytest.mark.parametrize("entry", range(6))
def test_every_entry_counts_by_the_angle_and_length_of_its_axes(entry, fixed_size, fixed_affine):
    columns = fixed_affine[:3, :3] @ torch.tensor([[1, 0.3, 0], [0, 1, -0.2], [0.1, 0, 1]], dtype=torch.float64)
    affine = fixed_affine.clone()
    affine[:3, :3] = columns
    fixed = image(fixed_size, affine)
    row, column = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)][entry]
    covariance = 3 * ISOTROPIC.expand(6, *fixed_size).clone()
    covariance[entry] += 1

    variance = DisplacementUncertainty()(covariance, fixed, fixed).square()

    weight = columns[:, row] @ columns[:, column] * (1 if row == column else 2)
    expected = 3 * columns.square().sum() + weight
    torch.testing.assert_close(variance.as_tensor(), torch.full((1, *fixed_size), expected.item()))


def test_it_lies_on_the_fixed_grid_at_the_same_place_in_space(fixed, fixed_affine, fixed_size, moving_affine):
    size = (40, 45, 42)  # covers the fixed grid
    origin = fixed_affine[:3, 3] + fixed_affine[:3, :3] @ torch.tensor(fixed_size).double() / 2
    affine = moving_affine.clone()
    affine[:3, 3] = origin - affine[:3, :3] @ torch.tensor(size).double() / 2
    # a variance that grows linearly through space
    slope, least = torch.tensor([0.05, -0.02, 0.08], dtype=torch.float64).view(3, 1, 1, 1), 20.0
    of_working, of_fixed = (
        least + (slope * (grid_voxels(grid, matrix, dtype=torch.float64) - origin.view(3, 1, 1, 1))).sum(0)
        for grid, matrix in ((size, affine), (fixed_size, fixed_affine))
    )
    inside = mm_to_voxel(grid_voxels(fixed_size, fixed_affine).flatten(1).T, affine)
    assert (inside > 0).all()
    assert (inside < torch.tensor(size) - 1).all()

    uncertainty = DisplacementUncertainty()((ISOTROPIC * of_working).float(), image(size, affine), fixed)

    assert uncertainty.shape == (1, *fixed_size)
    torch.testing.assert_close(uncertainty.affine, fixed_affine)
    expected = (of_fixed * affine[:3, :3].square().sum()).sqrt()
    torch.testing.assert_close(uncertainty.as_tensor()[0].double(), expected, rtol=1e-4, atol=0)


def test_the_same_errors_described_on_a_flipped_and_swapped_grid_are_as_large(fixed, fixed_affine):
    size = (9, 8, 10)
    covariance = covariance_of(torch.randn(20, 3), size)
    swapped = fixed_affine.clone()
    swapped[:3, :3] = torch.stack([fixed_affine[:3, 1], -fixed_affine[:3, 0], fixed_affine[:3, 2]], 1)
    # component 0 is now along the former axis 1, component 1 against the former axis 0
    other = covariance[[3, 1, 4, 0, 2, 5]] * torch.tensor([1, -1, 1, 1, -1, 1.0]).view(6, 1, 1, 1)

    uncertainty = DisplacementUncertainty()(covariance, image(size, fixed_affine), fixed)

    torch.testing.assert_close(DisplacementUncertainty()(other, image(size, swapped), fixed), uncertainty)


def test_beyond_the_working_grid_its_border_goes_on(fixed_affine):
    variance = torch.arange(1.0, 5).view(4, 1, 1).expand(4, 5, 3)
    working = image((4, 5, 3), torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
    shifted = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0]))
    shifted[0, 3] = -4.0  # two voxels more on either side

    uncertainty = DisplacementUncertainty()(ISOTROPIC * variance, working, image((8, 5, 3), shifted))

    expected = 14 * torch.tensor([1.0, 1, 1, 2, 3, 4, 4, 4])
    torch.testing.assert_close(uncertainty[0, :, 2, 1].square().as_tensor(), expected)


def test_an_item_gets_its_uncertainty_in_place_of_the_covariance(fixed, moving_affine):
    working = image((8, 7, 9), moving_affine)
    covariance = covariance_of(torch.randn(20, 3), (8, 7, 9))
    item = {"fixed": fixed, "fixed_working": working, "pred": fixed, "pred_covariance": covariance}

    out = DisplacementUncertaintyd()(item)

    assert out.keys() == {"fixed", "fixed_working", "pred", "uncertainty"}
    assert torch.equal(out["uncertainty"], DisplacementUncertainty()(covariance, working, fixed))
    assert out["uncertainty"].dtype == torch.float32
    assert out["uncertainty"].meta["filename_or_obj"] == "scan.mha"  # the fixed one's
    assert "pred_covariance" in item


def test_an_item_without_covariance_passes(fixed):
    assert DisplacementUncertaintyd()({"pred": fixed}).keys() == {"pred"}


def test_a_covariance_of_another_grid_is_refused(fixed, fixed_size):
    with pytest.raises(ValueError, match=r"\(6, 17, 14, 11\), got \(6, 11, 14, 17\)"):
        DisplacementUncertainty()(torch.zeros(6, *fixed_size[::-1]), fixed, fixed)


def test_a_covariance_that_is_not_finite_is_refused(fixed, fixed_size):
    covariance = torch.ones(6, *fixed_size)
    covariance[3, 4, 5, 6] = torch.nan

    with pytest.raises(ValueError, match="NaN or infinite"):
        DisplacementUncertainty()(covariance, fixed, fixed)
