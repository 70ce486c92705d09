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
    centre_alignment,
    grid_voxels,
    initial_alignment,
    overlap_fraction,
    voxel_to_mm,
)
from monai_reg_ext.transforms.initial_alignment import linear_alignment

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


@pytest.mark.parametrize(
    "given", ["center", torch.eye(3), torch.zeros(4, 4), torch.full((4, 4), float("nan")), torch.ones(4, 4)]
)
def test_anything_else_is_refused(given):
    with pytest.raises(ValueError, match="initial must be"):
        initial_alignment(box((4, 4, 4)), box((4, 4, 4)), given)
