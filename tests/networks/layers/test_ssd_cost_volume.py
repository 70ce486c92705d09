# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from monai_reg_ext.networks.layers import cost_volume
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.ssd_cost_volume import (
    SSDCostVolume,
    displacement_labels,
    ssd_cost_volume,
    write_ssd_chunk,
)


def slow_labels(half_width):
    """Axis 0 fastest."""
    reach_0, reach_1, reach_2 = half_width
    return [
        (i, j, k)
        for k in range(-reach_2, reach_2 + 1)
        for j in range(-reach_1, reach_1 + 1)
        for i in range(-reach_0, reach_0 + 1)
    ]


def slow_cost(fixed, moving, half_width):
    """Plain loops over labels and positions, without smoothing; the outside of the moving image is 0."""
    size = fixed.shape[1:]
    cost = np.empty((len(slow_labels(half_width)), *size))
    for label, displacement in enumerate(slow_labels(half_width)):
        for position in itertools.product(*map(range, size)):
            target = tuple(np.add(position, displacement))
            inside = all(0 <= t < extent for t, extent in zip(target, size, strict=True))
            found = moving[(slice(None), *target)] if inside else 0
            cost[(label, *position)] = ((fixed[(slice(None), *position)] - found) ** 2).sum()
    return cost


@pytest.mark.parametrize("half_width", [(1, 2, 0), (2, 1, 3), (0, 0, 0)])
def test_labels_are_all_whole_displacements_with_axis_0_fastest(half_width):
    labels = displacement_labels(half_width, torch.zeros(1, dtype=torch.float64))

    assert labels.dtype == torch.float64
    assert [tuple(label) for label in labels.int().tolist()] == slow_labels(half_width)


@pytest.mark.parametrize("half_width", [(1, 2, 0), (2, 0, 1)])
def test_cost_is_the_squared_distance_to_the_displaced_features(half_width):
    fixed, moving = torch.randn(2, 2, 3, 4, 5, 3)

    cost = ssd_cost_volume(fixed, moving, half_width, smooth_widths=())

    for item in range(2):
        slow = slow_cost(fixed[item].numpy(), moving[item].numpy(), half_width)
        np.testing.assert_allclose(cost[item].numpy(), slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compat", [False, True])
def test_cost_is_smoothed_over_space_and_not_over_labels(compat):
    fixed, moving = torch.randn(2, 1, 3, 5, 6, 4)

    cost = ssd_cost_volume(fixed, moving, (1, 1, 1), (3, 5), compat)

    raw = ssd_cost_volume(fixed, moving, (1, 1, 1), ())
    torch.testing.assert_close(cost, box_filter(raw, (3, 5), compat))


def test_leaving_the_image_costs_all_feature_energy():
    fixed = torch.randn(1, 4, 3, 4, 5)

    cost = ssd_cost_volume(fixed, torch.randn(1, 4, 3, 4, 5), (3, 0, 0), smooth_widths=())

    torch.testing.assert_close(cost[:, 0], fixed.square().sum(1))  # three cells to the left of a grid of three


class LargestTensor(TorchDispatchMode):
    """Number of values in the largest tensor that any operation gave."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.values = max(self.values, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def all_chunks(volume):
    starts, chunks = zip(*((start, chunk.clone()) for start, chunk in volume), strict=True)
    assert list(starts) == list(np.cumsum([0, *(chunk.shape[1] for chunk in chunks)])[:-1])
    return torch.cat(chunks, 1)


@pytest.fixture(params=[1, 300, 1 << 20])
def chunks(request, monkeypatch):
    """Chunks of one displacement, of a few, of all."""
    monkeypatch.setattr(cost_volume, "_chunk_bytes", lambda labels: request.param)


@pytest.fixture
def computed(monkeypatch):
    """Numbers of the displacements that were computed, one list per chunk."""
    calls = []
    write = write_ssd_chunk

    def counted(fixed, moving, energy, displacements, *rest):
        calls.append(displacements.tolist())
        write(fixed, moving, energy, displacements, *rest)

    monkeypatch.setitem(ssd_cost_volume.__globals__, "write_ssd_chunk", counted)
    return calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_type_of_the_features_is_kept(dtype):
    fixed, moving = torch.randn(2, 1, 3, 5, 6, 4).to(dtype)

    assert ssd_cost_volume(fixed, moving, (1, 1, 1)).dtype == dtype


def test_features_can_be_learned_through_the_cost():
    fixed, moving = torch.randn(2, 1, 2, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda f, m: ssd_cost_volume(f, m, (1, 0, 1)), (fixed, moving))


# the last window is wider than the grid
WINDOWS = [(0, 0, 0), (2, 1, 0), (0, 2, 3), (4, 1, 5)]


@pytest.mark.parametrize("half_width", WINDOWS)
@pytest.mark.parametrize("compat", [False, True])
def test_the_chunks_are_the_dense_volume(chunks, half_width, compat):
    fixed, moving = torch.randn(2, 2, 3, 3, 5, 4)

    volume = SSDCostVolume(fixed, moving, half_width, (3, 5), compat)

    assert torch.equal(volume.labels, displacement_labels(half_width, fixed))
    dense = ssd_cost_volume(fixed, moving, half_width, (3, 5), compat)
    torch.testing.assert_close(all_chunks(volume), dense)


@pytest.mark.parametrize("half_width", WINDOWS)
def test_a_symmetric_volume_has_the_opposite_direction_with_negated_labels(chunks, half_width):
    fixed, moving = torch.randn(2, 2, 3, 3, 5, 4)

    forward, backward = all_chunks(SSDCostVolume(fixed, moving, half_width, symmetric=True)).chunk(2)

    torch.testing.assert_close(forward, ssd_cost_volume(fixed, moving, half_width))
    # the window is symmetric, so that the labels in reverse are the negated labels
    torch.testing.assert_close(backward, ssd_cost_volume(moving, fixed, half_width).flip(1))


def test_differences_taken_in_blocks_are_the_same(monkeypatch):
    fixed, moving = torch.randn(2, 2, 3, 3, 5, 4)
    whole = all_chunks(SSDCostVolume(fixed, moving, (1, 2, 1)))

    monkeypatch.setitem(ssd_cost_volume.__globals__, "_DIFFERENCE_BYTES", 7 * 2 * 3 * 4)

    assert torch.equal(all_chunks(SSDCostVolume(fixed, moving, (1, 2, 1))), whole)


@pytest.mark.parametrize(("memory", "kept"), [(27 * 60 * 4, 27), (27 * 60 * 4 - 1, 25), (13 * 60 * 4, 12), (0, 0)])
def test_costs_that_fit_the_memory_are_computed_once(computed, monkeypatch, memory, kept):
    monkeypatch.setattr(cost_volume, "_chunk_bytes", lambda labels: 5 * 60 * 4)
    fixed, moving = torch.randn(2, 1, 3, 3, 5, 4)
    volume = SSDCostVolume(fixed, moving, (1, 1, 1), memory=memory)

    first, second = all_chunks(volume), all_chunks(volume)

    whole = ssd_cost_volume(fixed, moving, (1, 1, 1))
    torch.testing.assert_close(first, whole)
    assert torch.equal(first, second)
    # chunks of five displacements, the last one of two: another chunk may fit where the one before did not
    every = displacement_labels((1, 1, 1), torch.zeros(0, dtype=torch.int64)).tolist()
    again = every[kept:] if kept != 12 else every[10:25]
    assert list(itertools.chain(*computed)) == every + again


def test_an_iteration_that_was_left_is_taken_up_by_the_next(chunks):
    fixed, moving = torch.randn(2, 1, 3, 3, 5, 4)
    volume = SSDCostVolume(fixed, moving, (1, 1, 1))

    next(iter(volume))

    torch.testing.assert_close(all_chunks(volume), ssd_cost_volume(fixed, moving, (1, 1, 1)))


@pytest.mark.parametrize("symmetric", [False, True])
def test_without_memory_no_tensor_is_larger_than_a_chunk_or_the_features(symmetric, monkeypatch):
    monkeypatch.setattr(cost_volume, "_chunk_bytes", lambda labels: 9 * 60 * 4)
    fixed, moving = torch.randn(1, 6, 3, 5, 4), torch.randn(1, 6, 3, 5, 4)

    with LargestTensor() as largest:
        volume = SSDCostVolume(fixed, moving, (2, 2, 2), symmetric=symmetric, memory=0)
        for _ in volume:
            pass
        volume.pull_back(lambda start, cost: cost.clone())

    assert largest.values <= 9 * 60  # 125 labels of 60 points, 6 channels of 60 points


def test_half_precision_rounds_what_is_kept_and_needs_half_the_memory(computed):
    fixed, moving = torch.randn(2, 1, 3, 3, 5, 4)
    volume = SSDCostVolume(fixed, moving, (1, 1, 1), memory=27 * 60 * 2, half=True)

    first, second = all_chunks(volume), all_chunks(volume)

    assert len(computed) == 1
    assert first.dtype == torch.float32
    assert torch.equal(first, ssd_cost_volume(fixed, moving, (1, 1, 1)).half().float())
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_features_are_accumulated_in_float32(dtype, expected):
    # 4096 ones and a little: in float16 the little is lost
    fixed = torch.cat([torch.ones(1, 4096, 3, 2, 4), torch.full((1, 1, 3, 2, 4), 0.5)], 1).to(dtype)
    moving = torch.zeros_like(fixed)

    volume = SSDCostVolume(fixed, moving, (1, 0, 1))

    assert volume.labels.dtype == expected
    torch.testing.assert_close(all_chunks(volume), torch.full((1, 9, 3, 2, 4), 4096.25, dtype=expected))
    torch.testing.assert_close(ssd_cost_volume(fixed, moving, (1, 0, 1)), all_chunks(volume).to(dtype))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("half_width", WINDOWS)
def test_pulled_back_gradients_are_those_of_autograd(chunks, half_width, symmetric, compat):
    fixed, moving = torch.randn(2, 2, 3, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    dense = ssd_cost_volume(fixed, moving, half_width, (3, 5), compat)
    if symmetric:
        dense = torch.cat([dense, ssd_cost_volume(moving, fixed, half_width, (3, 5), compat).flip(1)])
    gradient = torch.randn_like(dense)

    volume = SSDCostVolume(fixed, moving, half_width, (3, 5), compat, symmetric)
    pulled_back = volume.pull_back(lambda start, cost: gradient[:, start : start + cost.shape[1]].clone())

    torch.testing.assert_close(pulled_back, torch.autograd.grad(dense, (fixed, moving), gradient))


def test_gradients_of_half_features_are_half():
    fixed, moving = torch.randn(2, 1, 3, 3, 5, 4).half()

    gradients = SSDCostVolume(fixed, moving, (1, 1, 1)).pull_back(lambda start, cost: torch.ones_like(cost))

    assert [gradient.dtype for gradient in gradients] == [torch.float16] * 2


def slow_box(volume, compat):
    """Mean of the 27 cells around each; beyond the grid there are none, or zeros."""
    smooth = np.empty(volume.shape)
    for position in itertools.product(*map(range, volume.shape)):
        window = volume[tuple(slice(max(0, p - 1), p + 2) for p in position)]
        smooth[position] = window.sum() / 27 if compat else window.mean()
    return smooth


def slow_masked_cost(fixed, moving, mask, half_width, compat):
    """Mean of the costs inside the mask, cell by cell; two boxes of width 3."""
    costs = slow_cost(fixed, moving, half_width) * mask
    share, whole = (slow_box(slow_box(part, compat), compat) for part in (mask, np.ones(mask.shape)))
    weighted = np.stack([slow_box(slow_box(cost, compat), compat) for cost in costs])
    return np.divide(weighted * whole, share, out=np.zeros(costs.shape), where=share > 0)


def random_masks(size=(4, 5, 7)):
    """Of fixed and moving features, two items; the second one's have one cell inside."""
    masks = (torch.rand(2, 2, 1, *size) > 0.4).float()
    masks[:, 1] = 0
    masks[0, 1, 0, 3, 1, 6] = masks[1, 1, 0, 0, 4, 2] = 1
    return masks


@pytest.mark.parametrize("compat", [False, True])
def test_with_masks_the_costs_are_means_over_the_inside(chunks, compat):
    fixed, moving = torch.randn(2, 2, 3, 4, 5, 7)
    masks = random_masks()
    half_width = (1, 2, 0)

    volume = SSDCostVolume(
        fixed, moving, half_width, compat=compat, symmetric=True, fixed_mask=masks[0], moving_mask=masks[1]
    )

    forward, negated = all_chunks(volume).chunk(2)
    for item in range(2):
        expected = slow_masked_cost(
            fixed[item].numpy(), moving[item].numpy(), masks[0, item, 0].numpy(), half_width, compat
        )
        np.testing.assert_allclose(forward[item], expected, rtol=1e-4, atol=1e-5)
        expected = slow_masked_cost(
            moving[item].numpy(), fixed[item].numpy(), masks[1, item, 0].numpy(), half_width, compat
        )
        np.testing.assert_allclose(negated[item].flip(0), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(volume.mask, masks.flatten(0, 1))


@pytest.mark.parametrize("given", ["fixed_mask", "moving_mask"])
def test_a_missing_mask_counts_as_ones(given):
    fixed, moving = torch.randn(2, 2, 3, 4, 5, 7)
    masks = dict(zip(("fixed_mask", "moving_mask"), random_masks(), strict=True))
    other = ({"fixed_mask", "moving_mask"} - {given}).pop()

    alone = SSDCostVolume(fixed, moving, (1, 0, 1), symmetric=True, **{given: masks[given]})
    with_ones = SSDCostVolume(
        fixed, moving, (1, 0, 1), symmetric=True, **{given: masks[given], other: torch.ones_like(masks[other])}
    )

    assert torch.equal(all_chunks(alone), all_chunks(with_ones))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("compat", [False, True])
def test_masks_of_ones_change_no_bit(symmetric, compat):
    fixed, moving = torch.randn(2, 2, 3, 4, 5, 7)
    ones = torch.ones(2, 1, 4, 5, 7)

    masked = SSDCostVolume(fixed, moving, (1, 2, 1), (3, 5), compat, symmetric, fixed_mask=ones, moving_mask=ones)

    assert torch.equal(
        all_chunks(masked), all_chunks(SSDCostVolume(fixed, moving, (1, 2, 1), (3, 5), compat, symmetric))
    )


def test_in_one_direction_the_moving_mask_is_not_needed():
    fixed, moving = torch.randn(2, 2, 3, 4, 5, 7)
    masks = random_masks()

    volume = SSDCostVolume(fixed, moving, (1, 0, 1), moving_mask=masks[1])

    assert volume.mask is None
    assert torch.equal(all_chunks(volume), all_chunks(SSDCostVolume(fixed, moving, (1, 0, 1))))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("compat", [False, True])
def test_pulled_back_gradients_of_masked_costs_are_those_of_autograd(chunks, symmetric, compat):
    fixed, moving = torch.randn(2, 2, 3, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    masks = random_masks().double()

    def masked(first, second, mask):
        share, whole = (box_filter(part, (3, 3), compat) for part in (mask, torch.ones_like(mask)))
        raw = ssd_cost_volume(first, second, (1, 2, 1), ())
        return torch.where(share > 0, box_filter(mask * raw, (3, 3), compat) * whole / share.clamp(min=1e-9), 0)

    dense = masked(fixed, moving, masks[0])
    if symmetric:
        dense = torch.cat([dense, masked(moving, fixed, masks[1]).flip(1)])
    gradient = torch.randn_like(dense)

    volume = SSDCostVolume(
        fixed, moving, (1, 2, 1), compat=compat, symmetric=symmetric, fixed_mask=masks[0], moving_mask=masks[1]
    )
    pulled_back = volume.pull_back(lambda start, cost: gradient[:, start : start + cost.shape[1]].clone())

    torch.testing.assert_close(pulled_back, torch.autograd.grad(dense, (fixed, moving), gradient))


@pytest.mark.parametrize("shape", [(2, 1, 4, 5, 6), (1, 1, 4, 5, 7), (2, 3, 4, 5, 7)])
def test_a_mask_of_another_shape_is_refused(shape):
    features = torch.zeros(2, 3, 4, 5, 7)

    with pytest.raises(ValueError, match=r"a mask for features \(2, 3, 4, 5, 7\) has shape \(2, 1, 4, 5, 7\), got"):
        SSDCostVolume(features, features, (1, 1, 1), fixed_mask=torch.ones(shape))


def test_features_of_different_grids_are_refused():
    with pytest.raises(ValueError, match=r"one grid, got fixed \(1, 2, 3, 4, 5\) and moving \(1, 2, 5, 4, 3\)"):
        SSDCostVolume(torch.zeros(1, 2, 3, 4, 5), torch.zeros(1, 2, 5, 4, 3), (1, 1, 1))


def test_golden_labels_cost_and_argmin(golden_convex):
    golden = golden_convex

    cost = ssd_cost_volume(golden["fixed"], golden["moving"], golden["half_width"], compat=True)

    torch.testing.assert_close(displacement_labels(golden["half_width"], cost), golden["labels"])
    torch.testing.assert_close(cost, golden["cost"], rtol=0, atol=1e-5)
    assert torch.equal(cost.argmin(1), golden["argmin"])


def test_golden_costs_in_chunks(golden_convex):
    golden = golden_convex

    volume = SSDCostVolume(golden["fixed"], golden["moving"], golden["half_width"], compat=True)

    torch.testing.assert_close(all_chunks(volume), golden["cost"], rtol=0, atol=1e-5)
    assert torch.equal(all_chunks(volume).argmin(1), golden["argmin"])
