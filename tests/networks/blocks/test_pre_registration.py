# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks import PRE_REGISTRATION_MODES, PreRegistrationAugmentation
from monai_reg_ext.networks.layers import thin_plate_field

SIZE = (9, 13, 11)


def _batch(items=1, number=30):
    points = torch.rand(items, number, 3) * (torch.tensor(SIZE) - 1)
    return points, 2 * torch.randn(items, number, 3), torch.randn(items, number, 3)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", [mode for mode in PRE_REGISTRATION_MODES if not mode.noise])
def test_a_mode_mixes_prediction_and_truth(mode):
    points, truth, prediction = _batch(items=2)

    field = PreRegistrationAugmentation([mode])(points, truth, SIZE, _generator(), prediction)

    expected = thin_plate_field(points, mode.prediction * prediction + mode.truth * truth, SIZE, mode.smoothing)
    torch.testing.assert_close(field, expected)


def test_noise_is_as_large_as_said_where_the_grid_reaches_from_minus_one_to_one():
    voxels = torch.cartesian_prod(*[torch.arange(extent) for extent in SIZE])[torch.randperm(1287)[:400]]
    truth = torch.randn(1, 400, 3)

    # with hardly any smoothing the field at a point is its displacement
    augmentation = PreRegistrationAugmentation([(0, 1, 0.2, 1e-6)], spacing=1)
    field = augmentation(voxels[None].double(), truth.double(), SIZE, _generator())

    i, j, k = voxels.T
    noise = field[0, :, i, j, k].T - truth[0]
    expected = 0.2 * (torch.tensor(SIZE) - 1) / 2
    torch.testing.assert_close(noise.std(0), expected.double(), rtol=0.12, atol=0)


def test_without_a_first_method_it_counts_as_having_found_nothing():
    points, truth, _ = _batch()

    half = PreRegistrationAugmentation([(0.5, 0.5)])(points, truth, SIZE, _generator())
    nothing = PreRegistrationAugmentation([(1, 0)])(points, truth, SIZE, _generator())

    torch.testing.assert_close(half, thin_plate_field(points, truth / 2, SIZE))
    assert not nothing.any()


def test_rows_that_are_not_known_do_not_count():
    points, truth, prediction = _batch(items=2)
    holes = points.clone()
    holes[0, 20:], truth[1, 25:] = torch.nan, torch.nan

    field = PreRegistrationAugmentation([(0.5, 0.5)])(holes, truth, SIZE, _generator(), prediction)

    for item, number in ((0, 20), (1, 25)):
        values = (truth + prediction)[item : item + 1, :number] / 2
        expected = thin_plate_field(points[item : item + 1, :number], values, SIZE)
        torch.testing.assert_close(field[item : item + 1], expected)


def test_all_modes_come_up_and_the_generator_decides_alone():
    points, truth, prediction = _batch(items=40, number=5)
    augmentation = PreRegistrationAugmentation([(1, 0), (0, 0), (0, 1)])

    first = augmentation(points, truth, SIZE, _generator(3), prediction)
    torch.manual_seed(99)
    again = augmentation(points, truth, SIZE, _generator(3), prediction)

    assert torch.equal(first, again)
    assert not torch.equal(first, augmentation(points, truth, SIZE, _generator(4), prediction))
    of_modes = [thin_plate_field(points, values, SIZE) for values in (prediction, 0 * truth, truth)]
    same = torch.stack([(first - field).abs().amax((1, 2, 3, 4)) < 1e-4 for field in of_modes])
    assert same.any(0).all()
    assert same.any(1).all()


def test_an_augmentation_without_modes_is_refused():
    with pytest.raises(ValueError, match="at least one mode"):
        PreRegistrationAugmentation([])
