# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from monai_reg_ext.transforms import (
    FillOutsideMaskd,
    NormalizeRobustd,
    PaddingMask,
    PaddingMaskd,
    ResampleToFixedd,
    find_padding,
)

SIZE = (19, 16, 13)


def tube(size: tuple[int, ...] = SIZE) -> torch.Tensor:
    """What a scanner sees of a box: a circle around its middle, along the last axis; bool."""
    i, j, _ = torch.meshgrid(*[torch.linspace(-1, 1, extent) for extent in size], indexing="ij")
    return (i.square() + j.square() < 0.8)[None]


def ct(affine: torch.Tensor, padding: float = -2048.0) -> MetaTensor:
    """Whole numbers from -1024 to 500 in a tube, the padding around it."""
    values = torch.randint(-1000, 501, (1, *SIZE)).float()
    values[0, 9, 8, :3] = -1024
    return MetaTensor(torch.where(tube(), values, padding), affine=affine, meta={"filename_or_obj": "ct.nii"})


@pytest.mark.parametrize("padding", [-2048.0, -2000.0, -1500.0, -32768.0])
def test_a_value_far_below_air_is_found(fixed_affine, padding):
    assert find_padding(ct(fixed_affine, padding)) == padding


def test_metal_does_not_hide_the_padding(fixed_affine):
    image = ct(fixed_affine)
    image[0, 8, 8, 4:9] = 30000

    assert find_padding(image) == -2048


@pytest.mark.parametrize(
    "image",
    [
        torch.arange(-1024.0, 3000.0),  # air at the lowest value that Hounsfield units in 12 bits have
        torch.cat([torch.full((500,), -1024.0), torch.arange(0, 1000.0)]),  # a gap, but not below air
        torch.arange(-3000.0, 3000.0),  # dark, but no gap
        torch.tensor([-2048.0, 1000.0]).repeat(50),  # two values: all there is to see
        torch.full((9,), -2048.0),
        torch.empty(0),
        torch.arange(0, 4000.0),
    ],
)
def test_where_something_else_can_be_meant_nothing_is_found(image):
    assert find_padding(image) is None


def test_voxels_of_the_padding_do_not_count(fixed_affine):
    image = ct(fixed_affine)

    for padding in ("auto", -2048):
        known = PaddingMask(padding)(image)
        assert torch.equal(known.as_tensor().bool(), tube())
        assert known.dtype == torch.uint8
        assert torch.equal(known.affine, image.affine)


def test_a_given_value_may_lie_anywhere(fixed_affine):
    image = MetaTensor(torch.where(tube(), 1 + torch.rand(1, *SIZE), 1.25), affine=fixed_affine)

    assert torch.equal(PaddingMask(1.25)(image).as_tensor().bool(), tube())


def test_an_image_without_padding_keeps_the_mask_it_has(fixed_affine):
    image = ct(fixed_affine, padding=-1024)
    mask = torch.ones(1, *SIZE)

    assert PaddingMask()(image) is None
    assert PaddingMask()(image, mask) is mask
    for no_padding in (None, "none"):
        assert PaddingMask(no_padding)(ct(fixed_affine), mask) is mask


def test_a_mask_and_the_padding_are_taken_together(fixed_affine):
    mask = torch.zeros(1, *SIZE)
    mask[:, 1:11, 2:15, 3:] = 3

    known = PaddingMask()(ct(fixed_affine), mask)

    assert torch.equal(known.as_tensor().bool(), tube() & (mask != 0))


@pytest.mark.parametrize("padding", ["auto", -2048])
def test_padding_outside_the_mask_is_none_of_its_business(fixed_affine, padding):
    mask = tube().to(torch.uint8)

    assert PaddingMask(padding)(ct(fixed_affine), mask) is mask


def test_what_the_mask_leaves_out_does_not_hide_the_padding_inside(fixed_affine):
    image = ct(fixed_affine)
    image[:, 0] = -9000
    mask = torch.ones(1, *SIZE)
    mask[:, 0] = 0

    assert torch.equal(PaddingMask()(image, mask).as_tensor().bool(), tube() & (mask != 0))


def test_mixtures_with_the_padding_beside_it_do_not_count_either(fixed_affine):
    fine = torch.randint(-1000, 501, (1, 38, 16, 13)).float()
    fine = torch.where(tube((38, 16, 13)), fine, -2048.0)
    coarse = (fine[:, 0::2] + fine[:, 1::2]) / 2  # halves of both in one voxel
    image = MetaTensor(coarse, affine=fixed_affine)

    known = PaddingMask(-2048)(image)[0].as_tensor().bool().numpy()

    values, padded = coarse[0].numpy(), coarse[0].numpy() == -2048
    beside = np.zeros(SIZE, bool)
    for index in itertools.product(*map(range, SIZE)):
        around = tuple(slice(max(0, centre - 1), centre + 2) for centre in index)
        beside[index] = padded[around].any()
    mixed = beside & ~padded & (values < np.percentile(values[~beside], 0.1, method="nearest"))
    assert mixed.sum() > 20
    np.testing.assert_array_equal(known, ~padded & ~mixed)
    assert values[known].min() > -1030


def test_what_is_found_is_logged(fixed_affine, caplog):
    percent = 100 * (1 - tube().float().mean().item())

    with caplog.at_level(logging.INFO):
        PaddingMaskd()({"pair": "anna__bert", "fixed": ct(fixed_affine), "moving": ct(fixed_affine, -1024)})

    assert f"anna__bert, fixed: {percent:.1f} % is padding of -2048 and does not count" in caplog.text
    assert "moving" not in caplog.text


def test_a_value_that_no_voxel_has_is_said(fixed_affine, caplog):
    assert PaddingMask(-3000)(ct(fixed_affine), name="fixed") is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "fixed: no voxel has the value -3000" in caplog.text


def test_the_mask_that_metrics_use_stays_as_it_is(fixed_affine):
    mask = MetaTensor(torch.ones(1, *SIZE, dtype=torch.uint8), affine=fixed_affine)
    item = {"fixed": ct(fixed_affine), "moving": ct(fixed_affine, -1024), "fixed_mask": mask, "moving_mask": mask}

    out = PaddingMaskd()(item)

    assert set(out) - set(item) == {"fixed_known"}
    assert all(out[key] is item[key] for key in item)
    assert mask.all()


def test_on_a_working_grid_padding_leaves_no_edge(fixed_affine, moving_affine):
    # on a coarser grid, and on another image's, interpolation would mix -2048 into voxels of tissue
    tissue = scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SIZE), 2)
    tissue = torch.from_numpy(100 * tissue / np.abs(tissue).max()).float()[None]
    images = {}
    for key, affine in (("fixed", fixed_affine), ("moving", moving_affine)):
        images[key] = MetaTensor(torch.where(tube(), tissue, -2048.0), affine=affine)
    keys, masks = ["fixed_working", "moving_working"], ["fixed_mask_working", "moving_mask_working"]
    steps = [PaddingMaskd(), ResampleToFixedd(spacing=(2.0, 2.2, 4.5), initial="centres")]

    resampled = Compose(steps)(images)
    filled = Compose([*steps, FillOutsideMaskd(keys, masks)])(images)

    for key, mask in zip(keys, masks, strict=True):
        inside = resampled[mask].bool()
        assert 0.2 < inside.float().mean() < 0.9
        assert resampled[key][inside].abs().max() <= 100
        assert resampled[key].min() < -2000
        assert filled[key].abs().max() <= 100
        assert torch.equal(filled[key][inside], resampled[key][inside])


def test_padding_has_no_say_in_the_contrast(fixed_affine):
    values = torch.linspace(-900, 100, int(np.prod(SIZE))).reshape(1, *SIZE)
    values[0, :, :, 6] = -2030  # not so dark that the minimum's rule alone would see it
    values[0, :, :, 5] = -2048
    image = MetaTensor(values, affine=fixed_affine)
    known = (values > -1000).byte()

    out = NormalizeRobustd("image", 0, 100, mask_keys="known")({"image": image, "known": known})["image"]

    torch.testing.assert_close(out[known.bool()].as_tensor(), ((values[known.bool()] + 900) / 1000), atol=2e-3, rtol=0)


def test_an_image_of_nothing_but_padding_is_refused(fixed_affine):
    image = ct(fixed_affine)
    mask = (~tube()).to(torch.uint8)

    with pytest.raises(ValueError, match="fixed: every voxel inside the mask is padding of -2048"):
        PaddingMaskd("fixed", -2048)({"fixed": image, "fixed_mask": mask})
    with pytest.raises(ValueError, match="image: every voxel is padding of 0"):
        PaddingMask(0)(MetaTensor(torch.zeros(1, 3, 4, 5), affine=fixed_affine))


def test_a_mask_of_another_size_is_refused(fixed_affine):
    with pytest.raises(ValueError, match=r"image: a mask for \(1, 19, 16, 13\)"):
        PaddingMask()(ct(fixed_affine), torch.ones(1, 4, 5, 6))


@pytest.mark.parametrize("padding", ["air", True, float("nan"), float("-inf"), [-2048]])
def test_anything_but_a_number_is_refused(padding):
    with pytest.raises(ValueError, match="padding must be 'auto', 'none' or the value"):
        PaddingMask(padding)
