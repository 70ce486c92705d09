# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms import CheckPaird, voxel_to_mm


@pytest.fixture
def pair(fixed_affine, fixed_size, moving_affine, moving_size, smooth_image):
    fixed, moving = smooth_image(fixed_size, fixed_affine), smooth_image(moving_size, moving_affine)
    return {
        "pair": "a__b",
        "fixed": fixed,
        "moving": moving,
        "fixed_label": (fixed > 100).to(torch.int32),
        "moving_mask": (moving > 100).to(torch.uint8),
        "fixed_points": voxel_to_mm(torch.tensor([[0.0, 0.0, 0.0], [16.4, 13.4, 10.4]]), fixed_affine),
        "moving_points": voxel_to_mm(torch.tensor([[-0.5, -0.5, -0.5], [18.5, 22.5, 20.5]]), moving_affine),
    }


def changed(volume: MetaTensor, index: tuple, value: float) -> MetaTensor:
    volume = volume.clone()
    volume[index] = value
    return volume


def with_affine(volume: MetaTensor, affine: torch.Tensor) -> MetaTensor:
    return MetaTensor(volume.as_tensor(), affine=affine, meta={"filename_or_obj": "scan.mha"})


def refusal(pair, **changes) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (callers check the message)
        CheckPaird()({**pair, **changes})
    return str(caught.value)


def test_a_sound_pair_passes_unchanged(pair):
    assert CheckPaird()(pair) == pair


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_voxels_that_are_not_finite_are_counted(pair, value):
    message = refusal(pair, moving=changed(pair["moving"], (0, 1, 2, slice(0, 3)), value))

    assert message.startswith("moving (scan.mha): 3 voxels")


def test_a_constant_image_is_refused(pair):
    message = refusal(pair, fixed=torch.full_like(pair["fixed"], 7))

    assert "constant (7 everywhere)" in message


def test_an_affine_of_nan_is_refused(pair, fixed_affine):
    affine = fixed_affine.clone()
    affine[0, 3] = float("nan")

    assert "affine" in refusal(pair, fixed=with_affine(pair["fixed"], affine))


def test_a_voxel_size_of_zero_is_refused(pair, fixed_affine):
    affine = fixed_affine.clone()
    affine[:3, 1] = 0

    assert "[1.5, 0.0, 2.6]" in refusal(pair, fixed=with_affine(pair["fixed"], affine))


def test_an_affine_that_squeezes_space_is_refused(pair, moving_affine):
    affine = moving_affine.clone()
    affine[:3, 2] = affine[:3, 0] + affine[:3, 1]

    assert "singular" in refusal(pair, moving=with_affine(pair["moving"], affine))


def test_a_small_voxel_is_not_singular(pair, fixed_affine):
    scale = torch.diag(torch.tensor([1e-3, 1e-3, 1e-3, 1.0], dtype=torch.float64))
    tiny = with_affine(pair["fixed"], fixed_affine @ scale)

    CheckPaird()({"fixed": tiny, "moving": tiny})


@pytest.mark.parametrize("key", ["fixed_label", "fixed_prediction", "fixed_mask"])
def test_a_label_map_or_mask_of_another_size_is_refused(pair, key):
    message = refusal(pair, **{key: pair["fixed_label"][:, 1:]})

    assert key in message
    assert "(16, 14, 11)" in message
    assert "(17, 14, 11)" in message


def test_a_mask_in_another_place_is_refused_and_rounding_is_not(pair, moving_affine):
    shifted = moving_affine.clone()
    shifted[:3, 3] += torch.tensor([0.0, 3.0, 4.0], dtype=torch.float64)

    assert "5 mm apart" in refusal(pair, moving_mask=with_affine(pair["moving_mask"], shifted))
    CheckPaird()({**pair, "moving_mask": with_affine(pair["moving_mask"], moving_affine.float().double() + 1e-5)})


def test_an_empty_mask_is_refused(pair):
    assert "moving_mask (scan.mha): the mask is empty" in refusal(pair, moving_mask=pair["moving_mask"] * 0)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (0, 3), (1, 4, 3)])
def test_points_of_another_shape_are_refused(pair, shape):
    assert str(shape) in refusal(pair, fixed_points=torch.zeros(shape))


def test_points_that_are_not_finite_are_refused(pair):
    assert "fixed_points" in refusal(pair, fixed_points=torch.full((2, 3), float("nan")))


def test_points_outside_their_image_are_counted(pair, moving_affine):
    voxel = torch.tensor([[0.0, 0.0, 0.0], [-0.6, 5.0, 5.0], [5.0, 22.6, 5.0], [18.0, 22.0, 20.0]])

    message = refusal(pair, moving_points=voxel_to_mm(voxel, moving_affine))

    assert message.startswith("moving_points: 2 of 4 points")


def test_most_points_outside_the_mask_are_refused(pair, moving_affine, moving_size):
    mask = torch.zeros(1, *moving_size)
    mask[:, 4:8, 5:9, 6:10] = 2
    inside, outside = [4.4, 5.0, 9.4], [8.6, 5.0, 9.4]
    voxel = torch.tensor([inside, outside, outside])

    message = refusal(
        pair,
        moving_mask=MetaTensor(mask, affine=moving_affine),
        moving_points=voxel_to_mm(voxel, moving_affine),
        fixed_points=pair["fixed_points"][[0, 0, 1]],
    )

    assert message.startswith("moving_points: 2 of 3 points lie outside the mask")


def test_a_few_points_outside_the_mask_are_warned_of(pair, moving_affine, moving_size, caplog):
    mask = torch.ones(1, *moving_size)
    mask[:, :2] = 0

    CheckPaird()({**pair, "moving_mask": MetaTensor(mask, affine=moving_affine)})

    assert "moving_points: 1 of 2 points lie outside the mask" in caplog.text


def test_different_numbers_of_points_are_refused(pair):
    message = refusal(pair, fixed_points=pair["fixed_points"][:1])

    assert "1 and 2" in message
