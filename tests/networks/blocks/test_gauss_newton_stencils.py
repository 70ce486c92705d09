# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch.autograd import gradcheck

from monai_reg_ext.networks.blocks import GaussNewtonStencils
from monai_reg_ext.networks.layers.warp import identity_grid

SIZES = [(17, 22), (16, 9), (14, 13, 19), (8, 12, 5)]


def along_axes(values, taps):
    """One filter per spatial axis, constant beyond the border."""
    for axis, weights in enumerate(taps, start=2):
        values = correlate1d(values, weights, axis, mode="nearest")
    return values


KEPT = {1: (slice(None), slice(None)), 2: (slice(1, None, 2), slice(None)), 4: (slice(0, None, 2), slice(1, None, 2))}


def by_hand(values, first, grid_spacing):
    """Filters of every voxel, of which some remain, around every second for example; then filters of these."""
    axes = values.ndim - 2
    for taps, kept in zip((first, [(0.25, 0.5, 0.25)] * axes), KEPT[grid_spacing], strict=True):
        # the last point may lie one beyond the last voxel
        behind = 1 if kept.start == 1 else 0
        values = np.pad(values, [(0, 0), (0, 0), *[(0, behind)] * axes], mode="edge")
        values = along_axes(values, taps)[(..., *[kept] * axes)]
    return torch.from_numpy(values.copy())


@pytest.mark.parametrize("grid_spacing", [1, 2, 4])
@pytest.mark.parametrize("size", SIZES)
def test_they_begin_as_the_conventional_kernels(size, grid_spacing):
    axes = len(size)
    fixed, warped = torch.randn(2, 2, 3, *size, dtype=torch.float64)

    slopes, difference = GaussNewtonStencils(3, axes, grid_spacing).double()(fixed, warped)

    smooth, derivative = [(0.25, 0.5, 0.25)] * axes, (-0.5, 0.0, 0.5)
    assert difference.shape == (2, 3, *(-(-extent // grid_spacing) for extent in size))
    torch.testing.assert_close(difference, by_hand((warped - fixed).numpy(), smooth, grid_spacing))
    for axis, slope in enumerate(slopes):
        first = [*smooth[:axis], derivative, *smooth[axis + 1 :]]
        torch.testing.assert_close(slope, by_hand(warped.numpy(), first, grid_spacing))


@pytest.mark.parametrize(("grid_spacing", "behind"), [(1, 0.0), (2, 0.5), (4, 0.5)])
def test_they_look_at_most_half_a_voxel_behind_the_control_points(grid_spacing, behind):
    size = (24, 20, 28)
    places = identity_grid(size, torch.zeros(1))  # as features: a ramp along each axis

    slopes, difference = GaussNewtonStencils(3, 3, grid_spacing)(torch.zeros_like(places), places)

    inner = (..., *[slice(2, -2) if grid_spacing < 4 else slice(1, -1)] * 3)
    control_points = grid_spacing * identity_grid(difference.shape[2:], places) + (grid_spacing - 1) / 2
    torch.testing.assert_close(difference[inner], control_points[inner] + behind)
    for axis, slope in enumerate(slopes):
        expected = torch.eye(3)[axis].view(1, 3, 1, 1, 1).expand_as(slope)
        torch.testing.assert_close(slope[inner], expected[inner])


@pytest.mark.parametrize(("axes", "share"), [(2, 1 / 3), (3, 1.0)])
def test_compat_has_the_reference_s_gain_places_and_border(axes, share):
    size = (21, 18, 26)[:axes]
    places = identity_grid(size, torch.zeros(1))

    slopes, difference = GaussNewtonStencils(axes, axes, compat=True)(torch.zeros_like(places), places)

    inner = (..., *[slice(1, -1)] * axes)
    for axis, slope in enumerate(slopes):
        torch.testing.assert_close(slope[inner][:, axis], torch.full_like(slope[inner][:, axis], share))
    torch.testing.assert_close(difference[inner], (4 * identity_grid(difference.shape[2:], places))[inner])
    # of the three taps in front of a border of zeros, one sees nothing, twice
    one = torch.ones(1, axes, *size)
    _, constant = GaussNewtonStencils(axes, axes, compat=True)(torch.zeros_like(one), one)
    at_corner = (0.75 * 0.5 + 0.25) ** axes
    assert constant[(0, 0, *[0] * axes)].item() == pytest.approx(at_corner)


@pytest.mark.parametrize(("axes", "weights"), [(2, 63), (3, 243)])
def test_each_channel_has_as_many_weights_as_the_reference(axes, weights):
    for channels in (1, 5):
        parameters = GaussNewtonStencils(channels, axes).parameters()
        assert sum(parameter.numel() for parameter in parameters) == channels * weights


@pytest.mark.parametrize("size", [(17, 22), (9, 8, 11)])
def test_channels_do_not_mix(size):
    fixed, warped = torch.randn(2, 1, 3, *size)
    stencils = GaussNewtonStencils(3, len(size))
    for parameter in stencils.parameters():
        torch.nn.init.normal_(parameter)
    changed_fixed, changed_warped = fixed.clone(), warped.clone()
    changed_fixed[:, 1], changed_warped[:, 1] = 5.0, 7.0

    before, after = stencils(fixed, warped), stencils(changed_fixed, changed_warped)

    for one, other in zip([*before[0], before[1]], [*after[0], after[1]], strict=True):
        torch.testing.assert_close(one[:, [0, 2]], other[:, [0, 2]])
        assert not torch.isclose(one[:, 1], other[:, 1]).all()


@pytest.mark.parametrize(("grid_spacing", "compat"), [(1, False), (2, False), (4, False), (4, True)])
@pytest.mark.parametrize("size", [(17, 22), (9, 8, 11)])
def test_the_least_weight_is_that_of_all_that_is_read(size, grid_spacing, compat):
    stencils = GaussNewtonStencils(1, len(size), grid_spacing, compat)
    for parameter in stencils.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.0)  # nothing cancels
    nothing = torch.zeros(1, 1, *size)
    for voxel in [[4] * len(size), [0] * len(size), [extent - 1 for extent in size], [7, 3, 8][: len(size)]]:
        seen, weight = nothing.clone(), torch.ones_like(nothing)
        seen[(0, 0, *voxel)], weight[(0, 0, *voxel)] = 1.0, 0.25

        _, difference = stencils(nothing, seen)

        torch.testing.assert_close(stencils.least(weight), torch.where(difference == 0, 1.0, 0.25))


def test_their_gradients_are_right():
    fixed, warped = torch.randn(2, 1, 2, 6, 9, dtype=torch.float64)
    stencils = GaussNewtonStencils(2, 2).double()
    names, weights = zip(*stencils.named_parameters(), strict=True)

    def seen(fixed, warped, *weights):
        slopes, difference = torch.func.functional_call(
            stencils, dict(zip(names, weights, strict=True)), (fixed, warped)
        )
        return *slopes, difference

    assert gradcheck(seen, (fixed.requires_grad_(), warped.requires_grad_(), *weights))


def test_mixed_precision_leaves_differences_alone():
    fixed, warped = 100 + torch.randn(2, 1, 1, 9, 8, 11)
    stencils = GaussNewtonStencils()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, difference = stencils(fixed, warped)

    torch.testing.assert_close(difference, stencils(fixed, warped)[1])


def test_features_that_they_are_not_made_for_are_refused():
    fits = torch.zeros(1, 1, 9, 8, 11)

    for other in (torch.zeros(1, 2, 9, 8, 11), torch.zeros(1, 1, 9, 8)):
        with pytest.raises(ValueError, match="stencils for 1 channels on 3 axes need"):
            GaussNewtonStencils(1, 3)(other, other)
    with pytest.raises(ValueError, match="on one grid"):
        GaussNewtonStencils(1, 3)(fits, fits[..., :-1])


@pytest.mark.parametrize("size", [(17, 22), (9, 8, 11)])
def test_whatever_they_have_learned_what_both_have_everywhere_is_neither_slope_nor_difference(size):
    fixed, warped = torch.randn(2, 1, 2, *size, dtype=torch.float64)
    stencils = GaussNewtonStencils(2, len(size)).double()
    for parameter in stencils.parameters():
        torch.nn.init.normal_(parameter)

    seen, shifted = stencils(fixed, warped), stencils(fixed + 50, warped + 50)

    for one, other in zip([*seen[0], seen[1]], [*shifted[0], shifted[1]], strict=True):
        torch.testing.assert_close(other, one)
    _, apart = stencils(fixed, warped + 50)
    assert (apart - seen[1]).abs().min() > 1
