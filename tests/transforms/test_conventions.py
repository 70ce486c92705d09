# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor

from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.transforms import conventions as c

LPS = np.array([-1.0, -1.0, 1.0])


def voxels(size) -> np.ndarray:
    return np.array(list(itertools.product(*[range(extent) for extent in size])), dtype=np.float64)


def at_voxels(field: torch.Tensor) -> np.ndarray:
    """Vectors (N, 3) of a field (3, I, J, K), rows in the order of voxels()."""
    return field.double().reshape(3, -1).T.numpy()


def transformed(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


def field_transform(field: torch.Tensor, affine: torch.Tensor, to_sitk) -> sitk.DisplacementFieldTransform:
    return sitk.DisplacementFieldTransform(to_sitk(field.double().numpy(), affine, is_vector=True))


def rigid_matrix(fixed_affine) -> torch.Tensor:
    """A rotation about all axes with a shift, away from the origin."""
    angle = torch.linalg.matrix_exp(
        torch.tensor([[0.0, -0.1, 0.05], [0.1, 0.0, -0.08], [-0.05, 0.08, 0.0]], dtype=torch.float64)
    )
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = angle
    matrix[:3, 3] = torch.tensor([2.0, -1.5, 0.7])
    return matrix


# --- points and affines


def test_voxels_become_mm_as_nibabel_does_and_back(fixed_affine):
    points = torch.rand(20, 3, dtype=torch.float64) * 40 - 10

    mm = c.voxel_to_mm(points, fixed_affine)

    np.testing.assert_allclose(mm, nib.affines.apply_affine(fixed_affine.numpy(), points.numpy()), atol=1e-12)
    torch.testing.assert_close(c.mm_to_voxel(mm, fixed_affine), points)


def test_float32_points_lose_nothing_on_the_way_to_mm(fixed_affine):
    assert c.voxel_to_mm(torch.ones(1, 3), fixed_affine).dtype == torch.float64


def test_ras_and_lps_differ_in_the_sign_of_x_and_y():
    points = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 5.0, -6.0]])

    lps = c.ras_to_lps_points(points)

    assert lps.tolist() == [[-1.0, -2.0, 3.0], [4.0, -5.0, -6.0]]
    assert torch.equal(c.lps_to_ras_points(lps), points)


def test_an_affine_in_lps_leads_to_the_same_points_in_lps(fixed_affine):
    points = torch.rand(5, 3, dtype=torch.float64) * 20

    lps = c.ras_to_lps_affine(fixed_affine)

    torch.testing.assert_close(c.voxel_to_mm(points, lps), c.ras_to_lps_points(c.voxel_to_mm(points, fixed_affine)))
    assert torch.equal(c.lps_to_ras_affine(lps), fixed_affine)


def test_spacing_is_the_length_of_the_columns(fixed_affine):
    np.testing.assert_allclose(c.voxel_spacing(fixed_affine), nib.affines.voxel_sizes(fixed_affine.numpy()))


def test_itk_geometry_puts_every_voxel_where_the_affine_does(fixed_affine, fixed_size):
    image = sitk.Image(fixed_size, sitk.sitkUInt8)
    spacing, origin, direction = c.affine_to_itk(fixed_affine)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)

    for index in [(0, 0, 0), (16, 0, 0), (0, 13, 0), (0, 0, 10), (3, 5, 7)]:
        world = nib.affines.apply_affine(fixed_affine.numpy(), index)
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), world * LPS, atol=1e-9)
    back = c.itk_to_affine(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    torch.testing.assert_close(back, fixed_affine)


# --- voxel to voxel


def test_voxels_of_one_grid_meet_voxels_of_another_in_the_same_place(fixed_affine, moving_affine):
    initial = rigid_matrix(fixed_affine)
    x = torch.rand(10, 3, dtype=torch.float64) * 15

    y = c.voxel_to_mm(x, c.voxel_to_voxel(fixed_affine, moving_affine, initial))

    expected = c.voxel_to_mm(c.voxel_to_mm(x, fixed_affine), initial)
    torch.testing.assert_close(c.voxel_to_mm(y, moving_affine), expected)


def test_flipped_and_cropped_grids_map_voxel_onto_voxel_exactly(fixed_affine):
    flipped_and_cropped = torch.tensor(
        [[-1.0, 0, 0, 16], [0, 0, 1, 2], [0, 1, 0, 3], [0, 0, 0, 1]], dtype=torch.float64
    )
    other = (fixed_affine @ flipped_and_cropped).float()  # as a NIfTI header rounds it

    assert torch.equal(c.voxel_to_voxel(other, fixed_affine.float()), flipped_and_cropped)


def test_a_visible_shift_is_not_rounded_away(fixed_affine):
    shift = torch.eye(4, dtype=torch.float64)
    shift[1, 3] = 0.01

    torch.testing.assert_close(c.voxel_to_voxel(fixed_affine @ shift, fixed_affine), shift)


# --- fields: units


def test_a_displacement_in_mm_is_the_difference_of_two_points(fixed_affine, fixed_size, smooth_ddf):
    ddf = smooth_ddf(fixed_size, dtype=torch.float64)
    x = voxels(fixed_size)

    mm = c.ddf_to_mm(ddf, fixed_affine)

    moved = nib.affines.apply_affine(fixed_affine.numpy(), x + at_voxels(ddf))
    np.testing.assert_allclose(at_voxels(mm), moved - nib.affines.apply_affine(fixed_affine.numpy(), x), atol=1e-10)
    torch.testing.assert_close(c.mm_to_ddf(mm, fixed_affine), ddf)


def test_an_itk_field_moves_points_as_the_ddf_does(fixed_affine, fixed_size, smooth_ddf, to_sitk):
    ddf = smooth_ddf(fixed_size)
    x = voxels(fixed_size)

    field = c.ddf_to_itk_field(ddf, fixed_affine)

    assert field.dtype == torch.float32
    assert field.shape == (*fixed_size, 3)
    start = nib.affines.apply_affine(fixed_affine.numpy(), x) * LPS
    end = nib.affines.apply_affine(fixed_affine.numpy(), x + at_voxels(ddf)) * LPS
    inner = ((x > 0) & (x < np.array(fixed_size) - 1)).all(axis=1)  # ITK knows no displacement beyond the border
    moved = transformed(field_transform(field, fixed_affine, to_sitk), start[inner])
    np.testing.assert_allclose(moved, end[inner], atol=1e-4)


def test_an_itk_field_comes_back_as_the_same_ddf(fixed_affine, fixed_size, smooth_ddf):
    ddf = smooth_ddf(fixed_size)

    torch.testing.assert_close(c.itk_field_to_ddf(c.ddf_to_itk_field(ddf, fixed_affine), fixed_affine), ddf)


# --- fields: Learn2Reg


def test_learn2reg_warps_with_our_file_as_we_do(fixed_size, smooth_ddf):
    moving = torch.rand(1, 1, *fixed_size)
    ddf = smooth_ddf(fixed_size)

    displacement = c.ddf_to_learn2reg(ddf).numpy()

    identity = np.meshgrid(*[np.arange(extent) for extent in fixed_size], indexing="ij")
    official = scipy.ndimage.map_coordinates(
        moving[0, 0].numpy(), np.stack(identity) + displacement.transpose(3, 0, 1, 2), order=1
    )
    coordinates = c.moving_voxels(ddf, torch.eye(4), torch.eye(4))
    last = torch.tensor(fixed_size).reshape(3, 1, 1, 1) - 1
    inside = ((coordinates >= 0) & (coordinates <= last)).all(0)
    assert inside.float().mean() > 0.5
    np.testing.assert_allclose(sample(moving, coordinates[None])[0, 0][inside], official[inside], atol=1e-4)
    assert torch.equal(c.learn2reg_to_ddf(displacement, fixed_size), ddf)


def test_the_channel_first_form_of_2020_is_understood(fixed_size, smooth_ddf):
    ddf = smooth_ddf(fixed_size)

    assert torch.equal(c.learn2reg_to_ddf(ddf.numpy(), fixed_size), ddf)


def test_the_half_form_of_2020_is_enlarged_without_scaling_its_vectors():
    # half a cosine from end to end stays one, and its values already count voxels of the full grid
    wave = 4 * np.cos(np.linspace(0, np.pi, 24))[None, :, None] * np.ones((6, 1, 5))
    half = np.stack([np.full(wave.shape, 8.0), wave, np.full(wave.shape, -3.0)]).astype(np.float16)

    ddf = c.learn2reg_to_ddf(half, (12, 48, 10))

    assert ddf.dtype == torch.float32
    expected = 4 * torch.cos(torch.linspace(0, torch.pi, 48))[None, :, None].expand(12, 48, 10)
    torch.testing.assert_close(ddf[0], torch.full((12, 48, 10), 8.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(ddf[1], expected, atol=6e-3, rtol=0)
    torch.testing.assert_close(ddf[2], torch.full((12, 48, 10), -3.0), atol=1e-4, rtol=0)


def test_the_field_of_another_image_is_refused():
    with pytest.raises(ValueError, match=r"fixed image of \(12, 16, 10\)"):
        c.learn2reg_to_ddf(np.zeros((12, 16, 11, 3)), (12, 16, 10))


# --- fields: grids


def test_simpleitk_resamples_a_moving_image_of_other_geometry_as_we_do(
    fixed_affine, fixed_size, moving_affine, moving_size, smooth_ddf, smooth_image, to_sitk
):
    moving = smooth_image(moving_size, moving_affine)
    ddf = smooth_ddf(fixed_size)

    coordinates = c.moving_voxels(ddf, fixed_affine, moving_affine)
    ours = sample(moving.as_tensor()[None], coordinates[None])[0, 0]

    field = to_sitk(c.ddf_to_itk_field(ddf, fixed_affine).double().numpy(), fixed_affine, is_vector=True)
    reference = to_sitk(np.zeros(fixed_size, np.float32), fixed_affine)
    theirs = sitk.Resample(
        to_sitk(moving[0].numpy(), moving_affine), reference, sitk.DisplacementFieldTransform(field), sitk.sitkLinear
    )
    theirs = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
    last = torch.tensor(moving_size).reshape(3, 1, 1, 1) - 1
    inside = ((coordinates > 0) & (coordinates < last)).all(0)[1:-1, 1:-1, 1:-1]
    assert inside.float().mean() > 0.9
    np.testing.assert_allclose(ours[1:-1, 1:-1, 1:-1][inside], theirs[1:-1, 1:-1, 1:-1][inside], atol=2e-3)


def test_moving_voxels_are_exact_to_float32_far_from_the_origin(fixed_affine, fixed_size, smooth_ddf):
    far = fixed_affine.clone()
    far[:3, 3] += 1e5  # float32 algebra would be off by hundredths of a millimetre
    shifted = far.clone()
    shifted[:3, 3] += torch.tensor([1.3, -2.2, 0.4], dtype=torch.float64)
    ddf = smooth_ddf(fixed_size)

    coordinates = c.moving_voxels(ddf, far, shifted)

    world = c.voxel_to_mm(torch.from_numpy(voxels(fixed_size) + at_voxels(ddf)), far)
    expected = np.linalg.solve(shifted.numpy()[:3, :3], (world - shifted[:3, 3]).numpy().T)
    np.testing.assert_allclose(coordinates.reshape(3, -1), expected, atol=1e-5)
    assert coordinates.dtype == torch.float32


def test_on_one_grid_moving_voxels_are_position_plus_ddf_to_the_last_bit(fixed_affine, fixed_size, smooth_ddf):
    ddf = smooth_ddf(fixed_size)

    coordinates = c.moving_voxels(ddf, fixed_affine, fixed_affine.float().double(), torch.float64)

    identity = torch.stack(torch.meshgrid(*[torch.arange(n).double() for n in fixed_size], indexing="ij"))
    assert torch.equal(coordinates, identity + ddf.double())


def test_a_displacement_linear_in_space_is_the_same_on_any_grid(fixed_affine, fixed_size, moving_affine, moving_size):
    matrix = torch.tensor([[0.02, -0.03, 0.01], [0.04, 0.01, -0.02], [-0.01, 0.03, 0.05]], dtype=torch.float64)

    def field(size, affine):
        world = c.voxel_to_mm(torch.from_numpy(voxels(size)), affine)
        displacement_mm = world @ matrix.T + torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        return c.mm_to_ddf(displacement_mm.T.reshape(3, *size), affine)

    resampled = c.resample_ddf(field(moving_size, moving_affine).float(), moving_affine, fixed_affine, fixed_size)

    positions = c.grid_voxels(fixed_size, c.voxel_to_voxel(fixed_affine, moving_affine))
    last = torch.tensor(moving_size).reshape(3, 1, 1, 1) - 1
    inside = ((positions >= 0) & (positions <= last)).all(0)
    assert inside.float().mean() > 0.9
    expected = field(fixed_size, fixed_affine).float()
    torch.testing.assert_close(resampled[:, inside], expected[:, inside], atol=1e-4, rtol=0)


def test_a_field_continues_beyond_its_border(fixed_affine):
    larger = fixed_affine.clone()
    larger[:3, 3] -= fixed_affine[:3, :3] @ torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64)
    ddf = torch.tensor([1.0, -2.0, 3.0]).reshape(3, 1, 1, 1).expand(3, 4, 5, 6)

    resampled = c.resample_ddf(ddf, fixed_affine, larger, (8, 9, 10))

    torch.testing.assert_close(resampled, ddf[:, :1, :1, :1].expand(3, 8, 9, 10))


def test_a_field_on_its_own_grid_is_untouched(fixed_affine, fixed_size, smooth_ddf):
    ddf = smooth_ddf(fixed_size)

    assert torch.equal(c.resample_ddf(ddf, fixed_affine, fixed_affine.float(), fixed_size), ddf)
    assert torch.equal(c.total_ddf(ddf, fixed_affine, torch.eye(4)), ddf)


def test_the_total_ddf_moves_points_as_simpleitk_composes_field_and_initial(
    fixed_affine, fixed_size, smooth_ddf, to_sitk
):
    ddf = smooth_ddf(fixed_size)
    initial = rigid_matrix(fixed_affine)

    total = c.total_ddf(ddf, fixed_affine, initial)

    flip = np.diag(LPS)
    affine_transform = sitk.AffineTransform(3)
    affine_transform.SetMatrix((flip @ initial[:3, :3].numpy() @ flip).ravel().tolist())
    affine_transform.SetTranslation((flip @ initial[:3, 3].numpy()).tolist())
    field = field_transform(c.ddf_to_itk_field(ddf, fixed_affine), fixed_affine, to_sitk)
    composite = sitk.CompositeTransform([affine_transform, field])  # the last one acts first
    x = voxels(fixed_size)
    inner = ((x > 0) & (x < np.array(fixed_size) - 1)).all(axis=1)
    moved = transformed(composite, nib.affines.apply_affine(fixed_affine.numpy(), x[inner]) * LPS) * LPS
    ours = nib.affines.apply_affine(fixed_affine.numpy(), (x + at_voxels(total))[inner])
    np.testing.assert_allclose(ours, moved, atol=1e-4)


def test_results_do_not_carry_the_affine_of_the_field_given(fixed_affine, moving_affine, smooth_ddf):
    ddf = MetaTensor(smooth_ddf((5, 6, 7)), affine=fixed_affine)
    shift = torch.eye(4)
    shift[0, 3] = 2

    for result in (
        c.resample_ddf(ddf, fixed_affine, moving_affine, (4, 4, 4)),
        c.total_ddf(ddf, fixed_affine, shift),
        c.moving_voxels(ddf, fixed_affine, moving_affine),
        c.ddf_to_itk_field(ddf, fixed_affine),
        c.ddf_to_learn2reg(ddf),
    ):
        assert type(result) is torch.Tensor
