# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_reg_ext.networks.layers import cost_volume
from monai_reg_ext.networks.layers.dense_cost_volume import DenseCostVolume
from monai_reg_ext.networks.layers.residual_covariance import residual_covariance
from monai_reg_ext.networks.layers.ssd_cost_volume import SSDCostVolume, displacement_labels
from monai_reg_ext.networks.layers.symmetric_matrix import entries_of, matrices_of

WIDTHS, SIZE = (2, 1, 3), (5, 7, 6)
LABELS = displacement_labels(WIDTHS, torch.zeros(1))
DIAGONAL = [0, 3, 5]


def random_volume(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(1, len(LABELS), *SIZE, generator=generator)


def average_of_neighbours(volume):
    """Mean over the 3 x 3 x 3 cells that exist, of ``(channels, i, j, k)``."""
    volume = volume[None]
    return F.avg_pool3d(volume, 3, 1, 1, count_include_pad=False)[0]


def slow_covariance(cost):
    """Every probability of every displacement, in float64."""
    cost, labels = cost[0].double(), LABELS.double()
    mean_cost = cost.mean(0)
    typical = (mean_cost**2).sum() / mean_cost.sum()
    # a prior of 4 cells squared around no displacement
    logits = -18 / typical * cost - (labels.square().sum(1) / (2 * 4)).view(-1, 1, 1, 1)
    p = logits.softmax(0)
    mean = torch.einsum("lijk,lc->cijk", p, labels)
    deviation = labels.view(-1, 3, 1, 1, 1) - mean
    covariance = torch.einsum("lijk,lcijk,ldijk->ijkcd", p, deviation, deviation)
    known = torch.linalg.inv(covariance + torch.eye(3) / 12).permute(3, 4, 0, 1, 2)
    pull = torch.einsum("cdijk,dijk->cijk", known, mean)
    known = known.reshape(9, *SIZE)
    for _ in range(3):
        known, pull = average_of_neighbours(known), average_of_neighbours(pull)
    doubt = torch.linalg.inv(known.reshape(3, 3, *SIZE).permute(2, 3, 4, 0, 1)).permute(3, 4, 0, 1, 2)
    missed = torch.einsum("cdijk,dijk->cijk", doubt, pull)
    return entries_of((0.08 * doubt + torch.einsum("cijk,dijk->cdijk", missed, missed))[None])


@pytest.mark.parametrize("chunk_labels", [1, 4, 1000])
def test_it_is_what_the_dense_probabilities_give(monkeypatch, chunk_labels):
    monkeypatch.setattr(cost_volume, "_chunk_bytes", lambda labels: chunk_labels * 210 * 4)
    cost = random_volume()

    covariance = residual_covariance(DenseCostVolume(cost, LABELS))

    assert covariance.shape == (1, 6, *SIZE)
    torch.testing.assert_close(covariance.double(), slow_covariance(cost), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_the_scale_of_the_features_does_not_matter(scale):
    cost = random_volume()

    scaled = residual_covariance(DenseCostVolume(scale * cost, LABELS))

    torch.testing.assert_close(scaled, residual_covariance(DenseCostVolume(cost, LABELS)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_where_all_displacements_cost_the_same_the_prior_is_left(value):
    covariance = residual_covariance(DenseCostVolume(torch.full((1, len(LABELS), *SIZE), value), LABELS))

    for entry, width in zip(DIAGONAL, WIDTHS, strict=True):
        steps = torch.arange(-width, width + 1.0)
        variance = (steps.square() * (-steps.square() / 8).softmax(0)).sum() + 1 / 12
        torch.testing.assert_close(covariance[0, entry], (0.08 * variance).expand(SIZE))
    assert covariance[0, [1, 2, 4]].abs().max() < 1e-6


def test_a_place_without_doubt_keeps_the_width_of_a_label():
    cost = torch.full((1, len(LABELS), *SIZE), 10.0)
    cost[:, LABELS.abs().sum(1) == 0] = 0

    covariance = residual_covariance(DenseCostVolume(cost, LABELS))

    torch.testing.assert_close(covariance[0, DIAGONAL], torch.full((3, *SIZE), 0.08 / 12), rtol=1e-3, atol=0)


def test_a_displacement_that_all_cells_see_is_counted_as_missed():
    cost = torch.full((1, len(LABELS), *SIZE), 10.0)
    cost[:, (torch.tensor([1, 0, -2]) == LABELS).all(1)] = 0

    covariance = residual_covariance(DenseCostVolume(cost, LABELS))

    expected = torch.tensor([1, 0, -2, 0, 0, 4]) + 0.08 / 12 * torch.tensor([1, 0, 0, 1, 0, 1])
    torch.testing.assert_close(covariance, expected.view(1, 6, 1, 1, 1).expand_as(covariance), rtol=0.01, atol=1e-3)


def test_a_cell_among_others_that_know_more_is_as_sure_as_the_mean_of_what_they_know():
    cost = torch.full((1, len(LABELS), *SIZE), 10.0)
    cost[:, LABELS.abs().sum(1) == 0] = 0
    sure = 0.08 / 12
    cost[..., 2, 3, 3] = 10.0  # knows nothing

    covariance = residual_covariance(DenseCostVolume(cost, LABELS))

    # three averages over three cells leave 7/27 of the weight along each axis to the cell itself
    own = (7 / 27) ** 3
    for entry, width in zip(DIAGONAL, WIDTHS, strict=True):
        steps = torch.arange(-width, width + 1.0)
        nothing = 0.08 * ((steps.square() * (-steps.square() / 8).softmax(0)).sum() + 1 / 12)
        expected = 1 / (own / nothing + (1 - own) / sure)
        assert covariance[0, entry, 2, 3, 3].item() == pytest.approx(float(expected), rel=0.01)


def test_along_an_edge_the_doubt_is_larger_than_across():
    # all features change along axis 1 only
    features = torch.randn(1, 6, 1, 14, 1).expand(1, 6, 12, 14, 11).contiguous()

    covariance = residual_covariance(SSDCostVolume(features, features, (2, 2, 2)))

    inside = covariance[0, :, 4:-4, 4:-4, 4:-4]
    assert inside[3].max() < 0.3 * inside[0].min()
    assert inside[3].max() < 0.3 * inside[5].min()


def test_oblique_edges_have_covariances_between_axes():
    # equal along (1, 1, 0): what axis 0 gains is made good along axis 1
    base = torch.randn(1, 6, 40)
    i, j = torch.meshgrid(torch.arange(15), torch.arange(14), indexing="ij")
    features = base[:, :, i - j + 20][..., None].expand(1, 6, 15, 14, 13).contiguous()

    covariance = residual_covariance(SSDCostVolume(features, features, (2, 2, 2)))

    inside = covariance[0, :, 5:-5, 5:-5, 5:-5]
    assert (inside[1] > 0.5 * (inside[0] * inside[3]).sqrt()).all()
    assert (inside[[2, 4]].abs() < 0.1 * inside[5]).all()


def test_noise_makes_it_larger():
    features = torch.randn(1, 6, 11, 12, 13)
    noisy = features + 0.7 * torch.randn_like(features)

    clean, doubtful = (residual_covariance(SSDCostVolume(features, moving, (2, 2, 2))) for moving in (features, noisy))

    assert (doubtful[:, DIAGONAL] > clean[:, DIAGONAL]).all()


def test_costs_outside_the_mask_have_no_influence():
    mask = torch.zeros(1, 1, *SIZE)
    mask[:, :, :3] = 1
    cost, other = random_volume(), random_volume(seed=1)
    other[..., :3, :, :] = cost[..., :3, :, :]

    masked, of_other = (residual_covariance(DenseCostVolume(each, LABELS), mask) for each in (cost, other))

    torch.testing.assert_close(of_other, masked)
    assert not torch.allclose(residual_covariance(DenseCostVolume(other, LABELS)), masked)


def test_beyond_the_mask_its_border_goes_on():
    # the same costs at all cells of a row: continuing them changes nothing
    cost = random_volume()[..., :1, :, :].expand(-1, -1, SIZE[0], -1, -1).contiguous()
    masked, mask = cost.clone(), torch.zeros(1, 1, *SIZE)
    mask[:, :, :3] = 1
    masked[..., 3:, :, :] = 5.0

    covariance = residual_covariance(DenseCostVolume(masked, LABELS), mask)

    torch.testing.assert_close(covariance, residual_covariance(DenseCostVolume(cost, LABELS)))


def test_it_is_positive_definite_in_the_type_of_the_costs():
    for dtype in (torch.float32, torch.float64):
        covariance = residual_covariance(DenseCostVolume(random_volume().to(dtype), LABELS.to(dtype)))
        assert covariance.dtype == dtype
        assert torch.linalg.eigvalsh(matrices_of(covariance).movedim((1, 2), (-2, -1))).min() > 0


def test_no_gradient_is_kept():
    features = torch.randn(1, 3, 5, 6, 7, requires_grad=True)

    assert not residual_covariance(SSDCostVolume(features, features, (1, 1, 1))).requires_grad
