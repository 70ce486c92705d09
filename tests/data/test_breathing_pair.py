# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.data import BreathingCarrier, LungMotion, breathing_pair
from monai_reg_ext.data.lung_motion import NODES
from monai_reg_ext.networks.layers import warp
from monai_reg_ext.transforms import mm_to_voxel


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def motion():
    coefficients = torch.randn(3, *NODES, generator=_generator(), dtype=torch.float64)
    return LungMotion(0.2 * coefficients, "patient")


def test_the_fixed_scan_is_the_moving_one_where_the_field_leads(carrier, motion):
    pair = breathing_pair(carrier, motion, _generator(), density=0, noise_hu=0)

    assert pair["pair"] == "scan_patient__scan"
    assert pair["true_ddf"].abs().max() > 1
    warped = warp(pair["moving"][None].as_tensor(), pair["true_ddf"][None].as_tensor())[0]
    inside = (..., *[slice(4, -4)] * 3)
    difference = (warped - pair["fixed"].as_tensor())[inside]
    # of linear against cubic interpolation, on an image whose deviation is over 200
    assert difference.std() < 20
    assert pair["moving"].as_tensor().std() > 200
    torch.testing.assert_close(pair["moving"].as_tensor(), carrier.image)


def test_points_are_exact_in_both_frames_and_inside_the_lungs(carrier, motion):
    pair = breathing_pair(carrier, motion, _generator(), points=70)

    fixed, moving = (mm_to_voxel(pair[f"{side}_points"], carrier.affine) for side in ("fixed", "moving"))
    assert fixed.shape == (70, 3)
    torch.testing.assert_close(moving, carrier.moved(fixed, motion))
    assert (fixed - fixed.round()).abs().max() > 0.3
    i, j, k = fixed.round().long().T
    assert pair["fixed_mask"].as_tensor()[0, i, j, k].all()


def test_no_point_leaves_the_scan_though_the_lungs_do(lung_scan, motion):
    image, mask = lung_scan
    carrier = BreathingCarrier(image[..., 8:], mask[..., 8:], lung_box=((3, 22), (4, 25), (-5, 12)))

    pair = breathing_pair(carrier, motion, _generator(), points=3000)

    moving = mm_to_voxel(pair["moving_points"], carrier.affine)
    assert carrier.mask[..., 0].any()
    assert moving.min() >= 0
    assert (moving <= torch.tensor(carrier.size) - 1).all()


def test_masks_are_the_lungs_before_and_after(carrier, motion):
    pair = breathing_pair(carrier, motion, _generator())

    assert torch.equal(pair["moving_mask"].as_tensor() > 0, carrier.mask)
    moved = warp(carrier.mask[None].float(), pair["true_ddf"][None].as_tensor())[0]
    assert torch.equal(pair["fixed_mask"].as_tensor() > 0, moved > 0.5)


def test_lungs_that_grow_by_a_factor_were_denser_by_that_factor(carrier, linear_patient):
    motion = LungMotion.fit(linear_patient(torch.diag(torch.tensor([0.1, 0.2, 0.3]))))

    dense = breathing_pair(carrier, motion, _generator(), noise_hu=0)
    light = breathing_pair(carrier, motion, _generator(), noise_hu=0, density=0)

    inside = dense["fixed_mask"].as_tensor() > 0
    deep = inside & (breathing_pair(carrier, motion, _generator())["fixed"].as_tensor() < -700)
    ratio = (dense["fixed"] + 1000).as_tensor()[deep] / (light["fixed"] + 1000).as_tensor()[deep]
    assert ratio.median().item() == pytest.approx(1.1 * 1.2 * 1.3, rel=0.01)
    outside = warp(carrier.mask[None].float(), dense["true_ddf"][None].as_tensor())[0] == 0
    torch.testing.assert_close(dense["fixed"].as_tensor()[outside], light["fixed"].as_tensor()[outside])


def test_both_scans_get_noise_of_their_own(carrier, motion):
    clean, noisy = (breathing_pair(carrier, motion, _generator(), noise_hu=sigma) for sigma in (0, 25))

    noise = torch.stack([(noisy[side] - clean[side]).as_tensor().flatten() for side in ("fixed", "moving")])
    torch.testing.assert_close(noise.std(1), torch.full((2,), 25.0), rtol=0.03, atol=0)
    assert torch.corrcoef(noise)[0, 1].abs() < 0.05


def test_the_generator_decides_noise_and_points(carrier, motion):
    first, again, other = (breathing_pair(carrier, motion, _generator(seed)) for seed in (5, 5, 6))

    assert torch.equal(first["fixed"], again["fixed"])
    assert torch.equal(first["fixed_points"], again["fixed_points"])
    assert not torch.equal(first["fixed_points"], other["fixed_points"])


def test_lungs_that_leave_the_scan_are_an_error(lung_scan, linear_patient):
    away = LungMotion.fit(linear_patient(torch.zeros(3, 3), (9.0, 0.0, 0.0)))
    carrier = BreathingCarrier(*lung_scan)
    carrier.frame = lambda motion: (carrier.centre, carrier.half)

    with pytest.raises(ValueError, match="no voxel of them is left"):
        breathing_pair(carrier, away, _generator())
