# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms import FillOutsideMask, FillOutsideMaskd, voxel_to_mm


@pytest.fixture
def image(fixed_affine) -> MetaTensor:
    return MetaTensor(torch.rand(1, 7, 6, 5), affine=fixed_affine)


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.zeros(1, 7, 6, 5, dtype=torch.uint8)
    mask[0, 2:4, 1:3, 1:4] = 1
    mask[0, 5, 5, 0] = 1
    return mask


def test_every_voxel_outside_takes_the_nearest_inside_in_millimetres(image, mask):
    filled = FillOutsideMask()(image, mask)

    inside = mask[0].nonzero()
    inside_mm = voxel_to_mm(inside, image.affine)
    for index in itertools.product(range(7), range(6), range(5)):
        distance = (voxel_to_mm(torch.tensor([index]), image.affine) - inside_mm).norm(dim=1)
        nearest = inside[distance < distance.min() + 1e-6]  # ties are free
        assert filled[(0, *index)] in [image[(0, *candidate)] for candidate in nearest.tolist()]


def test_the_inside_stays(image, mask):
    filled = FillOutsideMask()(image, mask)

    assert torch.equal(filled[mask > 0], image[mask > 0])
    assert torch.equal(filled.affine, image.affine)


def test_an_image_without_mask_stays_as_it_is(image, mask):
    item = {"a": image, "b": image, "mask": mask}

    out = FillOutsideMaskd(keys=["a", "b"], mask_keys=["no_mask", "mask"])(item)

    assert out["a"] is image
    assert torch.equal(out["b"], FillOutsideMask()(image, mask))
    assert item["b"] is image


def test_an_empty_mask_is_refused(image, mask):
    with pytest.raises(ValueError, match="no voxel of the mask"):
        FillOutsideMask()(image, mask * 0)


def test_a_mask_of_another_size_is_refused(image, mask):
    with pytest.raises(ValueError, match=r"\(1, 7, 6, 4\)"):
        FillOutsideMask()(image, mask[..., 1:])


def test_each_image_needs_its_mask():
    with pytest.raises(ValueError, match="one mask per key"):
        FillOutsideMaskd(keys=["a", "b"], mask_keys="mask")
