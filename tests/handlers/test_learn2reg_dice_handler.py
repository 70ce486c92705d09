# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor

from monai_reg_ext.handlers import Learn2RegDiceHandler
from monai_reg_ext.metrics import compute_learn2reg_dice

LPS = np.diag([-1.0, -1, 1])


def label_map(linear: np.ndarray, origin, size) -> MetaTensor:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, origin
    blobs = torch.nn.functional.interpolate(torch.rand(1, 1, 3, 3, 3), size=size, mode="trilinear")
    blobs[..., [0, -1], :, :] = blobs[..., [0, -1], :] = blobs[..., [0, -1]] = 0  # conventions differ at the border
    return MetaTensor((blobs[0] * 4).int(), affine=torch.from_numpy(affine))


def to_sitk(label: MetaTensor) -> sitk.Image:
    affine = label.affine.numpy()
    image = sitk.GetImageFromArray(label[0].numpy().transpose(2, 1, 0))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((LPS @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((LPS @ affine[:3, 3]).tolist())
    return image


def test_before_registration_the_moving_label_lies_where_its_header_puts_it():
    # both tilted about different axes, unequal spacings and sizes; fixed flipped along axis 1
    fixed_tilt = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.diag([1.3, -1.7, 2.1])
    moving_tilt = np.array([[1.0, 0, 0], [0, 0.96, -0.28], [0, 0.28, 0.96]]) @ np.diag([1.9, 1.1, 1.6])
    fixed = label_map(fixed_tilt, (3.0, 20, -6), (14, 12, 9))
    moving = label_map(moving_tilt, (-1.0, 2, -7), (13, 22, 15))

    before = Learn2RegDiceHandler().measure({"warped_label": fixed, "fixed_label": fixed, "moving_label": moving})

    resampled = sitk.Resample(to_sitk(moving), to_sitk(fixed), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    resampled = torch.from_numpy(sitk.GetArrayFromImage(resampled).transpose(2, 1, 0).copy())[None]
    expected = 100 * compute_learn2reg_dice(resampled, fixed.as_tensor(), moving.as_tensor()).nanmean().item()
    assert 10 < expected < 90
    assert before["dice_before"] == pytest.approx(expected)
    assert before["dice"] == pytest.approx(100.0)


def test_only_the_labels_asked_for_count():
    label = torch.zeros(1, 4, 5, 6, dtype=torch.int32)
    label[0, 0], label[0, 1:] = 1, 2
    fixed = MetaTensor(label, affine=torch.eye(4))
    warped = MetaTensor(label.where(label == 2, 0), affine=torch.eye(4))  # label 1 is gone

    pair = {"warped_label": warped, "fixed_label": fixed, "moving_label": fixed}

    assert Learn2RegDiceHandler().measure(pair)["dice"] == pytest.approx(50.0)
    assert Learn2RegDiceHandler(labels=[2]).measure(pair)["dice"] == pytest.approx(100.0)
