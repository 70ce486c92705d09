# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.transforms import VoteEnsemble

from monai_reg_ext.networks.layers import fuse_labels, local_agreement

SIZE = (5, 7, 6)


def random_labels(number: int, labels: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(labels)[torch.randint(len(labels), (number, *SIZE))]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_without_weights_it_is_the_vote_that_monai_counts(number):
    labels = random_labels(number, (0, 1, 2, 3))

    expected = VoteEnsemble(num_classes=4)(labels[:, None])[0]

    torch.testing.assert_close(fuse_labels(labels), expected.to(labels.dtype))


def test_labels_may_be_any_whole_numbers():
    dense = random_labels(3, (0, 1, 2))
    names = torch.tensor([-4, 7, 2035], dtype=torch.int32)

    torch.testing.assert_close(fuse_labels(names[dense]), names[fuse_labels(dense)])


def test_equal_weights_change_nothing_and_a_heavy_voter_decides_alone():
    labels = random_labels(3, (0, 1, 2, 3))
    weights = torch.full(labels.shape, 0.3)

    torch.testing.assert_close(fuse_labels(labels, weights), fuse_labels(labels))
    weights[1] = 0.61
    torch.testing.assert_close(fuse_labels(labels, weights), labels[1])


def test_weights_count_in_their_own_voxel_only():
    labels = torch.stack([torch.full(SIZE, 1), torch.full(SIZE, 2)])
    weights = torch.ones(labels.shape)
    weights[1, 3, 1, 2] = 2.0

    fused = fuse_labels(labels, weights)

    expected = torch.full(SIZE, 1)
    expected[3, 1, 2] = 2
    torch.testing.assert_close(fused, expected)


@pytest.mark.parametrize("weights", [torch.ones(2, 3), torch.tensor([[-1.0], [1.0]]), torch.tensor([[torch.nan], [1]])])
def test_weights_that_say_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        fuse_labels(torch.tensor([[1], [2]]), weights)


def test_no_map_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one map"):
        fuse_labels(torch.zeros(0, 3, 4))


def slow_agreement(fixed: torch.Tensor, warped: torch.Tensor, width: int, gain: float) -> torch.Tensor:
    """Voxel by voxel, with the correlation that torch computes of the two windows."""
    radius, result = width // 2, torch.zeros(fixed.shape)
    for index in torch.cartesian_prod(*map(torch.arange, fixed.shape)).tolist():
        window = tuple(slice(max(0, i - radius), i + radius + 1) for i in index)
        both = torch.stack([fixed[window].flatten(), warped[window].flatten()]).double()
        result[tuple(index)] = torch.corrcoef(both)[0, 1].clamp(0, 1) ** gain
    return result.clamp(min=1e-4)


@pytest.mark.parametrize(("width", "gain"), [(3, 1.0), (5, 4.0)])
def test_agreement_is_the_correlation_of_the_windows_to_the_power_of_the_gain(width, gain):
    fixed, other = torch.randn(SIZE), torch.randn(SIZE)
    warped = torch.stack([0.5 * fixed + other, -other])

    agreement = local_agreement(fixed, warped, width, gain)

    expected = torch.stack([slow_agreement(fixed, image, width, gain) for image in warped])
    torch.testing.assert_close(agreement, expected, atol=2e-5, rtol=1e-4)


def test_brightness_and_contrast_do_not_matter_and_inversion_disagrees():
    fixed = torch.randn(SIZE)

    agreement = local_agreement(fixed, torch.stack([3 * fixed - 1000, 2 - fixed]), width=3)

    torch.testing.assert_close(agreement[0], torch.ones(SIZE), atol=1e-3, rtol=0)
    torch.testing.assert_close(agreement[1], torch.full(SIZE, 1e-4))


def test_where_nobody_agrees_the_majority_decides():
    flat, labels = torch.full(SIZE, 1024.3), torch.stack([torch.full(SIZE, label) for label in (1, 7, 7)])

    for fixed, warped in ((flat, torch.randn(3, *SIZE)), (torch.randn(SIZE), flat.expand(3, *SIZE))):
        agreement = local_agreement(fixed, warped, width=3)
        torch.testing.assert_close(agreement, torch.full(agreement.shape, 1e-4))
        torch.testing.assert_close(fuse_labels(labels, agreement), labels[1])


def test_an_atlas_counts_where_it_fits_and_not_where_it_does_not():
    fixed = torch.randn(20, 9, 8)
    left_right, right_left = fixed.clone(), fixed.clone()
    left_right[10:], right_left[:10] = torch.randn(10, 9, 8), torch.randn(10, 9, 8)
    labels = torch.stack([torch.full(fixed.shape, 1), torch.full(fixed.shape, 2)])

    fused = fuse_labels(labels, local_agreement(fixed, torch.stack([left_right, right_left]), width=3))

    assert (fused[:8] == 1).all()
    assert (fused[12:] == 2).all()
