# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.blocks import LocalNormalization


def test_inside_it_is_the_z_score_of_the_window(texture):
    image = texture((9, 10, 11))
    feature = LocalNormalization(width=5, weight=2.0, floor=0.0)(image)[0, 0]

    i, j, k = 4, 5, 3
    window = image[0, 0, i - 2 : i + 3, j - 2 : j + 3, k - 2 : k + 3].double().numpy()
    expected = 2 * (image[0, 0, i, j, k].item() - window.mean()) / window.std()
    assert feature[i, j, k].item() == pytest.approx(np.clip(expected, -6, 6), abs=1e-3)


def test_scale_and_offset_do_not_matter_but_the_sign_of_contrast_does(texture):
    image, normalize = texture((9, 10, 11)), LocalNormalization()

    torch.testing.assert_close(normalize(5e3 * image - 7e4), normalize(image), atol=2e-2, rtol=0)
    torch.testing.assert_close(normalize(-image), -normalize(image))


def test_items_of_a_batch_and_constant_images_are_no_trouble(texture):
    image = torch.cat([texture((9, 10, 11)), torch.full((1, 1, 9, 10, 11), 3.0)])
    feature = LocalNormalization()(image)

    torch.testing.assert_close(feature[:1], LocalNormalization()(image[:1]))
    assert torch.equal(feature[1], torch.zeros(1, 9, 10, 11))


def test_air_with_a_little_noise_stays_quiet():
    image = torch.zeros(1, 1, 20, 20, 20)
    image[..., 10:] = 100.0
    image += 0.1 * torch.randn(image.shape)

    assert LocalNormalization(width=5)(image)[..., :6].abs().max() < 0.3
