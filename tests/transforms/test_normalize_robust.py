# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms import LoadPaird, NormalizeRobust, NormalizeRobustd


@pytest.fixture
def padded() -> torch.Tensor:
    """Intensities 1 to 1000 in random order, and twice as much padding of 0."""
    values = torch.cat([torch.arange(1, 1001).float()[torch.randperm(1000)], torch.zeros(2000)])
    return values.reshape(1, 10, 20, 15)


def test_percentiles_of_what_is_not_padding_become_0_and_1(padded):
    normalized = NormalizeRobust(lower=10, upper=90)(padded)

    low, high = np.percentile(np.arange(1, 1001), [10, 90], method="nearest")
    torch.testing.assert_close(normalized, ((padded - low) / (high - low)).clamp(0, 1))


@pytest.mark.parametrize(("scale", "offset"), [(1e-3, 0.0), (1700.0, 0.0), (2.0, -2048.0)])
def test_scale_and_offset_of_an_image_do_not_matter(padded, scale, offset):
    torch.testing.assert_close(NormalizeRobust()(padded * scale + offset), NormalizeRobust()(padded), atol=1e-4, rtol=0)


def test_a_single_bright_voxel_does_not_darken_the_rest(padded):
    bright = padded.clone()
    bright[0, 0, 0, 0] = 1e5

    change = (NormalizeRobust()(bright) - NormalizeRobust()(padded)).abs().flatten()[1:]

    assert change.max() < 0.01


def test_padding_that_interpolation_made_uneven_is_still_padding(padded):
    uneven = padded - 2048 + 2e-4 * torch.randn_like(padded)

    torch.testing.assert_close(NormalizeRobust()(uneven), NormalizeRobust()(padded), atol=1e-3, rtol=0)


def test_a_binary_image_stays_binary():
    binary = torch.zeros(1, 4, 5, 6)
    binary[0, 1, 2] = 9.0

    assert torch.equal(NormalizeRobust()(binary), binary / 9)


def test_calibrated_intensities_keep_one_scale_in_every_image():
    ct = torch.tensor([-2048.0, -1000.0, -250.0, 500.0, 3000.0]).reshape(1, 5, 1, 1)

    normalized = NormalizeRobust(clip=(-1000.0, 500.0))(ct)

    torch.testing.assert_close(normalized.flatten(), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_with_a_mask_the_percentiles_are_those_inside_it(padded):
    mask = torch.zeros_like(padded)
    mask[:, :3, 4:18] = 2
    inside = padded[mask != 0]

    normalized = NormalizeRobust(lower=10, upper=90)(padded, mask)

    low, high = np.percentile(inside[inside > 0].numpy(), [10, 90], method="nearest")
    torch.testing.assert_close(normalized, ((padded - low) / (high - low)).clamp(0, 1), atol=5e-3, rtol=0)


def test_a_mask_of_everything_changes_nothing(padded):
    assert torch.equal(NormalizeRobust()(padded, torch.ones_like(padded)), NormalizeRobust()(padded))


def test_the_dictionary_takes_the_masks_that_are_there(padded):
    mask = (torch.rand_like(padded) > 0.5).byte()
    normalizer = NormalizeRobustd(["a", "b"], mask_keys=["a_mask", "b_mask"])

    out = normalizer({"a": padded, "b": padded, "b_mask": mask})

    assert torch.equal(out["a"], NormalizeRobust()(padded))
    assert torch.equal(out["b"], NormalizeRobust()(padded, mask))
    with pytest.raises(ValueError, match="one mask per key"):
        NormalizeRobustd(["a", "b"], mask_keys="a_mask")


def test_masks_without_contrast_or_of_another_size_are_refused(padded):
    with pytest.raises(ValueError, match="constant"):
        NormalizeRobust()(padded, padded == 0)
    with pytest.raises(ValueError, match="the mask is empty"):
        NormalizeRobust()(padded, torch.zeros_like(padded))
    with pytest.raises(ValueError, match="has its shape"):
        NormalizeRobust()(padded, torch.ones(1, 2, 3, 4))


def test_geometry_is_kept(padded, fixed_affine):
    image = MetaTensor(padded, affine=fixed_affine)

    out = NormalizeRobustd("image")({"image": image, "other": 1})

    assert torch.equal(out["image"].affine, fixed_affine)
    assert out["other"] == 1


def test_more_voxels_than_torch_quantile_takes_are_no_trouble():
    image = torch.arange(2**24 + 100, dtype=torch.float32).reshape(1, 4, 1, -1)

    assert NormalizeRobust()(image).mean().item() == pytest.approx(0.5, abs=1e-3)


def test_a_constant_image_is_refused():
    with pytest.raises(ValueError, match="constant"):
        NormalizeRobust()(torch.ones(1, 2, 3, 4))


@pytest.mark.parametrize("arguments", [{"lower": 60, "upper": 40}, {"upper": 101}, {"clip": (5, 5)}])
def test_limits_out_of_order_are_refused(arguments):
    with pytest.raises(ValueError, match="need"):
        NormalizeRobust(**arguments)


def test_real_hippocampi_of_any_scale_end_alike(data_dir):
    # maxima 254 and 1.7 million; two thirds and more are padding
    files = [data_dir / "HippocampusMR" / "imagesTr" / f"HippocampusMR_{case:04d}_0000.nii.gz" for case in (1, 4, 201)]
    medians = []
    for file in files:
        image = LoadPaird()({"fixed": file, "moving": file})["fixed"]
        normalized = NormalizeRobust()(image)
        medians.append(normalized[image > 0].median().item())
        assert normalized[image > 0].std() > 0.15
    assert max(medians) - min(medians) < 0.2
