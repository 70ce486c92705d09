# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.losses import KeypointLoss

# axes 0 and 1 swapped, axis 2 flipped, a voxel of 2 x 0.5 x 3 mm, turned around the last axis
TURN = torch.tensor([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
LINEAR = TURN @ torch.tensor([[0, 0.5, 0], [2.0, 0, 0], [0, 0, -3.0]])


def affine():
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = LINEAR
    matrix[:3, 3] = torch.tensor([7.0, -5, 11])
    return matrix


def keypoints(number=6):
    fixed = torch.rand(2, number, 3) * torch.tensor([8.0, 5.0, 10.0])
    return torch.stack([fixed + torch.randn(2, number, 3), fixed], 1)


def as_meta(points):
    meta = MetaTensor(points, affine=torch.stack([affine()] * len(points)))
    meta.is_batch = True
    return meta


def test_a_voxel_counts_as_long_as_it_is():
    points = torch.zeros(1, 2, 3, 3)
    points[0, 0] = torch.eye(3)

    in_mm = KeypointLoss()(torch.zeros(1, 1, 3, 3), as_meta(points))
    in_voxels = KeypointLoss("voxel")(torch.zeros(1, 1, 3, 3), points)

    assert in_mm.item() == pytest.approx((2.0 + 0.5 + 3.0) / 3, rel=1e-5)
    assert in_voxels.item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("growing", [True, False])
@pytest.mark.parametrize("squared", [True, False])
def test_later_iterations_weigh_more(growing, squared):
    points, pred = keypoints(), torch.randn(2, 3, 6, 3)

    found = KeypointLoss(squared=squared, growing=growing)(pred, as_meta(points))

    expected = 0.0
    for item in range(2):
        for t, weight in enumerate([1 / 6, 2 / 6, 3 / 6] if growing else [1 / 3] * 3):
            for n in range(6):
                voxels = points[item, 1, n] + pred[item, t, n] - points[item, 0, n]
                length = (LINEAR @ voxels).norm().item()
                expected += weight * (length**2 if squared else length) / 6 / 2
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_a_perfect_field_costs_nothing_and_its_gradient_is_finite():
    points = keypoints()
    pred = (points[:, 0] - points[:, 1]).unsqueeze(1).expand(-1, 8, -1, -1).clone().requires_grad_()

    loss = KeypointLoss()(pred, as_meta(points))
    loss.backward()

    assert loss.item() < 1e-5
    assert torch.isfinite(pred.grad).all()


def test_a_field_is_read_at_the_fixed_keypoints():
    i, j, k = torch.meshgrid(torch.arange(9.0), torch.arange(6.0), torch.arange(11.0), indexing="ij")
    ddf = torch.stack([0.1 * j, 0.2 * k, 0.3 * i]).expand(2, -1, -1, -1, -1)
    points = keypoints()
    x, y, z = points[:, 1].unbind(2)
    at_points = torch.stack([0.1 * y, 0.2 * z, 0.3 * x], 2).unsqueeze(1)

    found, expected = (KeypointLoss("voxel")(pred, points) for pred in (ddf, at_points))

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_points_that_are_not_known_do_not_count():
    points, pred = keypoints(), torch.randn(2, 2, 6, 3)
    spoiled = points.clone()
    spoiled[:, 0, 4:] = torch.nan

    loss = KeypointLoss("voxel")

    torch.testing.assert_close(loss(pred, spoiled), loss(pred[:, :, :4], points[:, :, :4]))


def test_bad_input_is_refused():
    points, pred = keypoints(), torch.zeros(2, 1, 6, 3)

    with pytest.raises(ValueError, match="unit must be one of"):
        KeypointLoss("cm")
    with pytest.raises(TypeError, match="in mm needs keypoints as a MetaTensor"):
        KeypointLoss()(pred, points)
    with pytest.raises(ValueError, match="as many of each"):
        KeypointLoss("voxel")(pred, points[:, :1])
    with pytest.raises(ValueError, match="a displacement for every fixed keypoint"):
        KeypointLoss("voxel")(pred[:, :, :5], points)
    with pytest.raises(ValueError, match="without a known keypoint"):
        KeypointLoss("voxel")(pred, points * torch.nan)
    with pytest.raises(ValueError, match="12 of 12 fixed keypoints lie outside the field"):
        KeypointLoss("voxel")(torch.zeros(2, 3, 9, 6, 11), points + 50)
