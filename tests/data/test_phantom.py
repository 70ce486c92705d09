# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk  # noqa: N813 (its own name for itself)
import torch
from monai.data import MetaTensor

from monai_reg_ext.data import phantom_pair

SIZE, SPACING = (48, 40, 32), (4.0, 4.0, 6.0)  # the default's field of view on a grid of an eighth of its voxels


@pytest.fixture(scope="module")
def pair():
    return phantom_pair(seed=1)


@pytest.fixture(scope="module")
def displacement_mm(pair):
    linear = pair["fixed"].affine[:3, :3].numpy()
    return np.einsum("wc,cijk->wijk", linear, pair["true_ddf"].numpy())


def _warp(volume, ddf, order):
    """The convention, written with scipy: warped(x) = moving(x + ddf(x))."""
    grid = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"))
    return scipy.ndimage.map_coordinates(volume, grid + ddf, order=order, mode="nearest")


def _array(pair, key):
    return pair[key].numpy()[0]


def _dice(first, second, label):
    first, second = first == label, second == label
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_a_pair_holds_everything_a_loaded_pair_holds_on_one_flipped_anisotropic_grid(pair):
    types = {
        "fixed": torch.float32,
        "moving": torch.float32,
        "fixed_label": torch.int32,
        "moving_label": torch.int32,
        "fixed_body": torch.uint8,
        "moving_body": torch.uint8,
    }
    assert sorted(pair) == sorted([*types, "pair", "fixed_points", "moving_points", "true_ddf"])
    assert pair["pair"] == "phantom_fixed__phantom_moving"
    for key, dtype in types.items():
        assert isinstance(pair[key], MetaTensor)
        assert pair[key].shape == (1, 96, 80, 64)
        assert pair[key].dtype == dtype
        assert torch.equal(pair[key].affine, pair["true_ddf"].affine)
    assert pair["true_ddf"].shape == (3, 96, 80, 64)
    assert pair["true_ddf"].dtype == torch.float32
    for key in ("fixed_points", "moving_points"):
        assert pair[key].shape == (200, 3)
        assert pair[key].dtype == torch.float64
    assert torch.equal(pair["fixed"].affine[:3, :3], torch.diag(torch.tensor([-2.0, 2.0, 3.0], dtype=torch.float64)))
    assert pair["fixed"].affine[:3, 3].abs().min() > 10


def test_the_true_ddf_carries_every_organ_onto_the_fixed_one(pair):
    fixed, moving = _array(pair, "fixed_label"), _array(pair, "moving_label")
    warped = _warp(moving, pair["true_ddf"].numpy(), order=0)

    assert set(np.unique(fixed)) == set(np.unique(moving)) == set(range(6))
    for label in range(1, 6):
        assert _dice(fixed, warped, label) > 0.92  # nearest neighbour costs a few boundary voxels
        assert _dice(fixed, warped, label) > _dice(fixed, moving, label) + 0.02
    assert np.mean([_dice(fixed, moving, label) for label in range(1, 6)]) < 0.85


def test_the_true_ddf_carries_body_and_texture_onto_the_fixed_ones(pair):
    fixed, body = _array(pair, "fixed"), _array(pair, "fixed_body") > 0
    ddf = pair["true_ddf"].numpy()
    warped, warped_body = _warp(_array(pair, "moving"), ddf, order=1), _warp(_array(pair, "moving_body"), ddf, order=0)

    liver = scipy.ndimage.binary_erosion(_array(pair, "fixed_label") == 1, iterations=3)
    assert _dice(body, warped_body > 0, True) > 0.99
    assert np.corrcoef(fixed[body], warped[body])[0, 1] > 0.97
    assert np.corrcoef(fixed[body], _array(pair, "moving")[body])[0, 1] < 0.85
    assert np.corrcoef(fixed[liver], warped[liver])[0, 1] > 0.7  # texture and vessels, less the noise
    assert np.corrcoef(fixed[liver], _array(pair, "moving")[liver])[0, 1] < 0.3


def test_itk_finds_the_same_displacement_in_physical_space(pair):
    # a displacement transform in mm LPS applied to the moving image must give what the ddf gives
    size = _array(pair, "fixed").shape
    affine = pair["fixed"].affine.numpy()
    to_lps = np.diag([-1.0, -1.0, 1.0])
    field = np.einsum("wc,cijk->kjiw", to_lps @ affine[:3, :3], pair["true_ddf"].numpy()).astype(np.float64)

    def image(array, vector=False):
        result = sitk.GetImageFromArray(array, isVector=vector)
        result.SetSpacing(np.linalg.norm(affine[:3, :3], axis=0))
        result.SetOrigin(to_lps @ affine[:3, 3])
        result.SetDirection((to_lps @ affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).flatten())
        return result

    moving = image(_array(pair, "moving").transpose(2, 1, 0))
    transform = sitk.DisplacementFieldTransform(image(field, vector=True))
    warped = sitk.GetArrayFromImage(sitk.Resample(moving, moving, transform, sitk.sitkLinear, -1000.0)).transpose(
        2, 1, 0
    )

    inside = tuple(slice(1, extent - 1) for extent in size)
    np.testing.assert_allclose(
        warped[inside], _warp(_array(pair, "moving"), pair["true_ddf"].numpy(), 1)[inside], atol=0.5
    )


def test_points_correspond_exactly_and_lie_in_the_bodies(pair):
    affine = pair["fixed"].affine.numpy()
    fixed, moving = (
        (pair[f"{side}_points"].numpy() - affine[:3, 3]) / np.diag(affine)[:3] for side in ("fixed", "moving")
    )
    moved = fixed + np.stack([scipy.ndimage.map_coordinates(c, fixed.T, order=3) for c in pair["true_ddf"].numpy()], 1)

    # cubic splines through the displacements of voxels follow such slow sines, away from where they are mirrored
    central = ((fixed > 8) & (fixed < np.array([96, 80, 64]) - 9)).all(axis=1)
    assert central.sum() > 100
    np.testing.assert_allclose(moving[central], moved[central], atol=1e-3)
    assert np.linalg.norm(pair["moving_points"] - pair["fixed_points"], axis=1).mean() > 3
    for side, voxels in (("fixed", fixed), ("moving", moving)):
        # a point off the voxel centre may leave the body by half a voxel
        grown = scipy.ndimage.binary_dilation(_array(pair, f"{side}_body"), iterations=2)
        assert grown[tuple(voxels.round().astype(int).T)].all()


def test_the_largest_displacement_is_as_long_as_asked_in_mm_and_it_vanishes_at_the_ends(pair, displacement_mm):
    length = np.linalg.norm(displacement_mm, axis=0)

    assert length.max() == pytest.approx(20, abs=1e-3)
    assert 3 < length[_array(pair, "fixed_body") > 0].mean() < 12
    for axis in range(3):
        assert np.abs(displacement_mm.take([0, -1], axis=axis + 1)).max() < 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_the_displacement_does_not_fold(seed):
    ddf = phantom_pair(SIZE, SPACING, seed=seed)["true_ddf"].numpy()

    jacobian = np.stack(np.gradient(ddf, axis=(1, 2, 3)), axis=-1)  # (component, i, j, k, axis)
    determinant = np.linalg.det(np.moveaxis(jacobian, 0, -2) + np.eye(3))

    assert determinant.min() > 0.2


def test_the_two_scans_differ_in_contrast_and_noise_where_nothing_moves():
    still = phantom_pair(SIZE, SPACING, max_displacement_mm=0)
    difference = _array(still, "fixed") - _array(still, "moving")
    air = ~scipy.ndimage.binary_dilation(_array(still, "fixed_body") > 0, iterations=3)

    assert not still["true_ddf"].any()
    assert np.array_equal(_array(still, "fixed_label"), _array(still, "moving_label"))
    assert difference[air].std() == pytest.approx(12 * np.sqrt(2), rel=0.05)  # two independent noises of 12 HU
    shifts = [difference[_array(still, "fixed_label") == label].mean() for label in range(1, 6)]
    assert np.std(shifts) > 3


def test_seeds_repeat_and_differ():
    first, again, other = (phantom_pair(SIZE, SPACING, seed=seed) for seed in (0, 0, 1))

    for key in ("fixed", "moving", "true_ddf", "fixed_points"):
        assert torch.equal(torch.as_tensor(first[key]), torch.as_tensor(again[key]))
        assert not torch.equal(torch.as_tensor(first[key]), torch.as_tensor(other[key]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (96, 80)}, r"three axes of at least 16 voxels, got size=\(96, 80\)"),
        ({"size": (96, 80, 8)}, "three axes of at least 16 voxels"),
        ({"spacing": (2.0, 0.0, 3.0)}, "three positive spacings"),
        ({"max_displacement_mm": -1.0}, "must not be negative"),
        ({"size": (24, 20, 16), "max_displacement_mm": 40.0}, "no displacement of 40.0 mm without folding"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        phantom_pair(**arguments)
