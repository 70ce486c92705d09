# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own name for itself)
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.transforms import FoldedFieldError, SpatialDisplacement, ddf_to_itk_field, moving_voxels, voxel_to_mm

SIMPLE = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def field(smooth_ddf, fixed_size, fixed_affine) -> SpatialDisplacement:
    return SpatialDisplacement(smooth_ddf(fixed_size, 1.2), fixed_affine)


@pytest.fixture
def second(smooth_ddf, moving_size, moving_affine) -> SpatialDisplacement:
    """On another grid that holds the first one's."""
    return SpatialDisplacement(smooth_ddf(moving_size, 0.9).flip(0), moving_affine)


@pytest.fixture
def moving(smooth_image, moving_size, moving_affine) -> MetaTensor:
    return smooth_image(moving_size, moving_affine)


def voxels(size, margin=0, step=1) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.arange(margin, extent - margin, step, dtype=torch.float64) for extent in size])


def matrix(rotation=(0, 0, 0), translation=(0, 0, 0), scale=1.0) -> torch.Tensor:
    linear = torch.eye(4, dtype=torch.float64)
    linear[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", rotation, degrees=True).as_matrix() * scale)
    linear[:3, 3] = torch.tensor(translation, dtype=torch.float64)
    return linear


def to_itk(field: SpatialDisplacement, to_sitk) -> sitk.Transform:
    vectors = ddf_to_itk_field(field.ddf.double(), field.affine).numpy()
    return sitk.DisplacementFieldTransform(to_sitk(vectors, field.affine, is_vector=True))


def of_itk(transform: sitk.Transform, points: torch.Tensor) -> torch.Tensor:
    flip = torch.tensor([-1.0, -1.0, 1.0])
    return torch.tensor([transform.TransformPoint(p) for p in (points * flip).tolist()], dtype=torch.float64) * flip


def inside(field: SpatialDisplacement, image: MetaTensor) -> np.ndarray:
    coordinates = moving_voxels(field.ddf, field.affine, image.affine)
    last = torch.tensor(image.shape[1:]).reshape(3, 1, 1, 1) - 1
    mask = ((coordinates > 0) & (coordinates < last)).all(0).numpy()
    mask[[0, -1]] = mask[:, [0, -1]] = mask[:, :, [0, -1]] = False
    return mask


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("untagged", [torch.zeros(3, 4, 5, 6), np.zeros((3, 4, 5, 6), np.float32)])
def test_an_array_that_does_not_know_its_place_is_refused(untagged):
    with pytest.raises(TypeError, match=r"place in space.*SpatialDisplacement"):
        SpatialDisplacement.from_metatensor(untagged)


@pytest.mark.parametrize(
    ("ddf", "message"),
    [
        (torch.zeros(4, 5, 6, 3), "4, 5, 6, 3"),
        (torch.zeros(1, 3, 4, 5, 6), "1, 3, 4, 5, 6"),
        (torch.zeros(3, 4, 5, 1), "at least 2"),
        (torch.zeros(3, 4, 5, 6, dtype=torch.int32), "floating"),
        (torch.full((3, 4, 5, 6), torch.nan), "NaN"),
    ],
)
def test_what_is_no_displacement_field_is_refused(ddf, message):
    with pytest.raises(ValueError, match=message):
        SpatialDisplacement(ddf, torch.eye(4))


def test_a_singular_affine_is_refused():
    with pytest.raises(ValueError, match="singular"):
        SpatialDisplacement(torch.zeros(3, 4, 5, 6), torch.ones(4, 4))


def test_a_metatensor_comes_back_as_it_was(field):
    there_and_back = SpatialDisplacement.from_metatensor(field.to_metatensor())

    assert torch.equal(there_and_back.ddf, field.ddf)
    assert torch.equal(there_and_back.affine, field.affine)
    assert type(there_and_back.ddf) is torch.Tensor


# --- points -----------------------------------------------------------------------------------------------------------


def test_points_go_where_itk_sends_them(field, to_sitk):
    points = voxel_to_mm(voxels(field.size, 1, 2) + 0.37, field.affine)

    moved = field.warp_points(points)

    torch.testing.assert_close(moved, of_itk(to_itk(field, to_sitk), points), rtol=0, atol=1e-4)
    assert (moved - points).norm(dim=1).min() > 0.3


def test_points_come_back_from_where_they_went(field):
    points = voxel_to_mm(voxels(field.size, 0, 2), field.affine)

    back = field.warp_points_back(field.warp_points(points))

    torch.testing.assert_close(back, points, rtol=0, atol=1e-3)


def test_points_that_come_from_elsewhere_are_counted(field):
    points = field.warp_points(voxel_to_mm(voxels(field.size, 3, 4), field.affine))
    points[1] += 500

    with pytest.raises(ValueError, match=rf"1 of {len(points)} points come from outside the fixed image.*RAS"):
        field.warp_points_back(points)


# --- chains -----------------------------------------------------------------------------------------------------------


def test_field_compose_first_sends_points_through_first_and_then_through_field(field, second):
    composite = second.compose(field)

    points = voxel_to_mm(voxels(field.size, 1), field.affine)
    torch.testing.assert_close(
        composite.warp_points(points), second.warp_points(field.warp_points(points)), rtol=0, atol=1e-4
    )
    assert composite.size == field.size
    assert torch.equal(composite.affine, field.affine)


def test_warping_by_a_composite_is_warping_twice_with_one_interpolation(field, second, moving, fixed_size):
    ramp = moving.clone()
    ramp[0] = 2 * torch.arange(19.0)[:, None, None] + torch.arange(23.0)[:, None] - torch.arange(21.0)
    twice = field.warp(second.warp(ramp))

    once = second.compose(field).warp(ramp)

    # a ramp is interpolated without error, the second field between its voxels is not
    centre = (0, *(slice(4, extent - 4) for extent in fixed_size))
    torch.testing.assert_close(once[centre], twice[centre], rtol=0, atol=0.05)


def test_a_chain_of_matrices_and_fields_goes_where_itks_composite_goes(field, second, to_sitk):
    first, last = matrix((3, -2, 4), (1, -2, 0.5), 1.05), matrix((20, 10, -15), (50, -30, 20), 0.9)
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    transforms = []
    for part in (last, second, first):  # ITK applies the last one first
        if isinstance(part, SpatialDisplacement):
            transforms.append(to_itk(part, to_sitk))
            continue
        lps = flip @ part.numpy() @ flip
        transforms.append(sitk.AffineTransform(lps[:3, :3].ravel().tolist(), lps[:3, 3].tolist()))

    flat = SpatialDisplacement.from_chain([first, second, last], field.affine, field.size)

    points = voxel_to_mm(voxels(field.size, 2, 3), field.affine)
    expected = of_itk(sitk.CompositeTransform(transforms), points)
    torch.testing.assert_close(flat.warp_points(points), expected, rtol=0, atol=1e-4)


def test_a_matrix_of_another_shape_is_refused(field):
    with pytest.raises(ValueError, match=r"\(4, 4\).*got \(3, 3\)"):
        SpatialDisplacement.from_chain([torch.eye(3)], field.affine, field.size)


linear = st.builds(
    matrix,
    st.tuples(*[st.floats(-15, 15)] * 3),
    st.tuples(*[st.floats(-20, 20)] * 3),
    st.floats(0.8, 1.25),
)


@SIMPLE
@given(a=linear, b=linear, c=linear)
def test_composition_is_associative_on_linear_fields(field, a, b, c):
    # extents so that no point leaves the grids: linear fields go on beyond them only as at the border
    wide = field.affine.clone()
    wide[:3, :3] *= 50
    wide[:3, 3] = voxel_to_mm(torch.full((1, 3), -250.0), field.affine)[0]
    f, g, h = (SpatialDisplacement.from_chain([part], wide, field.size) for part in (a, b, c))
    f = f.resample(field.affine, field.size)

    left, right = h.compose(g).compose(f), h.compose(g.compose(f))

    expected = SpatialDisplacement.from_chain([c @ b @ a], field.affine, field.size)
    torch.testing.assert_close(left.ddf, right.ddf, rtol=0, atol=1e-3)
    torch.testing.assert_close(left.ddf, expected.ddf, rtol=0, atol=1e-3)


@SIMPLE
@given(transform=linear)
def test_the_inverse_of_a_linear_field_is_the_field_of_the_inverse_matrix(field, transform):
    forward = SpatialDisplacement.from_chain([transform], field.affine, field.size)

    inverse, residual = forward.inverse(transform @ field.affine, field.size)

    expected = SpatialDisplacement.from_chain([torch.linalg.inv(transform)], transform @ field.affine, field.size)
    torch.testing.assert_close(inverse.ddf, expected.ddf, rtol=0, atol=3e-3)
    assert residual < 1e-3


# --- the inverse ------------------------------------------------------------------------------------------------------


@SIMPLE
@given(amplitude=st.floats(0.1, 2.5), seed=st.integers(0, 100))
def test_a_field_composed_with_its_inverse_is_the_identity(field, amplitude, seed):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 3, 3, generator=generator) * 2 - 1
    ddf = torch.nn.functional.interpolate(coarse, field.size, mode="trilinear", align_corners=True)[0] * amplitude
    wavy = SpatialDisplacement(ddf, field.affine)
    if wavy.jacobian_determinant().min() < 0.2:
        return

    inverse, residual = wavy.inverse()

    identity = wavy.compose(inverse)  # at every voxel, without interpolation of the inverse
    assert residual < 1e-3
    assert identity.ddf.norm(dim=0).max() < 0.02


def test_the_inverse_on_the_moving_grid_brings_moved_voxels_home(field, moving):
    inverse, residual = field.inverse(moving.affine, moving.shape[1:])

    assert inverse.size == tuple(moving.shape[1:])
    assert torch.equal(inverse.affine, moving.affine)
    assert residual < 1e-3
    points = voxel_to_mm(voxels(inverse.size, 9), inverse.affine)
    torch.testing.assert_close(inverse.warp_points(points), field.warp_points_back(points), rtol=0, atol=5e-3)


def test_the_residual_is_the_mean_distance_in_voxels_that_is_left(field):
    inverse, residual = field.inverse(iterations=0)

    left = field.compose(inverse).ddf.norm(dim=0)
    positions = inverse.ddf + torch.stack(torch.meshgrid(*[torch.arange(s) for s in field.size], indexing="ij"))
    last = torch.tensor(field.size).reshape(3, 1, 1, 1) - 0.5
    home = ((positions >= -0.5) & (positions <= last)).all(0)
    assert residual > 1e-3
    assert residual == pytest.approx(left[home].mean().item(), rel=1e-2)


def test_a_folded_field_is_refused_with_the_place_of_its_worst_fold(field):
    ddf = torch.zeros(3, *field.size)
    ddf[1, 6, 7, 5], ddf[1, 6, 9, 5] = 2.0, -1.5  # slope (-1.5 - 2) / 2 between them: determinant 1 - 1.75
    folded = SpatialDisplacement(ddf, field.affine)
    place = voxel_to_mm(torch.tensor([[6.0, 8.0, 5.0]]), field.affine)[0]

    with pytest.raises(
        FoldedFieldError, match=r"folds in 1 voxels.*voxel \(6, 8, 5\).*determinant of -0\.75"
    ) as caught:
        folded.inverse()

    assert ", ".join(f"{value:.1f}" for value in place) in str(caught.value)
    inverse, residual = folded.inverse(allow_folding=True)
    assert inverse.size == field.size
    assert residual < 0.05


def test_two_slices_have_no_inner_voxel_that_could_fold_and_are_inverted():
    ddf = torch.tensor([1.5, -0.25, 0.5]).reshape(3, 1, 1, 1).repeat(1, 6, 2, 5)

    inverse, residual = SpatialDisplacement(ddf, torch.eye(4)).inverse()

    torch.testing.assert_close(inverse.ddf, -ddf)
    assert residual < 1e-6


def test_half_a_grid_is_refused(field, moving_affine):
    with pytest.raises(ValueError, match="both or neither"):
        field.inverse(affine=moving_affine)


# --- grid and volume --------------------------------------------------------------------------------------------------


def test_a_resampled_field_moves_points_as_before(field, moving_affine, moving_size):
    transform = matrix((5, 3, -4), (2, -1, 3), 1.1)
    forward = SpatialDisplacement.from_chain([transform], moving_affine, moving_size)

    resampled = forward.resample(field.affine, field.size)

    points = voxel_to_mm(voxels(field.size, 1, 3), field.affine)
    expected = points @ transform[:3, :3].T + transform[:3, 3]
    torch.testing.assert_close(resampled.warp_points(points), expected, rtol=0, atol=1e-3)


def test_the_determinant_is_that_of_the_map_in_mm_and_lies_where_its_voxels_lie(field):
    transform = matrix((5, 3, -4), (2, -1, 3), 1.1)
    forward = SpatialDisplacement.from_chain([transform], field.affine, field.size)

    determinant = forward.jacobian_determinant()

    assert determinant.shape == (1, *(extent - 2 for extent in field.size))
    torch.testing.assert_close(determinant.as_tensor(), torch.full(determinant.shape, 1.1**3), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        voxel_to_mm(torch.zeros(1, 3), determinant.affine), voxel_to_mm(torch.ones(1, 3), field.affine)
    )


# --- images and labels ------------------------------------------------------------------------------------------------


def test_the_original_moving_image_is_warped_as_simpleitk_does(field, moving, to_sitk):
    shape = MetaTensor(torch.zeros(1, *field.size), affine=field.affine)
    theirs = sitk.Resample(
        to_sitk(moving[0].numpy(), moving.affine),
        to_sitk(shape[0].numpy(), field.affine),
        to_itk(field, to_sitk),
        sitk.sitkLinear,
    )

    warped = field.warp(moving)

    mask = inside(field, moving)
    assert mask.mean() > 0.4
    theirs = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
    deviation = np.abs(warped[0].numpy() - theirs)[mask].max() / (moving.max() - moving.min()).item()
    assert deviation < 1e-4
    assert torch.equal(warped.affine, field.affine)


def test_labels_by_share_are_those_of_a_one_hot_volume_interpolated_and_compared(field, moving):
    labels = MetaTensor((moving.as_tensor() / 12).round().clamp(7, 13).int() * 100 - 700, affine=moving.affine)
    hot = torch.stack([labels[0].as_tensor() == label for label in range(0, 700, 100)]).float()
    coordinates = moving_voxels(field.ddf, field.affine, moving.affine)
    hot[0] -= 1  # beyond the image lies label 0
    shares = sample(hot[None], coordinates[None], padding="zeros")[0]
    shares[0] += 1

    warped = field.warp(labels, mode="label")

    assert warped.dtype == labels.dtype
    assert torch.equal(warped[0].as_tensor(), shares.argmax(0).int() * 100)
    assert len(warped.unique()) > 4
    nearest = field.warp(labels, mode="nearest")
    assert 0.75 < (nearest == warped).float().mean() < 1


def test_of_equal_shares_the_smaller_label_wins():
    labels = MetaTensor(torch.tensor([7, 3, 0, 5]).reshape(1, 4, 1, 1).repeat(1, 1, 3, 2), affine=torch.eye(4))
    ddf = torch.zeros(3, 4, 3, 2)
    ddf[0] = 0.5

    warped = SpatialDisplacement(ddf, torch.eye(4)).warp(labels, mode="label")

    assert warped[0, :, 0, 0].tolist() == [3, 0, 0, 0]  # the last lies between 5 and beyond the image


def test_beyond_the_moving_image_labels_are_0_even_where_0_is_no_label_of_it(field, moving):
    far = moving.affine.clone()
    far[0, 3] += 25
    labels = MetaTensor(torch.full(moving.shape, 5, dtype=torch.uint8), affine=far)

    warped = field.warp(labels, mode="label")

    assert warped.unique().tolist() == [0, 5]


def test_an_image_without_affine_and_unknown_modes_are_refused(field, moving):
    with pytest.raises(TypeError, match="own affine"):
        field.warp(moving.as_tensor())
    with pytest.raises(ValueError, match="mode"):
        field.warp(moving, mode="sinc")
