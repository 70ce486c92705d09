# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from monai_reg_ext.data import phantom_pair
from monai_reg_ext.transforms import FindCorrespondencesd, FoerstnerKeypoints, WarpPoints, mm_to_voxel
from monai_reg_ext.transforms.find_correspondences import smoothly_moved

SIZE, SHIFT = (26, 22, 30), (2.0, -1.0, 3.0)
# axes swapped and tilted, one flipped, spacing 1.5 x 2 x 3
AFFINE = torch.eye(4, dtype=torch.float64)
AFFINE[:3, :3] = torch.tensor([[0.0, -0.6, 0.8], [1, 0, 0], [0, 0.8, 0.6]]) @ torch.diag(torch.tensor([1.5, -2.0, 3]))
AFFINE[:3, 3] = torch.tensor([-40.0, 12, 70])


def _constant(shift):
    return MetaTensor(torch.tensor(shift).view(3, 1, 1, 1).expand(3, *SIZE).clone(), affine=AFFINE)


def _pair():
    image = torch.randn(1, *SIZE)
    return {"pair": "a__b", "fixed": MetaTensor(image, affine=AFFINE), "moving": MetaTensor(image, affine=AFFINE)}


def _finder(forward, backward, **options):
    """One whose method finds what is given."""
    return FindCorrespondencesd(method=lambda pair: {**pair, "pred": forward, "pred_inverse": backward}, **options)


def _voxels(item):
    return (mm_to_voxel(item[f"{side}_points"], AFFINE) for side in ("fixed", "moving"))


def test_keypoints_that_come_back_are_kept_with_where_they_went():
    pair = _pair()

    found = _finder(_constant(SHIFT), _constant([-step for step in SHIFT]))(pair)

    fixed, moving = _voxels(found)
    torch.testing.assert_close(moving - fixed, torch.tensor(SHIFT).double().expand_as(fixed))
    keypoints = mm_to_voxel(FoerstnerKeypoints(sigma=1.0)(pair["fixed"]), AFFINE)
    moved = keypoints + torch.tensor(SHIFT)
    seen = ((moved >= -0.5) & (moved <= torch.tensor(SIZE) - 0.5)).all(1)
    assert len(fixed) == seen.sum() < len(keypoints)
    assert found["moving"] is pair["moving"]


def test_keypoints_that_come_back_elsewhere_are_dropped():
    pair, backward = _pair(), _constant([-step for step in SHIFT])
    backward[0, 14:] += 1.4  # 2.1 mm along the axis of 1.5 mm

    strict, loose = (_finder(_constant(SHIFT), backward, tolerance_mm=tolerance)(pair) for tolerance in (2.0, 2.2))

    (_, moving), (_, all_moving) = _voxels(strict), _voxels(loose)
    assert moving[:, 0].max() < 14.5 < all_moving[:, 0].max()
    assert len(moving) == (all_moving[:, 0] < 13.9).sum()


def test_keypoints_are_looked_for_in_one_mask_and_found_in_the_other():
    pair = _pair()
    masks = torch.zeros(2, 1, *SIZE)
    masks[0, :, 4:20], masks[1, :, :18] = 1, 1
    pair |= {f"{side}_mask": MetaTensor(masks[row], affine=AFFINE) for row, side in enumerate(("fixed", "moving"))}

    fixed, moving = _voxels(_finder(_constant(SHIFT), _constant([-step for step in SHIFT]))(pair))

    assert fixed[:, 0].min() >= 5
    assert 15 < moving[:, 0].max() <= 17
    assert fixed[:, 0].max() <= 15


def test_keypoints_are_placed_anew_where_the_features_match():
    scene = torch.from_numpy(gaussian_filter(np.random.default_rng(0).normal(size=(36, 32, 40)), 1.0)).float()[None]
    fixed, moving = scene[:, 6:32, 3:25, 7:37], scene[:, 4:30, 4:26, 4:34]  # fixed(x) = moving(x + SHIFT)
    # the moving scan lies elsewhere and was brought here by the initial alignment
    initial = torch.eye(4, dtype=torch.float64)
    initial[:3, 3] = torch.tensor([4.0, -3.0, 5.0])
    there = initial @ AFFINE
    total = torch.tensor(SHIFT) + torch.linalg.solve(AFFINE[:3, :3], initial[:3, 3]).float()
    backward = MetaTensor(_constant((-total).tolist()).as_tensor(), affine=there)
    found = {
        "fixed_working": MetaTensor(fixed, affine=AFFINE),
        "moving_working": MetaTensor(moving, affine=AFFINE),
        "initial": initial,
        "pred": _constant((total + torch.tensor([0.8, -0.6, 0.4])).tolist()),
        "pred_inverse": backward,
    }
    pair = {"pair": "a__b", "fixed": found["fixed_working"], "moving": MetaTensor(moving, affine=there)}

    result = FindCorrespondencesd(method=lambda pair: {**pair, **found}, tolerance_mm=4.0)(pair)

    places = mm_to_voxel(result["fixed_points"], AFFINE)
    missed = mm_to_voxel(result["moving_points"], there) - places - torch.tensor(SHIFT)
    in_both = ((places > 4) & (places < torch.tensor(SIZE) - 8)).all(1)
    assert in_both.sum() > 10
    assert missed[in_both].norm(dim=1).median() < 0.3


def test_what_moves_unlike_all_around_it_is_dropped_and_a_smooth_motion_kept():
    points = torch.rand(400, 3, dtype=torch.float64) * torch.tensor([200.0, 150, 250])
    matrix = torch.tensor([[0.1, 0.0, 0.1], [0.0, -0.2, 0.1], [0.2, 0.0, 0.3]]).double()
    moved = points + points @ matrix.T + 8 * torch.sin(points / 60)
    astray = moved.clone()
    astray[::20] += torch.tensor([0.0, 12.0, 0.0])

    kept = smoothly_moved(points, astray, 2.0)

    assert smoothly_moved(points, moved, 2.0).float().mean() > 0.97
    assert not kept[::20].any()
    assert kept.sum() > 0.95 * 380


def test_what_cannot_be_checked_or_is_not_found_again_is_an_error():
    with pytest.raises(ValueError, match="both directions"):
        FindCorrespondencesd(method=lambda pair: {**pair, "pred": _constant(SHIFT)})(_pair())
    with pytest.raises(ValueError, match=r"only 0 of \d+ keypoints were found again"):
        _finder(_constant(SHIFT), _constant(SHIFT))(_pair())
    with pytest.raises(ValueError, match="tolerance_mm must be > 0, got 0"):
        _finder(_constant(SHIFT), _constant(SHIFT), tolerance_mm=0)


def test_nine_of_ten_correspondences_of_a_phantom_are_right_to_two_millimetres():
    pair = phantom_pair(size=(64, 60, 48), spacing=(2.5, 2.0, 3.0), max_displacement_mm=15.0)
    truth = pair.pop("true_ddf")
    pair = {key: pair[key] for key in ("pair", "fixed", "moving")} | {"fixed_mask": pair["fixed_body"]}

    found = FindCorrespondencesd(number=500, device="cpu")(pair)

    error = (found["moving_points"] - WarpPoints()(found["fixed_points"], truth)).norm(dim=1)
    assert len(error) > 200
    assert (error < 2).float().mean() > 0.9
