# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.networks.layers import foerstner_keypoints
from monai_reg_ext.transforms import FoerstnerKeypoints, FoerstnerKeypointsd

# axes swapped and tilted, one flipped, spacing 1.5 x 2 x 3
AFFINE = torch.eye(4, dtype=torch.float64)
AFFINE[:3, :3] = torch.tensor([[0.0, -0.6, 0.8], [1, 0, 0], [0, 0.8, 0.6]]) @ torch.diag(torch.tensor([1.5, -2.0, 3]))
AFFINE[:3, 3] = torch.tensor([-40.0, 12, 70])


def _image(blobs):
    index = torch.stack(torch.meshgrid(*[torch.arange(float(extent)) for extent in (24, 20, 28)], indexing="ij"))
    distances = [(index - torch.tensor(blob).view(3, 1, 1, 1)).square().sum(0) for blob in blobs]
    return MetaTensor(sum((-distance / 4).exp() for distance in distances)[None], affine=AFFINE)


def test_blobs_are_found_where_they_are_in_space():
    blobs = torch.tensor([[6.0, 5, 7], [17, 13, 20]])

    points = FoerstnerKeypoints(number=2, selection="strongest")(_image(blobs.tolist()))

    expected = blobs.double() @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    assert points.dtype == torch.float64
    torch.testing.assert_close(points[points[:, 2].argsort()], expected[expected[:, 2].argsort()])


def test_slopes_and_distances_are_taken_in_mm_and_settings_reach_the_search():
    image = MetaTensor(torch.randn(1, 24, 20, 28), affine=AFFINE)
    mask = torch.zeros(1, 24, 20, 28)
    mask[:, 3:20, 2:17, 4:25] = 1

    item = FoerstnerKeypointsd(number=10, sigma=0.8, window=5)({"fixed": image, "fixed_mask": mask})

    (voxels,) = foerstner_keypoints(image.as_tensor()[None], mask[None], 10, 0.8, 5, spacing=(1.5, 2.0, 3.0))
    expected = voxels.double() @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    assert len(voxels) == 10
    torch.testing.assert_close(item["fixed_points"], expected)


def test_both_sides_of_a_pair_are_searched_each_in_its_mask_if_it_has_one():
    pair = {"fixed": _image([[6.0, 5, 7], [17, 13, 20]]), "moving": _image([[17.0, 13, 20], [5.0, 7, 8]])}
    pair["moving_mask"] = MetaTensor((torch.arange(24) > 10)[None, :, None, None].expand(1, 24, 20, 28), affine=AFFINE)
    keys = ["fixed", "moving"], ["fixed_points", "moving_points"], ["fixed_mask", "moving_mask"]

    item = FoerstnerKeypointsd(*keys, number=2, selection="strongest")(pair)

    assert len(item["fixed_points"]) == 2
    voxels = (item["moving_points"] - AFFINE[:3, 3]) @ torch.linalg.inv(AFFINE[:3, :3]).T
    assert voxels[0].round().tolist() == [17, 13, 20]
    assert (voxels[:, 0] > 10).all()


def test_an_image_without_affine_or_without_keypoints_is_refused():
    with pytest.raises(TypeError, match="MetaTensor with its affine, got Tensor"):
        FoerstnerKeypoints()(torch.zeros(1, 5, 6, 7))
    with pytest.raises(ValueError, match="no keypoint in this image: it has no contrast"):
        FoerstnerKeypoints()(MetaTensor(torch.zeros(1, 5, 6, 7), affine=AFFINE))
