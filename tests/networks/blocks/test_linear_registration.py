# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation

from monai_reg_ext.networks.blocks import MindSSC
from monai_reg_ext.networks.blocks.linear_registration import LinearRegistration, _between_grids, _Pair, _Scan
from monai_reg_ext.networks.layers.warp import identity_grid

FIXED_SIZE, MOVING_SIZE = (40, 46, 36), (44, 38, 42)


def scene(size: tuple[int, ...], to_fixed: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Blobs that are known everywhere, so that no image of them is interpolated, ``(1, 1, *size)``."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(70, 3, generator=generator) * torch.tensor([34.0, 40.0, 30.0]) + 3
    widths, heights = torch.rand(70, generator=generator) * 3 + 1.5, torch.rand(70, generator=generator) + 0.3
    voxels = identity_grid(size, centres)[0].double()
    points = torch.tensordot(to_fixed[:3, :3].double(), voxels, 1).float() + to_fixed[:3, 3].float().view(3, 1, 1, 1)
    image = torch.zeros(size)
    for centre, width, height in zip(centres, widths, heights, strict=True):
        image += height * torch.exp(-(points - centre.view(3, 1, 1, 1)).square().sum(0) / (2 * width**2))
    return image[None, None]


def pose(degrees: float, shift: tuple[float, ...], stretch: tuple[float, ...] = (1.0, 1.0, 1.0)) -> torch.Tensor:
    """From fixed to moving voxels: centre to centre, then turned, stretched, shifted."""
    axis = torch.tensor([0.48, -0.6, 0.64])
    turn = Rotation.from_rotvec((torch.deg2rad(torch.tensor(degrees)) * axis).numpy()).as_matrix()
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(turn) @ torch.diag(torch.tensor(stretch)).double()
    centres = [(torch.tensor(size).double() - 1) / 2 for size in (FIXED_SIZE, MOVING_SIZE)]
    matrix[:3, 3] = centres[1] + torch.tensor(shift) - matrix[:3, :3] @ centres[0]
    return matrix


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    """Mean distance over the middle of the fixed image, voxels."""
    points = identity_grid(FIXED_SIZE, found)[0, :, 8:-8, 8:-8, 8:-8].flatten(1).double()
    points = torch.cat([points, torch.ones_like(points[:1])])
    return torch.linalg.vector_norm(((found - true) @ points)[:3], dim=0).mean().item()


def pair(true: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return scene(FIXED_SIZE, torch.eye(4)), scene(MOVING_SIZE, torch.linalg.inv(true))


@pytest.mark.parametrize(
    ("kind", "true"),
    [
        ("rigid", pose(0, (0, 0, 0))),
        ("rigid", pose(18, (9, -7, 5))),
        ("similarity", pose(-20, (-8, 4, 10), (0.9, 0.9, 0.9))),
        ("affine", pose(15, (3, 9, -8), (1.1, 0.92, 1.04))),
    ],
)
def test_the_pose_of_a_scene_is_found(kind, true):
    found = LinearRegistration(kind)(*pair(true))

    assert found.shape == (1, 4, 4)
    assert error(found[0], true) < 0.1


def test_a_rigid_transform_is_a_rotation_and_a_shift():
    linear = LinearRegistration("rigid")(*pair(pose(10, (2, 3, 4), (1.1, 0.9, 1.0))))[0, :3, :3]

    torch.testing.assert_close(linear @ linear.T, torch.eye(3, dtype=torch.float64))


def test_swapped_and_flipped_axes_are_found_from_their_directions():
    true = pose(12, (5, -6, 3))
    fixed, moving = pair(true)
    swap = torch.tensor([[0, 0, -1.0, MOVING_SIZE[2] - 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).double()
    swapped = moving.permute(0, 1, 4, 2, 3).flip(2)

    found = LinearRegistration("rigid")(fixed, swapped, directions=swap[None, :3, :3])

    assert error(found[0], swap @ true) < 0.1


def test_contrast_does_not_matter():
    fixed, moving = pair(pose(12, (5, -6, 3)))

    found = LinearRegistration("rigid")(fixed, 7 - 3 * moving)

    assert error(found[0], pose(12, (5, -6, 3))) < 0.1


@pytest.fixture(scope="module")
def half_moved() -> tuple[torch.Tensor, torch.Tensor]:
    """A pair whose lower part is brighter and did not move with the rest."""
    images = pair(pose(8, (4, -3, 5)))
    for image in images:
        image[..., :40, :38, :20] = 3 * scene((40, 38, 20), torch.eye(4), seed=1)
    return images


def upper_part(image: torch.Tensor) -> torch.Tensor:
    return (torch.arange(image.shape[-1]) >= 24).float().expand_as(image)


def test_what_masks_leave_out_does_not_attract(half_moved):
    found = LinearRegistration("rigid")(*half_moved, *(upper_part(image) for image in half_moved))

    assert error(found[0], pose(8, (4, -3, 5))) < 0.5


def test_places_count_where_both_masks_and_the_moving_image_are():
    fixed, moving = (_Scan(torch.rand(1, 1, *size), torch.ones(1, 1, *size)) for size in ((8, 7, 9), (9, 10, 12)))
    fixed.mask[..., :3] = 0
    moving.mask[:, :, 6:] = 0
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 3], matrix[1, 3] = 1, 5

    pair = _Pair(fixed, moving, MindSSC(1, 1))
    _, weight = pair.moving_at(matrix)

    i, j, k = torch.meshgrid(*(torch.arange(extent) for extent in (8, 7, 9)), indexing="ij")
    assert torch.equal(pair.weight[0, 0] > 0, k >= 3)
    assert torch.equal(weight[0, 0] > 0, (i + 1 < 6) & (j + 5 < 9))  # row 9 has a neighbour beyond the image


def test_without_masks_the_brighter_part_attracts(half_moved):
    assert error(LinearRegistration("rigid")(*half_moved)[0], pose(8, (4, -3, 5))) > 2


def test_cells_of_a_coarse_grid_move_as_the_voxels_in_their_middle():
    true = pose(17, (4, -3, 5), (0.9, 1.0, 1.1))
    cell = torch.tensor([2.0, 5, 4]).double()

    coarse = _between_grids(true, 1, 3)

    middle = true[:3, :3] @ (3 * cell + 1) + true[:3, 3]  # voxels 3c, 3c + 1, 3c + 2
    torch.testing.assert_close(3 * (coarse[:3, :3] @ cell + coarse[:3, 3]) + 1, middle)
    torch.testing.assert_close(_between_grids(coarse, 3, 1), true)


def test_every_item_of_a_batch_is_registered_by_itself():
    first, second = pose(5, (3, 2, 1)), pose(-14, (-4, 6, 0))
    images = [torch.cat(side) for side in zip(pair(first), pair(second), strict=True)]

    found = LinearRegistration("rigid")(*images)

    assert torch.equal(found[1], LinearRegistration("rigid")(*pair(second))[0])
    assert error(found[0], first) < 0.1
    assert error(found[1], second) < 0.1


def test_the_same_images_give_the_same_matrix():
    images = pair(pose(9, (4, 4, -7)))

    assert torch.equal(LinearRegistration()(*images), LinearRegistration()(*images))


def test_images_without_any_structure_give_a_finite_transform():
    assert torch.isfinite(LinearRegistration()(torch.zeros(1, 1, *FIXED_SIZE), torch.ones(1, 1, *MOVING_SIZE))).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same_pose():
    images = pair(pose(-11, (6, -2, 3)))

    found = LinearRegistration()(*(image.cuda() for image in images))

    assert error(found[0], LinearRegistration()(*images)[0]) < 0.02


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"moving": torch.zeros(1, 1, 20, 11, 20)}, "at least 12 voxels along each axis"),
        ({"fixed": torch.zeros(1, 2, 20, 20, 20)}, r"images \(B, 1, I, J, K\)"),
        ({"fixed_mask": torch.ones(1, 1, 20, 19, 18)}, "has their shape"),
        ({"moving_mask": torch.zeros(1, 1, 20, 19, 21)}, "moving mask leaves nothing"),
    ],
)
def test_images_and_masks_that_do_not_fit_are_refused(given, message):
    images = {"fixed": torch.rand(1, 1, 20, 21, 22), "moving": torch.rand(1, 1, 20, 19, 21)}

    with pytest.raises(ValueError, match=message):
        LinearRegistration()(**{**images, **given})


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of"):
        LinearRegistration("elastic")
