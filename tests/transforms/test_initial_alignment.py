# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging

import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from monai_reg_ext.transforms import (
    SpatialDisplacement,
    centre_alignment,
    grid_voxels,
    initial_alignment,
    linear_alignment,
    mass_alignment,
    overlap_fraction,
    voxel_to_mm,
    write_transform,
)

IDENTITY = torch.eye(4, dtype=torch.float64)


def box(size, spacing=(1.0, 1.0, 1.0), corner=(0.0, 0.0, 0.0)) -> MetaTensor:
    """Volume with its outer corner at ``corner``."""
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor(corner, dtype=torch.float64) + torch.tensor(spacing, dtype=torch.float64) / 2
    return MetaTensor(torch.zeros(1, *size), affine=affine)


def shift(x: float, y: float, z: float) -> torch.Tensor:
    matrix = IDENTITY.clone()
    matrix[:3, 3] = torch.tensor([x, y, z], dtype=torch.float64)
    return matrix


@pytest.mark.parametrize(
    ("corner", "fraction"),
    [((0, 0, 0), 1.0), ((5, 0, 0), 0.5), ((5, 10, 0), 0.25), ((0, 0, -20), 0.5), ((10, 0, 0), 0.0), ((0, 0, 90), 0.0)],
)
def test_overlap_of_two_boxes_is_the_shared_part(corner, fraction):
    fixed = box((10, 20, 40))
    moving = box((5, 10, 10), spacing=(2.0, 2.0, 4.0), corner=corner)  # the same 10 x 20 x 40 mm

    assert overlap_fraction(fixed, moving, IDENTITY) == pytest.approx(fraction)
    assert overlap_fraction(moving, fixed, IDENTITY) == pytest.approx(fraction)


def test_overlap_counts_the_smaller_volume():
    large, small = box((100, 100, 100)), box((4, 4, 4), corner=(98, 50, 50))

    assert overlap_fraction(large, small, IDENTITY) == pytest.approx(0.5)
    assert overlap_fraction(small, large, IDENTITY) == pytest.approx(0.5)


def test_overlap_looks_for_fixed_points_where_the_initial_transform_says():
    fixed, moving = box((10, 10, 10)), box((10, 10, 30), corner=(100, 0, 0))

    assert overlap_fraction(fixed, moving, shift(95, 0, 0)) == pytest.approx(0.5)
    assert overlap_fraction(moving, fixed, shift(-95, 0, 0)) == pytest.approx(0.5)


def test_centres_meet(fixed_affine, fixed_size, moving_affine, moving_size):
    fixed = MetaTensor(torch.zeros(1, *fixed_size), affine=fixed_affine)
    moving = MetaTensor(torch.zeros(1, *moving_size), affine=moving_affine)

    initial = centre_alignment(fixed, moving)

    centre = voxel_to_mm(torch.tensor([[8.0, 6.5, 5.0]]), fixed_affine)
    expected = voxel_to_mm(torch.tensor([[9.0, 11.0, 10.0]]), moving_affine)
    torch.testing.assert_close(voxel_to_mm(centre, initial), expected)
    assert torch.equal(initial[:3, :3], IDENTITY[:3, :3])


def test_auto_trusts_headers_that_overlap_enough(caplog):
    fixed, moving = box((10, 10, 10)), box((10, 10, 10), corner=(7, 0, 0))

    assert torch.equal(initial_alignment(fixed, moving), IDENTITY)
    assert not caplog.records


def test_auto_brings_centres_together_when_headers_do_not_overlap_enough_and_says_so(caplog):
    fixed, moving = box((10, 10, 10)), box((10, 10, 10), corner=(0, 8, 0))

    initial = initial_alignment(fixed, moving, pair="anna__bert")

    torch.testing.assert_close(initial, shift(0, 8, 0))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "anna__bert" in caplog.text
    assert "[0.0, 8.0, 0.0] mm" in caplog.text
    assert torch.equal(initial_alignment(fixed, moving, min_overlap=0.15), IDENTITY)


def test_centres_are_brought_together_when_asked():
    fixed, moving = box((10, 10, 10)), box((10, 10, 10), corner=(1, 0, 0))

    torch.testing.assert_close(initial_alignment(fixed, moving, "centres"), shift(1, 0, 0))


@pytest.mark.parametrize("given", ["headers", IDENTITY])
def test_volumes_that_do_not_overlap_are_refused(given):
    fixed, moving = box((10, 10, 10)), box((10, 10, 10), corner=(0, 0, 11))

    with pytest.raises(ValueError, match=r"anna__bert.*do not overlap.*initial='centres'"):
        initial_alignment(fixed, moving, given, pair="anna__bert")


def test_a_given_matrix_is_taken():
    fixed, moving = box((10, 10, 10)), box((10, 10, 10), corner=(0, 0, 11))

    assert torch.equal(initial_alignment(fixed, moving, shift(0, 0, 10).tolist()), shift(0, 0, 10))


def body_mm(points: torch.Tensor) -> torch.Tensor:
    """Intensity of a body of blobs, some 110 mm wide, at world coordinates ``(3, I, J, K)``."""
    generator = torch.Generator().manual_seed(0)
    centres = (torch.rand(90, 3, generator=generator) - 0.5) * torch.tensor([90.0, 110.0, 80.0])
    widths, heights = torch.rand(90, generator=generator) * 6 + 4, torch.rand(90, generator=generator) + 0.3
    total = torch.zeros(points.shape[1:])
    for centre, width, height in zip(centres, widths, heights, strict=True):
        total += height * torch.exp(-(points - centre.view(3, 1, 1, 1)).square().sum(0) / (2 * width**2))
    return total


def scan(size: tuple[int, ...], affine: torch.Tensor, to_body: torch.Tensor = IDENTITY) -> MetaTensor:
    return MetaTensor(1000 * body_mm(grid_voxels(size, to_body @ affine))[None], affine=affine)


FIXED_AFFINE = torch.tensor([[3.0, 0, 0, -60], [0, 2.5, 0, -70], [0, 0, 4, -54], [0, 0, 0, 1]], dtype=torch.float64)
# axes 0 and 1 swapped, one of them flipped, another spacing and extent
MOVING_AFFINE = torch.tensor([[0, -3.5, 0, 63], [3.0, 0, 0, -60], [0, 0, 3, -40], [0, 0, 0, 1]], dtype=torch.float64)
FIXED_SIZE, MOVING_SIZE = (41, 56, 28), (45, 36, 34)


def far_pose(scale: float) -> torch.Tensor:
    """World to world: 19 degrees about an oblique axis and 47 mm away."""
    pose = shift(30, -28, 23)
    turn = Rotation.from_rotvec(torch.deg2rad(19 * torch.tensor([0.48, 0.6, -0.64])).numpy())
    pose[:3, :3] = scale * torch.from_numpy(turn.as_matrix())
    return pose


def mean_error_mm(found: torch.Tensor, pose: torch.Tensor) -> float:
    points = (torch.rand(500, 3, dtype=torch.float64) - 0.5) * 80
    return torch.linalg.vector_norm(voxel_to_mm(points, found) - voxel_to_mm(points, pose), dim=1).mean().item()


@pytest.fixture
def far_pair() -> tuple[MetaTensor, MetaTensor]:
    # its header follows the shift by half, so that the body leaves the field of view in part
    moving_affine = shift(15, -14, 12) @ MOVING_AFFINE
    return scan(FIXED_SIZE, FIXED_AFFINE), scan(MOVING_SIZE, moving_affine, torch.linalg.inv(far_pose(0.95)))


def test_an_affine_pose_is_found_whatever_the_grids(far_pair):
    assert mean_error_mm(initial_alignment(*far_pair, "affine"), far_pose(0.95)) < 0.5


def test_rigid_finds_the_rotation_and_nothing_else(far_pair):
    found = initial_alignment(*far_pair, "rigid")

    torch.testing.assert_close(found[:3, :3] @ found[:3, :3].T, IDENTITY[:3, :3])
    assert mean_error_mm(found, far_pose(0.95)) < 3.0  # 5 % of up to 40 mm to every side


def test_the_way_back_is_the_inverse(far_pair):
    fixed, moving = far_pair

    found = linear_alignment(moving, fixed, "affine")

    assert mean_error_mm(torch.linalg.inv(found), far_pose(0.95)) < 0.5


def test_the_found_transform_is_logged(far_pair, caplog):
    with caplog.at_level(logging.INFO):
        linear_alignment(*far_pair, "affine", pair="anna__bert")

    assert "anna__bert: the affine alignment turns by 19" in caplog.text


def test_padding_is_no_part_of_the_scan():
    # what is missing begins at the same place in both, and a body that grows brighter makes a strong edge there
    images = scan(FIXED_SIZE, FIXED_AFFINE), scan(FIXED_SIZE, FIXED_AFFINE, shift(-7, 5, 0))
    for image in images:
        image += 500 * torch.arange(FIXED_SIZE[1])[:, None]
        image[:, :, 34:] = -20000

    assert mean_error_mm(linear_alignment(*images, "rigid"), shift(7, -5, 0)) < 0.5


def test_the_edge_of_a_mask_does_not_attract():
    images = scan(FIXED_SIZE, FIXED_AFFINE), scan(FIXED_SIZE, FIXED_AFFINE, shift(-6, 5, 4))
    masks = []
    for image in images:
        mask = torch.zeros_like(image)
        mask[:, 10:30, 14:42, 7:21] = 1
        image += 100000
        image[mask == 0] = 50000  # a dark wall that stays, around faint tissue that moves
        image[:, 0] = 0  # darker still, so that the wall is not taken for the bottom of the range
        masks.append(mask)

    found = linear_alignment(*images, "rigid", *masks)

    assert mean_error_mm(found, shift(6, -5, -4)) < 0.5


def test_only_what_lies_inside_the_masks_is_aligned():
    fixed, moving = scan(FIXED_SIZE, FIXED_AFFINE), scan(FIXED_SIZE, FIXED_AFFINE, shift(-9, 6, 0))
    moving[..., :15] = fixed[..., :15]  # the lower half has not moved
    upper = torch.zeros_like(fixed)
    upper[..., 15:] = 1

    masked = initial_alignment(fixed, moving, "rigid", fixed_mask=upper, moving_mask=upper)
    rest = initial_alignment(fixed, moving, "rigid", fixed_mask=1 - upper, moving_mask=1 - upper)

    assert mean_error_mm(masked, shift(9, -6, 0)) < 1
    assert mean_error_mm(rest, IDENTITY) < 1


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="has its shape"):
        linear_alignment(scan(FIXED_SIZE, FIXED_AFFINE), scan(MOVING_SIZE, MOVING_AFFINE), fixed_mask=box(MOVING_SIZE))


def test_a_scan_of_few_thin_slices_is_refused():
    fixed, moving = scan(FIXED_SIZE, FIXED_AFFINE), scan((41, 56, 2), FIXED_AFFINE)

    with pytest.raises(ValueError, match=r"anna__bert: no rigid alignment on cubes of .* mm.*initial='centres'"):
        linear_alignment(fixed, moving, "rigid", pair="anna__bert")


def blobs(size, affine, centres_mm, heights, floor=0.0) -> MetaTensor:
    points = grid_voxels(size, affine)
    values = torch.full(size, floor)
    for centre, height in zip(centres_mm, heights, strict=True):
        offset = points - torch.tensor(centre, dtype=torch.float32).view(3, 1, 1, 1)
        values += height * torch.exp(-offset.square().sum(0) / (2 * 9**2))
    return MetaTensor(values[None], affine=affine)


def test_centres_of_mass_meet_whatever_the_grids_and_the_background():
    fixed = blobs(FIXED_SIZE, FIXED_AFFINE, [(-12, 9, -5)], [200.0], floor=40.0)
    moving = blobs(MOVING_SIZE, MOVING_AFFINE, [(7, -4, 8)], [1000.0], floor=-300.0)

    found = initial_alignment(fixed, moving, "mass")

    torch.testing.assert_close(found, shift(19, -13, 13), atol=0.2, rtol=0)


def test_a_faint_background_hardly_pulls_the_centre_of_mass_towards_the_middle_of_the_scan():
    noise = 4 * torch.rand(1, *FIXED_SIZE)
    fixed = blobs(FIXED_SIZE, FIXED_AFFINE, [(-12, 9, -5)], [200.0]) + noise
    moving = blobs(MOVING_SIZE, MOVING_AFFINE, [(7, -4, 8)], [200.0])

    assert mean_error_mm(mass_alignment(fixed, moving), shift(19, -13, 13)) < 2.5  # 11 by all that shines


def test_mass_outside_the_masks_and_padding_weigh_nothing():
    fixed = blobs(FIXED_SIZE, FIXED_AFFINE, [(-12, 9, -5), (44, 40, 20)], [100.0, 900.0])
    moving = blobs(MOVING_SIZE, MOVING_AFFINE, [(7, -4, 8)], [1000.0], floor=-1000.0)
    mask = (grid_voxels(FIXED_SIZE, FIXED_AFFINE)[0] < 14)[None]
    bright = (grid_voxels(MOVING_SIZE, MOVING_AFFINE)[1] > 26)[None]
    moving[bright] = -20000

    found = initial_alignment(fixed, moving, "mass", fixed_mask=mask)

    torch.testing.assert_close(found, shift(19, -13, 13), atol=0.4, rtol=0)


@pytest.fixture
def gentle_field(fixed_affine, fixed_size, smooth_ddf) -> SpatialDisplacement:
    return SpatialDisplacement(smooth_ddf(fixed_size), fixed_affine)


@pytest.fixture
def far_apart(fixed_affine, fixed_size, smooth_image) -> tuple[MetaTensor, MetaTensor]:
    return smooth_image(fixed_size, fixed_affine), smooth_image(fixed_size, shift(60, 0, 0) @ fixed_affine)


@pytest.mark.parametrize("name", ["affine.mat", "affine.tfm", "affine.h5"])
def test_a_file_of_a_linear_transform_is_its_matrix(far_apart, tmp_path, monkeypatch, name):
    matrix = shift(57, 2, -3)
    matrix[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", [4, -7, 5], degrees=True).as_matrix())
    write_transform(matrix, tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))

    for given in (tmp_path / name, str(tmp_path / name), [str(tmp_path / name)], f"~/{name}"):
        found = initial_alignment(*far_apart, given)
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found, matrix)


def test_several_linear_files_are_one_matrix_the_last_acts_first_on_the_image(far_apart, tmp_path):
    turned = shift(1, 2, 3)
    turned[:3, :3] = torch.from_numpy(Rotation.from_euler("z", 8, degrees=True).as_matrix())
    write_transform(turned, tmp_path / "first.mat")
    write_transform(shift(60, 0, 0), tmp_path / "second.tfm")

    found = initial_alignment(*far_apart, [tmp_path / "first.mat", tmp_path / "second.tfm"])

    torch.testing.assert_close(found, shift(60, 0, 0) @ turned)


@pytest.mark.parametrize("name", ["field.nii.gz", "field.h5", "field.npz"])
def test_a_file_of_a_field_is_that_field_on_the_fixed_grid(far_apart, gentle_field, tmp_path, name):
    fixed = far_apart[0]
    write_transform(gentle_field, tmp_path / name)

    found = initial_alignment(fixed, fixed, str(tmp_path / name))

    assert found.size == tuple(fixed.shape[1:])
    tolerance = 2e-3 if name.endswith("npz") else 1e-4  # float16
    torch.testing.assert_close(found.ddf, gentle_field.ddf, atol=tolerance, rtol=0)


def test_a_field_and_a_matrix_in_a_row_are_one_field(far_apart, gentle_field, tmp_path):
    write_transform(gentle_field, tmp_path / "1Warp.nii.gz")
    write_transform(shift(60, 0, 0), tmp_path / "0GenericAffine.mat")

    found = initial_alignment(*far_apart, [tmp_path / "1Warp.nii.gz", tmp_path / "0GenericAffine.mat"])

    inner = voxel_to_mm(torch.tensor([[8.2, 6.5, 5.1], [3.0, 9.4, 7.7]]), far_apart[0].affine)
    torch.testing.assert_close(
        found.warp_points(inner), voxel_to_mm(gentle_field.warp_points(inner), shift(60, 0, 0)), atol=1e-3, rtol=0
    )


def test_a_given_field_is_taken_as_it_is(far_apart, gentle_field):
    assert initial_alignment(far_apart[0], far_apart[0], gentle_field) is gentle_field


def test_overlap_after_a_field_is_what_lands_inside_the_moving_volume():
    fixed, moving = box((10, 20, 40)), box((10, 20, 40), corner=(5, 0, 0))
    still = SpatialDisplacement(torch.zeros(3, 10, 20, 40), fixed.affine)
    along = SpatialDisplacement(torch.tensor([5.0, 10, 0]).view(3, 1, 1, 1).repeat(1, 10, 20, 40), fixed.affine)

    assert overlap_fraction(fixed, moving, still) == pytest.approx(0.5)
    assert overlap_fraction(fixed, moving, along) == pytest.approx(0.5)
    assert overlap_fraction(fixed, box((10, 20, 40), corner=(5, 10, 0)), along) == pytest.approx(1.0)


def test_a_field_of_another_place_is_refused(far_apart, gentle_field, tmp_path):
    fixed, moving = far_apart
    write_transform(gentle_field, tmp_path / "field.nii.gz")

    with pytest.raises(ValueError, match=r"field lies elsewhere in space than the fixed image"):
        initial_alignment(moving, fixed, gentle_field)
    with pytest.raises(ValueError, match=r"field.nii.gz: .*lies elsewhere in space than the fixed image"):
        initial_alignment(moving, fixed, tmp_path / "field.nii.gz")
    with pytest.raises(ValueError, match=r"do not overlap.*given transform"):
        initial_alignment(fixed, moving, gentle_field)


def test_a_file_that_is_missing_or_no_transform_is_refused(far_apart, tmp_path):
    (tmp_path / "noise.h5").write_text("noise")

    with pytest.raises(FileNotFoundError, match=r"nothing.h5"):
        initial_alignment(*far_apart, tmp_path / "nothing.h5")
    with pytest.raises(ValueError, match=r"noise.h5"):
        initial_alignment(*far_apart, tmp_path / "noise.h5")


@pytest.mark.parametrize(
    "given",
    [
        "center",
        torch.eye(3),
        torch.zeros(4, 4),
        torch.full((4, 4), float("nan")),
        torch.ones(4, 4),
        [],
        ["a.mat", 1],
        [[1, 0], [0]],
    ],
)
def test_anything_else_is_refused(given):
    with pytest.raises(ValueError, match="initial must be"):
        initial_alignment(box((4, 4, 4)), box((4, 4, 4)), given)
