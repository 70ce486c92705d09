# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate

from monai_reg_ext.transforms import (
    DDFToFixedGrid,
    LoadPaird,
    ResampleToFixed,
    ResampleToFixedd,
    SpatialDisplacement,
    WarpByDDF,
    ddf_to_itk_field,
    initial_alignment,
    voxel_spacing,
    voxel_to_mm,
    voxel_to_voxel,
)


@pytest.fixture
def pair(fixed_affine, fixed_size, moving_affine, moving_size, smooth_image):
    fixed, moving = smooth_image(fixed_size, fixed_affine), smooth_image(moving_size, moving_affine)
    return {"pair": "a__b", "fixed": fixed, "moving": moving}


def image(values, spacing=(1.0, 1.0, 1.0), shift=(0.0, 0.0, 0.0)) -> MetaTensor:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    return MetaTensor(values, affine=affine)


def resampled_by_sitk(to_sitk, moving, size, affine, transform, interpolator=sitk.sitkLinear) -> np.ndarray:
    reference = to_sitk(np.zeros(size, np.float32), affine)
    source = to_sitk(moving[0].numpy(), moving.affine)
    result = sitk.Resample(source, reference, transform, interpolator, -1.0)
    return sitk.GetArrayFromImage(result).transpose(2, 1, 0)


def test_moving_lands_where_simpleitk_puts_it(pair, to_sitk):
    fixed_working, moving_working, initial = ResampleToFixed(initial="headers")(pair["fixed"], pair["moving"])

    expected = resampled_by_sitk(
        to_sitk, pair["moving"], pair["fixed"].shape[1:], pair["fixed"].affine, sitk.Transform()
    )
    inside = expected != -1
    assert inside.mean() > 0.9
    np.testing.assert_allclose(moving_working[0].numpy()[inside], expected[inside], atol=2e-3)
    assert torch.equal(fixed_working, pair["fixed"])
    assert torch.equal(initial, torch.eye(4, dtype=torch.float64))
    for working in (fixed_working, moving_working):
        assert torch.equal(working.affine, pair["fixed"].affine)


def test_a_given_transform_says_where_in_moving_space_to_look(pair, to_sitk):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 1], matrix[1, 0] = 0.1, -0.05
    matrix[:3, 3] = torch.tensor([1.0, -2.0, 1.5])

    _, moving_working, initial = ResampleToFixed(initial=matrix)(pair["fixed"], pair["moving"])

    lps = np.diag([-1.0, -1.0, 1.0])
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((lps @ matrix[:3, :3].numpy() @ lps).ravel().tolist())
    transform.SetTranslation((lps @ matrix[:3, 3].numpy()).tolist())
    expected = resampled_by_sitk(to_sitk, pair["moving"], pair["fixed"].shape[1:], pair["fixed"].affine, transform)
    inside = expected != -1
    assert inside.mean() > 0.9
    np.testing.assert_allclose(moving_working[0].numpy()[inside], expected[inside], atol=2e-3)
    assert torch.equal(initial, matrix)


@pytest.fixture
def field(fixed_affine, fixed_size, smooth_ddf) -> SpatialDisplacement:
    """On a grid of its own: coarser, wider than the fixed image, with other directions."""
    affine = fixed_affine.clone()
    affine[:3, :3] = 1.3 * fixed_affine[:3, [1, 0, 2]]
    affine[:3, 3] -= fixed_affine[:3, :3].sum(1)
    return SpatialDisplacement(smooth_ddf((13, 16, 11), 1.5), affine)


def as_sitk_transform(to_sitk, field) -> sitk.Transform:
    vectors = ddf_to_itk_field(field.ddf, field.affine).numpy()
    return sitk.DisplacementFieldTransform(sitk.Cast(to_sitk(vectors, field.affine, True), sitk.sitkVectorFloat64))


@pytest.mark.parametrize("spacing", [None, (1.2, 2.0, 2.2)])
def test_through_a_given_field_moving_lands_where_simpleitk_puts_it(pair, field, to_sitk, spacing):
    fixed, moving = pair["fixed"], pair["moving"]
    label = (moving > 100).to(torch.int32) * 7

    out = ResampleToFixedd(spacing=spacing, initial=field, label_keys=["moving_label"])({**pair, "moving_label": label})

    working = out["moving_working"]
    place = working.shape[1:], working.affine, as_sitk_transform(to_sitk, field)
    expected = resampled_by_sitk(to_sitk, moving, *place)
    inside = expected != -1
    inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
    assert inside.mean() > 0.4
    np.testing.assert_allclose(working[0].numpy()[inside], expected[inside], atol=5e-3)
    _, by_headers, _ = ResampleToFixed(spacing, "headers")(fixed, moving)
    assert np.abs(by_headers[0].numpy() - expected)[inside].mean() > 5
    expected = resampled_by_sitk(to_sitk, label.float(), *place, sitk.sitkNearestNeighbor)
    assert (out["moving_label_working"][0].numpy()[inside] == expected[inside]).mean() > 0.99


def test_a_finer_moving_image_is_smoothed_behind_a_field_as_behind_a_matrix():
    stripes = (torch.arange(64) % 2).float()
    fixed = image(torch.rand(1, 16, 20, 12))
    moving = image(stripes[None, :, None, None].expand(1, 64, 20, 12).clone(), spacing=(0.25, 1.0, 1.0))
    still = SpatialDisplacement(torch.zeros(3, 16, 20, 12), fixed.affine)

    _, behind_field, _ = ResampleToFixed(initial=still)(fixed, moving)
    _, behind_matrix, _ = ResampleToFixed(initial="headers")(fixed, moving)

    torch.testing.assert_close(behind_field.as_tensor(), behind_matrix.as_tensor(), atol=1e-5, rtol=0)


def test_a_given_field_goes_through_a_batch_and_keeps_its_place(pair, field):
    out = ResampleToFixedd(initial=field)(pair)

    (item,) = decollate_batch(list_data_collate([{"initial": out["initial"]}]))

    torch.testing.assert_close(item["initial"].as_tensor(), field.ddf)
    torch.testing.assert_close(item["initial"].affine, field.affine)


def test_masks_decide_on_the_initial_alignment_those_without_padding_first(pair):
    fixed, moving = pair["fixed"], pair["moving"]
    masks = {"fixed_mask": fixed > 90, "moving_mask": moving > 130, "moving_known": moving < 100}

    out = ResampleToFixedd(initial="mass")({**pair, **masks})

    expected = initial_alignment(fixed, moving, "mass", 0.25, "", masks["fixed_mask"], masks["moving_known"])
    assert torch.equal(out["initial"], expected)
    with_masks = ResampleToFixed(initial="mass")(fixed, moving, masks["fixed_mask"], masks["moving_known"])
    assert torch.equal(with_masks[2], expected)
    assert torch.equal(with_masks[1], out["moving_working"])
    for other in ({}, {"fixed_mask": masks["fixed_mask"]}, {"moving_mask": masks["moving_mask"]}):
        assert not torch.allclose(ResampleToFixedd(initial="mass")({**pair, **other})["initial"], expected)


@pytest.mark.parametrize("spacing", [(1.3, 1.2, 1.1), (3.0, 1.2, 2.0)])
def test_values_inside_a_mask_are_means_over_the_inside(spacing):
    values, mask = torch.rand(1, 7, 6, 8), torch.rand(1, 7, 6, 8) > 0.4
    fixed = image(values, spacing=(1.1, 1.0, 1.2))
    poisoned = image(torch.where(mask, values, 1e6), spacing=(1.1, 1.0, 1.2))

    working, _, _ = ResampleToFixed(spacing)(poisoned, fixed, mask)

    inside, matrix = mask[0].double().numpy(), voxel_to_voxel(working.affine, fixed.affine).numpy()
    total = values[0].double().numpy() * inside
    if spacing[0] == 3.0:
        sigma = [np.sqrt((3 / 1.1) ** 2 - 1) / 2.3548, 0, np.sqrt((2 / 1.2) ** 2 - 1) / 2.3548]
        total, inside = (scipy.ndimage.gaussian_filter(part, sigma, mode="nearest") for part in (total, inside))
    checked = 0
    for index in np.ndindex(*working.shape[1:]):
        place = matrix[:3, :3] @ index + matrix[:3, 3]
        share = scipy.ndimage.map_coordinates(inside, place[:, None], order=1, mode="nearest")[0]
        mean = scipy.ndimage.map_coordinates(total, place[:, None], order=1, mode="nearest")[0] / max(share, 1e-9)
        if share > 0.02:
            assert working[(0, *index)] == pytest.approx(mean, abs=1e-4)
            checked += 1
    assert checked > 0.8 * np.prod(working.shape)


def test_on_the_images_own_grid_a_mask_changes_no_bit(pair):
    mask = pair["fixed"] > 90

    assert torch.equal(ResampleToFixed()(pair["fixed"], pair["moving"], mask)[0], pair["fixed"])


def test_a_working_grid_keeps_directions_and_outer_corner_and_covers_the_fixed_image(pair):
    fixed = pair["fixed"]  # 25.5 x 25.2 x 28.6 mm

    working, moving_working, _ = ResampleToFixed(spacing=2.0)(fixed, pair["moving"])

    assert working.shape == moving_working.shape == (1, 13, 13, 15)
    np.testing.assert_allclose(voxel_spacing(working.affine), [2.0, 2.0, 2.0])
    directions = fixed.affine[:3, :3] / voxel_spacing(fixed.affine)
    torch.testing.assert_close(working.affine[:3, :3] / 2, directions)
    corner = torch.tensor([[-0.5, -0.5, -0.5]])
    torch.testing.assert_close(voxel_to_mm(corner, working.affine), voxel_to_mm(corner, fixed.affine))


def test_headers_that_round_do_not_add_a_voxel():
    fixed = image(torch.rand(1, 9, 12, 6), spacing=(0.7000001, 1.1000001, 3.0))

    working, _, _ = ResampleToFixed(spacing=(2.1, 2.2, 1.5))(fixed, fixed)

    assert working.shape == (1, 3, 6, 12)


def test_a_smooth_image_keeps_its_values_in_space_on_a_working_grid(pair, to_sitk):
    working, _, _ = ResampleToFixed(spacing=(1.2, 2.0, 2.2))(pair["fixed"], pair["moving"])

    expected = resampled_by_sitk(to_sitk, pair["fixed"], working.shape[1:], working.affine, sitk.Transform())
    inside = expected != -1
    np.testing.assert_allclose(working[0].numpy()[inside], expected[inside], atol=2e-3)


def test_stripes_finer_than_the_new_voxels_become_their_mean_and_others_stay():
    stripes = (torch.arange(32) % 2).float()
    along_first = stripes[None, :, None, None].expand(1, 32, 8, 9)
    along_second = stripes[None, None, :30, None].expand(1, 32, 30, 9)

    for values, visible in ((along_first, False), (along_second, True)):
        fixed = image(values)
        working, _, _ = ResampleToFixed(spacing=(4.0, 1.0, 1.0))(fixed, fixed)
        contrast = working.as_tensor()[:, 1:-1].std().item()
        assert contrast == pytest.approx(0.5, abs=0.02) if visible else contrast < 0.03


def test_a_finer_moving_image_is_smoothed_along_its_own_axes():
    stripes = (torch.arange(64) % 2).float()
    fixed = image(torch.rand(1, 16, 20, 12))
    # moving's axis 1, four times finer, runs along fixed's axis 0; its other axes are as coarse as fixed's
    affine = torch.tensor([[0, 0.25, 0, 0], [1.0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    fine = MetaTensor(stripes[None, None, :, None].expand(1, 20, 64, 12).clone(), affine=affine)
    coarse = MetaTensor(stripes[None, :20, None, None].expand(1, 20, 64, 12).clone(), affine=affine)

    for moving, visible in ((fine, False), (coarse, True)):
        _, working, _ = ResampleToFixed()(fixed, moving)
        contrast = working.as_tensor()[:, 1:-1].std().item()
        assert contrast == pytest.approx(0.5, abs=0.02) if visible else contrast < 0.03


def test_smoothing_does_not_darken_the_border():
    fixed = image(torch.full((1, 24, 24, 24), 5.0))

    working, _, _ = ResampleToFixed(spacing=3.0)(fixed, fixed)

    torch.testing.assert_close(working.as_tensor(), torch.full((1, 8, 8, 8), 5.0))


def test_beyond_the_moving_image_its_border_goes_on_or_a_given_value_stands():
    fixed = image(torch.rand(1, 10, 4, 4))
    moving = image(torch.arange(5.0)[None, :, None, None].expand(1, 5, 4, 4) + 1)

    _, border, _ = ResampleToFixed()(fixed, moving)
    _, constant, _ = ResampleToFixed(outside=-1000.0)(fixed, moving)

    torch.testing.assert_close(border[0, :, 2, 2].as_tensor(), torch.tensor([1.0, 2, 3, 4, 5, 5, 5, 5, 5, 5]))
    torch.testing.assert_close(constant[0, :, 2, 2].as_tensor(), torch.tensor([1.0, 2, 3, 4, 5] + [-1000.0] * 5))


def test_the_dictionary_adds_copies_masks_and_labels_asked_for(pair, to_sitk):
    fixed, moving = pair["fixed"], pair["moving"]
    label = (moving > 100).to(torch.int32) * 7
    item = {**pair, "fixed_mask": (fixed > 90).to(torch.uint8), "moving_label": label, "fixed_label": label}

    out = ResampleToFixedd(label_keys="moving_label")(item)

    added = {"fixed_working", "moving_working", "fixed_mask_working", "moving_label_working", "initial"}
    assert set(out) - set(item) == added
    assert all(out[key] is item[key] for key in item)
    assert torch.equal(out["fixed_mask_working"], item["fixed_mask"])
    assert out["fixed_mask_working"].dtype == torch.uint8
    assert out["moving_label_working"].dtype == torch.int32
    expected = resampled_by_sitk(
        to_sitk, label.float(), fixed.shape[1:], fixed.affine, sitk.Transform(), sitk.sitkNearestNeighbor
    )
    inside = out["moving_label_working"][0].numpy() != 0
    assert inside.mean() > 0.3
    assert (out["moving_label_working"][0].numpy()[expected != -1] == expected[expected != -1]).mean() > 0.99
    assert out["moving_working"].meta["filename_or_obj"] == moving.meta["filename_or_obj"]


def test_predictions_are_resampled_as_label_maps_are(pair):
    label = (pair["moving"] > 100).to(torch.int32) * 7
    item = {**pair, "moving_label": label, "moving_prediction": label}

    out = ResampleToFixedd(label_keys=["moving_label", "moving_prediction"], spacing=3.0)(item)

    assert torch.equal(out["moving_prediction_working"], out["moving_label_working"])
    assert out["moving_prediction_working"].any()


def test_moving_labels_and_masks_are_zero_outside_and_fixed_ones_reach_the_border():
    fixed = image(torch.rand(1, 10, 4, 4), shift=(-3.0, 0.0, 0.0))
    moving = image(torch.rand(1, 5, 4, 4))
    masks = {"fixed_mask": torch.ones_like(fixed, dtype=torch.uint8), "moving_mask": torch.ones_like(moving).byte()}

    out = ResampleToFixedd(spacing=0.5)({"fixed": fixed, "moving": moving, **masks})

    assert out["fixed_mask_working"].all()
    row = out["moving_mask_working"][0, :, 4, 4].as_tensor()
    centres = -3.25 + 0.5 * torch.arange(20)
    assert torch.equal(row.bool(), (centres >= 0) & (centres <= 4))


def test_a_label_asked_for_must_be_there(pair):
    with pytest.raises(KeyError, match="fixed_label"):
        ResampleToFixedd(label_keys=["fixed_label"])(pair)


def test_the_log_names_the_pair_that_starts_from_its_centres(pair, caplog):
    affine = pair["moving"].affine.clone()
    affine[:3, 3] += 500

    ResampleToFixedd()({**pair, "moving": MetaTensor(pair["moving"].as_tensor(), affine=affine)})

    assert "a__b" in caplog.text


@pytest.mark.parametrize("spacing", [0.0, -1.0, (1.0, 1.0, 0.0), float("nan")])
def test_a_spacing_that_is_not_positive_is_refused(spacing):
    with pytest.raises(ValueError, match="spacing"):
        ResampleToFixed(spacing=spacing)


@pytest.mark.parametrize(("initial", "dice"), [("headers", 11.4), ("centres", 39.9)])
def test_real_abdomens_overlap_before_registration_as_known(data_dir, initial, dice):
    folder = data_dir / "AbdomenMR"
    pairs = json.loads((folder / "AbdomenMR_dataset.json").read_text())["registration_val"]
    scores = []
    for pair in pairs:
        item = LoadPaird()({side: folder / pair[side].replace("imagesTr", "labelsTr") for side in ("fixed", "moving")})
        fixed, moving = item["fixed"], item["moving"]
        resampler = ResampleToFixed(initial=initial)
        try:
            start = resampler.alignment(fixed, moving)
        except ValueError:  # by the headers some pairs do not overlap at all
            start = torch.eye(4, dtype=torch.float64)
        zero = torch.zeros(3, *fixed.shape[1:])
        warped = WarpByDDF("nearest")(moving, DDFToFixedGrid()(zero, fixed, fixed, start), fixed.affine)
        for label in (1, 2, 3, 4):
            a, b = fixed.as_tensor() == label, warped.as_tensor() == label
            scores.append(200 * (a & b).sum().item() / (a.sum() + b.sum()).item())
    assert np.mean(scores) == pytest.approx(dice, abs=0.3)


@pytest.mark.parametrize(
    ("size", "spacing", "working"),
    [
        ((20, 18, 16), (1.0, 1.2, 1.4), (1.0, 1.2, 1.4)),  # nearly cubes: as they are
        ((20, 18, 16), (1.0, 1.0, 8.0), (2.0, 2.0, 2.0)),  # cubes of the same volume
        ((400, 400, 420), (0.5, 0.5, 0.5), (0.794, 0.794, 0.794)),  # 67 million voxels are four times too many
    ],
)
def test_auto_spacing_makes_long_voxels_cubes_and_very_large_images_coarser(size, spacing, working):
    fixed = image(torch.zeros(1, 1, 1, 1).expand(1, *size), spacing)

    extent, affine = ResampleToFixed(spacing="auto").working_grid(fixed)

    torch.testing.assert_close(voxel_spacing(affine), torch.tensor(working).double(), atol=3e-3, rtol=0)
    assert np.prod(extent) < 1.05 * 2**24


def test_none_is_the_fixed_grid_also_as_a_word():
    fixed = image(torch.zeros(1, 20, 18, 4), (1.0, 1.0, 8.0))

    for none in (None, "none"):
        assert ResampleToFixed(spacing=none).working_grid(fixed)[0] == (20, 18, 4)


def test_an_unknown_spacing_is_refused():
    with pytest.raises(ValueError, match=r"must be 'auto', 'none', or above 0 mm"):
        ResampleToFixed(spacing="isotropic")
