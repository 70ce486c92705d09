# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Affined, Compose, Flipd, SpatialCropd

from monai_reg_ext.engines import prepare_keypoint_batch
from monai_reg_ext.losses import KeypointLoss
from monai_reg_ext.networks.layers import sample_points
from monai_reg_ext.transforms import DrawKeypointsd, ResampleToFixedd, SpatialDisplacement, voxel_to_mm
from monai_reg_ext.transforms.conventions import grid_voxels

SIZES = {"fixed": (15, 21, 12), "moving": (18, 16, 17)}
# axes swapped and tilted, one flipped, spacing 1.5 x 2 x 3; and a coarser grid whose axes point along the others'
FIXED = torch.eye(4, dtype=torch.float64)
FIXED[:3, :3] = torch.tensor([[0.0, -0.6, 0.8], [1, 0, 0], [0, 0.8, 0.6]]) @ torch.diag(torch.tensor([1.5, -2.0, 3]))
FIXED[:3, 3] = torch.tensor([-40.0, 12, 70])
MOVING = torch.diag(torch.tensor([-4.0, 3.5, 5.0, 1.0], dtype=torch.float64))
MOVING[:3, 3] = torch.tensor([20.0, 0, 20])
INITIAL = torch.eye(4, dtype=torch.float64)
INITIAL[:3, :3] = torch.tensor([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0, 0, 1.05]])
INITIAL[:3, 3] = torch.tensor([3.0, -2, 1])


def _coordinates(size, affine):
    """An image whose channels say where in space a voxel lies, and that it is one."""
    return MetaTensor(torch.cat([grid_voxels(size, affine), torch.ones(1, *size)]), affine=affine)


def _shown(image, voxels):
    """Where in space the image says that voxels lie, and whether it shows them."""
    values = sample_points(image.as_tensor()[None], voxels[None], padding="zeros")[0].double()
    return values[:, :3], values[:, 3] > 1 - 1e-5


def _pair(number=60, margin=3.0, initial=INITIAL):
    voxels = margin + torch.rand(number, 3, dtype=torch.float64) * (torch.tensor(SIZES["fixed"]) - 1 - 2 * margin)
    fixed_points = voxel_to_mm(voxels, FIXED)
    moving_points = voxel_to_mm(fixed_points, initial) + torch.randn(number, 3)
    images = {"fixed": _coordinates(SIZES["fixed"], FIXED), "moving": _coordinates(SIZES["moving"], MOVING)}
    return {**images, "fixed_points": fixed_points, "moving_points": moving_points}


def _on_the_fixed_grid(pair):
    """The pair as a network is given it, without an initial alignment."""
    image = MetaTensor(torch.rand(1, *SIZES["fixed"]), affine=FIXED)
    return {**pair, "fixed_working": image, "moving_working": image.clone()}


TURN = {"rotate_params": (0.1, -0.2, 0.1), "scale_params": (1.1, 0.9, 1.0)}
CHANGES = {
    "nothing": [],
    "moving flipped": [Flipd("moving_working", 1)],
    "moving turned": [Affined("moving_working", **TURN, padding_mode="zeros")],
    "both cropped": [SpatialCropd(["fixed_working", "moving_working"], roi_start=(2, 1, 1), roi_end=(14, 20, 11))],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("initial", ["headers", "matrix", "field"])
@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 2.5)])
def test_images_show_at_the_keypoints_what_lies_at_the_points(initial, spacing, change):
    start = {"headers": "headers", "matrix": INITIAL}.get(initial)
    if initial == "field":
        displacement = grid_voxels(SIZES["fixed"], torch.linalg.solve(FIXED, INITIAL @ FIXED), dtype=torch.float64)
        displacement -= grid_voxels(SIZES["fixed"], torch.eye(4), dtype=torch.float64)
        start = SpatialDisplacement(displacement.float(), FIXED)
    pair = _pair(margin=4, initial=torch.eye(4) if initial == "headers" else INITIAL)
    steps = [ResampleToFixedd(spacing=spacing, initial=start, outside=0), *CHANGES[change], DrawKeypointsd(40)]

    item = Compose(steps)(pair)

    moving, fixed = item["keypoints"].as_tensor()
    fixed_mm, is_shown = _shown(item["fixed_working"], fixed)
    distance, row = torch.cdist(fixed_mm[is_shown], pair["fixed_points"]).min(1)
    assert distance.max() < 1e-3
    assert len(row.unique()) == len(row) > 10
    assert torch.equal(item["keypoints"].affine, item["fixed_working"].affine)
    moving_mm, is_seen = (values[is_shown] for values in _shown(item["moving_working"], moving))
    assert is_seen.sum() > 10
    torch.testing.assert_close(moving_mm[is_seen], pair["moving_points"][row][is_seen], atol=1e-3, rtol=0)


def test_points_are_drawn_anew_each_time_none_twice_and_as_the_seed_says():
    pair = _on_the_fixed_grid(_pair(30))
    first, second = (DrawKeypointsd(8).set_random_state(seed) for seed in (3, 3))

    draws = [first(pair)["keypoints"].as_tensor() for _ in range(2)]

    assert torch.equal(draws[0], second(pair)["keypoints"].as_tensor())
    assert not torch.equal(draws[0], draws[1])
    assert len(draws[0][1].unique(dim=0)) == 8


def test_a_pair_with_fewer_points_is_filled_up_with_unknown_rows():
    pair = _on_the_fixed_grid(_pair(6))

    keypoints = DrawKeypointsd(9)(pair)["keypoints"].as_tensor()

    expected = [voxel_to_mm(pair[key], torch.linalg.inv(FIXED)).float() for key in ("moving_points", "fixed_points")]
    torch.testing.assert_close(keypoints[:, :6], torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert keypoints.shape == (2, 9, 3)
    assert keypoints[:, 6:].isnan().all()


def test_points_beyond_the_fixed_image_or_not_known_are_left_out():
    pair = _on_the_fixed_grid(_pair(9))
    beyond = torch.tensor([[-0.6, 3, 3], [3, 20.6, 3]], dtype=torch.float64)
    pair["fixed_points"][2:4] = voxel_to_mm(beyond, FIXED)
    pair["fixed_points"][5, 1] = torch.nan
    pair["moving_points"][7, 0] = torch.inf

    keypoints = DrawKeypointsd(9)(pair)["keypoints"].as_tensor()

    expected = voxel_to_mm(pair["fixed_points"][[0, 1, 4, 6, 8]], torch.linalg.inv(FIXED)).float()
    torch.testing.assert_close(keypoints[1, :5], expected, atol=1e-4, rtol=1e-4)
    assert keypoints[:, 5:].isnan().all()


def test_without_any_displacement_the_loss_of_a_batch_is_the_mean_distance_in_mm():
    pairs = [_on_the_fixed_grid(_pair(number)) for number in (6, 10)]
    items = [
        {"image": torch.cat([pair["moving_working"], pair["fixed_working"]]), "keypoints": keypoints}
        for pair in pairs
        for keypoints in [DrawKeypointsd(10)(pair)["keypoints"]]
    ]

    _, target, _, named = prepare_keypoint_batch(next(iter(DataLoader(Dataset(items), batch_size=2))))
    loss = KeypointLoss("mm")(torch.zeros(2, 1, 10, 3), target)

    distances = [(pair["moving_points"] - pair["fixed_points"]).norm(dim=1).mean() for pair in pairs]
    assert named["fixed_points"].shape == (2, 10, 3)
    assert loss.item() == pytest.approx(torch.stack(distances).mean().item(), rel=1e-4)


def test_what_cannot_be_learned_from_is_refused():
    pair = _on_the_fixed_grid(_pair(7))
    in_voxels = {**pair, "fixed_points": pair["fixed_points"] + 1000}
    draw = DrawKeypointsd(5)

    with pytest.raises(ValueError, match="shows 0 of 7 corresponding points, at least 4 are needed"):
        draw(in_voxels)
    with pytest.raises(ValueError, match="shows 3 of 3 corresponding points"):
        draw({**pair, "fixed_points": pair["fixed_points"][:3], "moving_points": pair["moving_points"][:3]})
    with pytest.raises(ValueError, match=r"must be one place, .* got \(7, 3\) and \(6, 3\)"):
        draw({**pair, "moving_points": pair["moving_points"][1:]})
    with pytest.raises(TypeError, match=r"moving_working: points in mm need a MetaTensor .* got Tensor"):
        draw({**pair, "moving_working": pair["moving_working"].as_tensor()})
    with pytest.raises(ValueError, match="at least 4, got 3"):
        DrawKeypointsd(3)
