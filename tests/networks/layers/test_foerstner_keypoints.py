# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, maximum_filter

from monai_reg_ext.networks.layers import farthest_points, foerstner_distinctiveness, foerstner_keypoints

SIZES = [(90, 104), (34, 40, 37)]


def _rows(points):
    return {tuple(row) for row in points.int().tolist()}


def _maxima(image, mask=None, spacing=None):
    """By scipy: distinctiveness of every maximum."""
    distinct = foerstner_distinctiveness(image, spacing=spacing)[0, 0].numpy()
    mask = np.ones(distinct.shape) if mask is None else mask.numpy()
    found = (distinct == maximum_filter(distinct, 3)) & binary_erosion(mask != 0)
    return {tuple(index): float(distinct[tuple(index)]) for index in np.argwhere(found).tolist()}


@pytest.mark.parametrize("size", SIZES)
def test_scipy_finds_the_same_maxima(size):
    image = torch.randn(1, 1, *size)
    mask = torch.zeros(1, 1, *size)
    mask[(..., *[slice(3, -7)] * len(size))] = 7
    mask[(..., *[slice(12, 20)] * len(size))] = 0

    (points,) = foerstner_keypoints(image, mask, number=10_000, threshold=0)

    expected = _maxima(image, mask[0, 0])
    assert len(points) == len(expected) > 20
    assert _rows(points) == set(expected)


def test_the_strongest_come_first_and_no_more_than_asked_for():
    image = torch.randn(1, 1, *SIZES[1])

    (points,) = foerstner_keypoints(image, number=12, selection="strongest", threshold=0)

    expected = _maxima(image)
    assert [tuple(row) for row in points.int().tolist()] == sorted(expected, key=expected.get, reverse=True)[:12]


def test_the_farthest_begin_with_the_strongest_and_are_far_in_mm():
    image, spacing = torch.randn(1, 1, *SIZES[1]), (1.0, 1.5, 6.0)

    (points,) = foerstner_keypoints(image, number=12, threshold=0, spacing=spacing)

    expected = _maxima(image, spacing=spacing)
    ordered = torch.tensor(sorted(expected, key=expected.get, reverse=True), dtype=torch.float32)
    assert torch.equal(points, ordered[farthest_points(ordered * torch.tensor(spacing), 12)])


def test_every_image_of_a_batch_has_its_own_mask_and_number():
    images = torch.randn(2, 1, *SIZES[1])
    masks = torch.ones(2, 1, *SIZES[1])
    masks[1, ..., :30] = 0

    both = foerstner_keypoints(images, masks, number=40, threshold=0)

    assert len(both[0]) == 40 > len(both[1]) > 0
    assert both[1][:, 2].min() > 30
    for item in range(2):
        (alone,) = foerstner_keypoints(images[item : item + 1], masks[item : item + 1], number=40, threshold=0)
        assert torch.equal(both[item], alone)


def test_the_threshold_counts_for_an_image_from_0_to_1():
    image = torch.rand(1, 1, *SIZES[1])
    image = (image - image.min()) / (image.max() - image.min())
    distinct = foerstner_distinctiveness(image)[0, 0]
    threshold = float(distinct.quantile(0.97))

    (of_unit,) = foerstner_keypoints(image, number=1000, threshold=threshold)
    (of_hu,) = foerstner_keypoints(2000 * image - 1000, number=1000, threshold=threshold)

    assert distinct[tuple(of_unit.long().T)].min() >= threshold
    assert len(of_unit) < len(foerstner_keypoints(image, number=1000, threshold=0)[0])
    assert _rows(of_unit) == _rows(of_hu)


def test_nothing_is_found_in_an_empty_mask_or_a_constant_image():
    image = torch.randn(1, 1, *SIZES[1])

    assert foerstner_keypoints(image, torch.zeros_like(image))[0].shape == (0, 3)
    assert foerstner_keypoints(torch.ones_like(image))[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": torch.ones(1, 1, 5, 6, 8)}, r"has one channel, got shape \(1, 1, 5, 6, 8\)"),
        ({"window": 4}, "odd window and number >= 1, got window=4"),
        ({"number": 0}, "odd window and number >= 1, got window=3, number=0"),
        ({"selection": "random"}, "'strongest'.*got 'random'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        foerstner_keypoints(torch.zeros(1, 1, 5, 6, 7), **arguments)
