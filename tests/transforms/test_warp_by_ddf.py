# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms import WarpByDDF, WarpByDDFd, ddf_to_itk_field, moving_voxels


def official_label(label: np.ndarray, ddf: torch.Tensor) -> np.ndarray:
    identity = np.stack(np.meshgrid(*[np.arange(extent) for extent in label.shape], indexing="ij"))
    return scipy.ndimage.map_coordinates(label, identity + ddf.numpy(), order=0)


def test_golden_labels_are_warped_as_learn2reg_does(golden_dir, fixed_affine):
    golden = np.load(golden_dir / "learn2reg_metrics.npz")
    moving = MetaTensor(torch.from_numpy(golden["moving_label"][None].astype(np.int32)), affine=fixed_affine)
    ddf = torch.from_numpy(golden["displacement"]).movedim(-1, 0)

    warped = WarpByDDF("nearest")(moving, ddf, fixed_affine)

    assert np.array_equal(warped[0], golden["warped_label"])


def test_labels_round_as_scipy_on_the_edge_between_two_voxels(fixed_affine):
    # float32 cannot hold 300.4999: position plus displacement must be summed in float64
    label = np.random.default_rng(0).integers(1, 100, (400, 3, 4)).astype(np.int32)
    ddf = torch.zeros(3, 400, 3, 4)
    ddf[0, :100], ddf[0, 100:200] = 0.5, 0.49999997
    ddf[0, 200:300], ddf[0, 300:] = -0.5, -0.50000006
    ddf[1, :, 0] = -1e-8  # by a hair outside, where the official result is 0

    warped = WarpByDDF("nearest")(MetaTensor(label[None], affine=fixed_affine), ddf, fixed_affine)

    expected = official_label(label, ddf)
    assert (expected == 0).any()
    assert np.array_equal(warped[0], expected)
    assert warped.dtype == torch.int32


def test_a_moving_label_map_stored_flipped_gives_the_same_labels(fixed_affine, fixed_size, smooth_ddf):
    label = torch.randint(1, 100, (1, *fixed_size), dtype=torch.int32)
    ddf = smooth_ddf(fixed_size, amplitude=3.0)
    flip = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    flip[1, 3] = fixed_size[1] - 1
    flipped = MetaTensor(label.flip(2), affine=fixed_affine @ flip)

    warped = WarpByDDF("nearest")(flipped, ddf, fixed_affine)

    assert np.array_equal(warped[0], official_label(label[0].numpy(), ddf))


@pytest.mark.parametrize(("mode", "interpolator"), [("bilinear", sitk.sitkLinear), ("cubic", sitk.sitkBSpline)])
def test_an_image_of_other_geometry_is_warped_as_simpleitk_does(
    mode, interpolator, fixed_affine, fixed_size, moving_affine, moving_size, smooth_image, smooth_ddf, to_sitk
):
    moving = smooth_image(moving_size, moving_affine)
    ddf = smooth_ddf(fixed_size)

    warped = WarpByDDF(mode)(moving, ddf, fixed_affine)

    field = to_sitk(ddf_to_itk_field(ddf, fixed_affine).double().numpy(), fixed_affine, is_vector=True)
    theirs = sitk.Resample(
        to_sitk(moving[0].numpy(), moving_affine),
        to_sitk(np.zeros(fixed_size, np.float32), fixed_affine),
        sitk.DisplacementFieldTransform(field),
        interpolator,
    )
    theirs = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
    coordinates = moving_voxels(ddf, fixed_affine, moving_affine)
    last = torch.tensor(moving_size).reshape(3, 1, 1, 1) - 1
    inside = ((coordinates > 0) & (coordinates < last)).all(0)
    inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = False  # ITK knows no field at its border
    assert inside.float().mean() > 0.5
    np.testing.assert_allclose(warped[0][inside], theirs[inside], atol=2e-3)


@pytest.mark.parametrize("mode", ["bilinear", "cubic"])
@pytest.mark.parametrize(("background", "expected"), [(None, -2048.0), (-1000.0, -1000.0)])
def test_outside_the_moving_image_stands_the_background(mode, background, expected, fixed_affine):
    moving = MetaTensor(torch.rand(1, 6, 5, 4) * 100, affine=fixed_affine)
    moving[0, 3, 3, 3] = -2048
    ddf = torch.zeros(3, 6, 5, 4)
    ddf[0, 3:] = 40
    ddf[2, :3] = -40

    warped = WarpByDDF(mode, background)(moving, ddf, fixed_affine)

    torch.testing.assert_close(warped.as_tensor(), torch.full((1, 6, 5, 4), expected))


def test_the_background_does_not_leak_into_an_image_that_stays(fixed_affine, smooth_image):
    moving = smooth_image((6, 5, 4), fixed_affine)

    warped = WarpByDDF()(moving, torch.zeros(3, 6, 5, 4), fixed_affine.float())

    torch.testing.assert_close(warped.as_tensor(), moving.as_tensor())


def test_results_lie_on_the_fixed_grid_and_keep_the_moving_name(
    fixed_affine, fixed_size, moving_affine, moving_size, smooth_image, smooth_ddf
):
    item = {
        "fixed": smooth_image(fixed_size, fixed_affine),
        "moving": smooth_image(moving_size, moving_affine),
        "pred": smooth_ddf(fixed_size),
    }

    out = WarpByDDFd()(item)

    assert set(out) == {"fixed", "moving", "pred", "warped"}  # no label, no warped label
    assert out["warped"].shape == (1, *fixed_size)
    assert torch.equal(out["warped"].affine, fixed_affine)
    assert out["warped"].meta["filename_or_obj"] == "scan.mha"
    assert torch.equal(out["moving"].affine, moving_affine)


def test_each_key_has_its_mode_and_output(fixed_affine, fixed_size, smooth_image, smooth_ddf):
    image = smooth_image(fixed_size, fixed_affine)
    label = (image > 100).to(torch.int32)
    ddf = smooth_ddf(fixed_size)

    out = WarpByDDFd()({"fixed": image, "moving": image, "moving_label": label, "pred": ddf})

    assert torch.equal(out["warped"], WarpByDDF("bilinear")(image, ddf, fixed_affine))
    assert torch.equal(out["warped_label"], WarpByDDF("nearest")(label, ddf, fixed_affine))


def test_a_ddf_on_another_grid_is_refused(fixed_affine, fixed_size, smooth_image, smooth_ddf):
    image = smooth_image(fixed_size, fixed_affine)

    with pytest.raises(ValueError, match="DDFToFixedGridd"):
        WarpByDDFd()({"fixed": image, "moving": image, "pred": smooth_ddf((4, 5, 6))})


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="trilinear"):
        WarpByDDF("trilinear")
