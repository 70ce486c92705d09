# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.handlers.report_slices import report_slices

SIZE = (16, 20, 12)
AFFINE = torch.tensor([[-1.0, 0, 0, 8], [0, 2, 0.2, -3], [0, -0.1, 3, 40], [0, 0, 0, 1]], dtype=torch.float64)


def smooth(size=SIZE) -> torch.Tensor:
    return torch.nn.functional.interpolate(torch.rand(1, 1, 4, 4, 4), size=size, mode="trilinear")[0]


def slices_of(fixed, moving=None, warped=None, **labels):
    fixed = MetaTensor(fixed, affine=AFFINE)
    moving = fixed if moving is None else moving
    warped = fixed if warped is None else warped
    return report_slices(fixed, moving, warped, torch.zeros(3, *SIZE), AFFINE, **labels)


def index_of(slices) -> tuple[int, ...]:
    by_axis = {item.view.normal: item.view.index for item in slices}
    return tuple(by_axis[axis] for axis in range(3))


def test_the_moving_image_is_shown_where_its_own_header_puts_it():
    image = smooth()
    # the same voxels at the same places, but stored along other axes
    stored = nib.Nifti1Image(image[0].numpy(), AFFINE.numpy())
    stored = stored.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    moving = MetaTensor(torch.from_numpy(stored.get_fdata().copy()).float()[None], affine=stored.affine)

    for item in slices_of(image, moving):
        np.testing.assert_allclose(item.moving, item.fixed, atol=1e-5)
        assert item.moving.std() > 0.05


def test_beyond_the_moving_image_it_is_black():
    image = smooth() + 5
    beside = AFFINE.clone()
    beside[0, 3] += 8  # the moving image begins 8 mm (voxels) to the right of the fixed one

    axial, coronal, _ = slices_of(image, MetaTensor(image, affine=beside))

    for item in (axial, coronal):  # right is on the left
        np.testing.assert_allclose(item.moving[:, :8], item.fixed[:, 8:], atol=1e-5)
        assert not item.moving[:, 8:].any()


def test_slices_go_where_most_labelled_voxels_are():
    label = torch.zeros(1, *SIZE, dtype=torch.int32)
    label[:, 2:7, 4:11, 2:5] = 1
    label[:, 3, 3:12, 1:6] = 2
    label[:, 1:8, 9, 1:6] = 7
    label[:, 1:8, 3:12, 2] = 3

    assert index_of(slices_of(smooth(), fixed_label=label)) == (3, 9, 2)


def test_of_slices_with_as_many_labelled_voxels_the_one_in_the_middle_is_shown():
    label = torch.zeros(1, *SIZE, dtype=torch.int32)
    label[:, 10:15, 2:9, 8:11] = 1

    assert index_of(slices_of(smooth(), fixed_label=label)) == (10, 8, 8)


def test_without_labels_slices_go_through_the_middle_of_the_body():
    body = torch.zeros(1, *SIZE)
    body[:, 2:7, 11:18, 5:8] = torch.linspace(90, 110, 5)[:, None, None]

    assert index_of(slices_of(body)) == (4, 14, 6)
    assert index_of(slices_of(body, fixed_label=torch.zeros(1, *SIZE))) == (4, 14, 6)


def test_a_constant_image_is_shown_in_the_middle_and_black():
    constant = torch.full((1, *SIZE), 7.0)

    slices = slices_of(constant, warped=constant)

    assert all(size / 2 - 1 <= index <= size / 2 for index, size in zip(index_of(slices), SIZE, strict=True))
    assert all(not item.fixed.any() and not item.warped.any() for item in slices)


def test_few_extreme_voxels_and_padding_do_not_change_the_contrast():
    image = 100 + 10 * smooth()
    low, high = np.percentile(image.numpy(), (0.5, 99.5))
    image[:, :, :3] = 0  # padding: most of the voxels below 100
    image[:, 8, 12, 6:8] = 1e6

    for item in slices_of(image):
        inside = item.view.cut(image[0]).numpy()
        inside, shown = inside[(inside > 0) & (inside < 1e6)], item.fixed[(inside > 0) & (inside < 1e6)]
        np.testing.assert_allclose(shown, np.clip((inside - low) / (high - low), 0, 1), atol=0.05)


def test_a_binary_image_is_shown_in_black_and_white():
    binary = torch.zeros(1, *SIZE)
    binary[:, 4:, 5:, 6:] = 3

    for item in slices_of(binary):
        np.testing.assert_array_equal(item.fixed, item.view.cut(binary[0] / 3).numpy())


def test_warped_and_moving_have_one_window_and_fixed_its_own():
    image = smooth()

    slices = slices_of(1000 * image, MetaTensor(image, affine=AFFINE), warped=0.5 * image)

    for item in slices:
        np.testing.assert_allclose(item.moving, item.fixed, atol=1e-5)
        assert item.warped.max() < 0.55 * item.moving.max()


def test_labels_are_cut_like_the_images():
    label = torch.randint(0, 4, (1, *SIZE), dtype=torch.int32)

    for item in slices_of(label.float(), fixed_label=label, warped_label=label.flip(1)):
        np.testing.assert_array_equal(item.fixed_label, item.view.cut(label[0]).numpy())
        np.testing.assert_array_equal(item.warped_label, item.view.cut(label.flip(1)[0]).numpy())


def test_extent_and_centres_count_mm_from_the_upper_left_corner():
    axial, *_ = slices_of(smooth())
    down, across = AFFINE[:3, :3].norm(dim=0)[[1, 0]].tolist()

    assert axial.extent_mm == pytest.approx((20 * down, 16 * across))
    centres_across, centres_down = axial.centres_mm(padding=1)
    np.testing.assert_allclose(centres_across[[0, 1, -1]], np.array([-0.5, 0.5, 16.5]) * across)
    np.testing.assert_allclose(centres_down[[0, 1, -1]], np.array([-0.5, 0.5, 20.5]) * down)
