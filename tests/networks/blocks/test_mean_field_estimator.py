# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks.mean_field import MeanField
from monai_reg_ext.networks.blocks.mean_field_estimator import MeanFieldEstimator

SIZE = (15, 13, 17)
WINDOW = {"grid_spacing": (2, 3, 4), "points": (8, 7, 9), "labels": (5, 3, 7)}


def features(shift: tuple[int, int, int], channels: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed features and moving ones that lie a shift further on."""
    fixed = 3 * torch.rand(1, channels, *SIZE, generator=torch.Generator().manual_seed(0))
    return fixed, fixed.roll(shift, (2, 3, 4))


def golden_estimator(golden: dict[str, torch.Tensor]) -> MeanFieldEstimator:
    return MeanFieldEstimator(
        MeanField(alphas=golden["alpha"].tolist()),
        points=int(golden["grid_size"]),
        labels=int(golden["displacement_width"]),
        fraction=float(golden["displacement_range"]),
        compat=True,
    )


@pytest.mark.parametrize("kernels", ["0", "1"])
def test_golden_probabilities_and_field(golden_pdd, kernels, monkeypatch):
    monkeypatch.setenv("MONAI_REG_NUMBA", kernels)
    sides = golden_pdd["features_fixed"][None], golden_pdd["features_moving"][None]

    with torch.no_grad():
        distribution = golden_estimator(golden_pdd).distribution(*sides)

    probabilities = distribution.probabilities[0].flatten(3).flatten(0, 2).T
    torch.testing.assert_close(probabilities, golden_pdd["probabilities"], rtol=0, atol=1e-6)
    # the reference's displacements are halves of the image, in the order of axes 2, 1, 0
    halves = torch.tensor([(extent - 1) / 2 for extent in sides[0].shape[2:]])
    found = (distribution.mean()[0].flatten(1).T / halves).flip(1)
    torch.testing.assert_close(found, golden_pdd["displacement_xyz"], rtol=0, atol=1e-5)


def test_golden_non_local_labels(golden_pdd):
    sides = golden_pdd["features_fixed"][None], golden_pdd["features_moving"][None]
    label = golden_pdd["label_moving"].long()
    channels = torch.nn.functional.one_hot(label).movedim(-1, 0)[None].float()

    with torch.no_grad():
        distribution = golden_estimator(golden_pdd).distribution(*sides)
        # features and labels lie corner to corner
        factor = [(n - 1) / (cells - 1) for n, cells in zip(label.shape, sides[0].shape[2:], strict=True)]
        seen = distribution.scaled(factor, (0, 0, 0)).seen(channels)

    torch.testing.assert_close(seen[0].flatten(1), golden_pdd["nonlocal_label"], rtol=0, atol=1e-4)


def test_a_shift_is_found_in_cells():
    fixed, moving = features((2, -1, 3))

    window = {"grid_spacing": (2, 3, 4), "points": SIZE, "labels": (7, 5, 9), "reach": (6, 6, 16)}
    coarse_ddf = MeanFieldEstimator(MeanField(100.0), **window)(fixed, moving)

    # displacements of 2 voxels are one cell along axis 0, and so on
    inner = coarse_ddf[..., 4:-4, 4:-4, 5:-5]
    expected = torch.tensor([2.0, -1, 3]).view(1, 3, 1, 1, 1).expand_as(inner)
    torch.testing.assert_close(inner, expected, atol=0.1, rtol=0)


def test_equal_features_stay_where_they_are():
    fixed, _ = features((0, 0, 0))
    estimator = MeanFieldEstimator(MeanField(100.0), **WINDOW)

    distribution = estimator.distribution(fixed, fixed)

    assert (distribution.probabilities.flatten(1, 3).argmax(1) == (2 * 3 + 1) * 7 + 3).all()
    assert estimator(fixed, fixed).abs().mean() < 0.1


def test_the_field_is_the_mean_of_the_distribution_with_and_without_gradients():
    fixed, moving = features((2, -1, 3))
    estimator = MeanFieldEstimator(**WINDOW)

    with torch.no_grad():
        plain = estimator(fixed, moving)

    torch.testing.assert_close(plain, estimator(fixed, moving), atol=1e-5, rtol=1e-5)


def test_the_window_is_a_fraction_of_half_the_image_or_counts_in_voxels():
    fixed, _ = features((0, 0, 0))

    by_fraction = MeanFieldEstimator(**WINDOW, fraction=(0.2, 0.4, 0.6)).search_grid(fixed)
    by_voxels = MeanFieldEstimator(**WINDOW, reach=(2, 3, 10)).search_grid(fixed)
    of_reference = MeanFieldEstimator(**WINDOW, fraction=0.5, compat=True).search_grid(fixed)

    assert [axis[-1].item() for axis in by_fraction.labels] == pytest.approx([1.5, 2.6, 5.1])
    assert [axis[-1].item() for axis in by_voxels.labels] == pytest.approx([1.0, 1.0, 2.5])
    assert [axis[-1].item() for axis in of_reference.labels] == pytest.approx([3.5, 3.0, 4.0])


def test_items_of_a_batch_do_not_meet():
    pairs = [features((2, -1, 3)), features((0, 1, 0))]
    estimator = MeanFieldEstimator(**WINDOW)

    together = estimator(*(torch.cat(side) for side in zip(*pairs, strict=True)))

    for one, pair in zip(together, pairs, strict=True):
        torch.testing.assert_close(one[None], estimator(*pair), atol=1e-5, rtol=1e-5)


def test_half_precision_features_give_the_field_of_float32():
    fixed, moving = features((2, -1, 3))
    estimator = MeanFieldEstimator(**WINDOW)

    found = estimator(fixed.half(), moving.half())

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, estimator(fixed.half().float(), moving.half().float()))


def test_fewer_control_points_than_the_filter_is_wide_will_do():
    fixed, moving = features((2, 2, -1))
    window = {"grid_spacing": 1, "labels": (5, 5, 3), "reach": (2, 2, 1)}

    coarse_ddf = MeanFieldEstimator(MeanField(8.0), points=(2, 1, 2), **window)(fixed, moving)

    expected = torch.tensor([2.0, 2, -1]).view(1, 3, 1, 1, 1).expand_as(coarse_ddf)
    torch.testing.assert_close(coarse_ddf, expected, atol=0.35, rtol=0)


def test_a_window_larger_than_the_image_is_refused():
    fixed, moving = features((0, 0, 0))

    with pytest.raises(ValueError, match="larger than the volume of \\(15, 13, 17\\) cells"):
        MeanFieldEstimator(**WINDOW, reach=(31, 3, 4))(fixed, moving)


def test_points_outside_the_fixed_mask_follow_their_neighbours():
    fixed, moving = features((2, -1, 0))
    spoiled = fixed.clone()
    spoiled[..., 8:, :, :] = 3 * torch.rand(8, 7, 13, 17, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 1, *SIZE)
    mask[..., 8:, :, :] = 0
    estimator = MeanFieldEstimator(MeanField(40.0), points=SIZE, grid_spacing=1, labels=7, reach=3, mask_penalty=0.0)

    blind, masked = estimator(spoiled, moving), estimator(spoiled, moving, mask, None)

    def error(field):
        return (field[:, :, 8] - torch.tensor([2.0, -1, 0]).view(1, 3, 1, 1)).abs()[..., 4:-4, 4:-4].mean()

    assert error(masked) < 0.5 * error(blind)


def test_leaving_the_moving_mask_costs_the_penalty():
    fixed, moving = (torch.ones(1, 2, *SIZE) for _ in range(2))
    inside = torch.ones(1, 1, *SIZE)
    outside = torch.zeros(1, 1, *SIZE)
    estimator = MeanFieldEstimator(**WINDOW, mask_penalty=2.5)

    cost = estimator.cost(fixed, moving, estimator.search_grid(fixed), inside, outside)

    torch.testing.assert_close(cost, torch.full_like(cost, 2.5))


def test_the_covariance_is_large_where_features_tell_nothing():
    fixed, _ = features((0, 0, 0))
    fixed[..., 9:] = 1.0
    estimator = MeanFieldEstimator(MeanField(40.0), points=SIZE, labels=5, reach=(6, 6, 6))

    covariance = estimator.covariance(fixed, fixed)

    assert covariance.shape == (1, 6, *SIZE)
    variance = covariance[:, [0, 3, 5]]
    # all of five displacements, -2 to 2 cells, are equally probable: their variance is 2
    torch.testing.assert_close(variance[..., -2:], torch.full((1, 3, 15, 13, 2), 2.0), atol=1e-3, rtol=0)
    assert variance[..., :6].max() < 0.2 * 2


def test_features_and_weights_learn():
    fixed, moving = (side.requires_grad_() for side in features((2, -1, 3)))
    estimator = MeanFieldEstimator(**WINDOW)

    estimator(fixed, moving).square().sum().backward()

    assert all(tensor.grad.abs().max() > 0 for tensor in (fixed, moving, *estimator.parameters()))
