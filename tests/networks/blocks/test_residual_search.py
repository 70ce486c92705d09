# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks import CoupledConvexEstimator, ResidualSearch
from monai_reg_ext.networks.layers.warp import warp

SIZE = (15, 13, 17)
INNER = (..., slice(4, -4), slice(4, -4), slice(4, -4))


def features(shift: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed features and moving ones that lie a shift further on."""
    generator = torch.Generator().manual_seed(0)
    fixed = 3 * torch.rand(1, 8, *SIZE, generator=generator)
    return fixed, fixed.roll(shift, (2, 3, 4))


def constant(shift: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(shift).view(1, 3, 1, 1, 1).expand(1, 3, *SIZE).contiguous()


def test_it_finds_what_the_first_field_has_left_over():
    fixed, moving = features((3, -2, 1))

    ddf = ResidualSearch(half_width=1)(fixed, moving, constant((2.0, -2.0, 2.0)))

    torch.testing.assert_close(ddf[INNER], constant((3.0, -2.0, 1.0))[INNER], atol=1e-4, rtol=0)


def test_each_round_goes_as_far_as_its_window():
    # ramps: every step towards the match brings the features closer
    fixed = torch.stack(torch.meshgrid(*(torch.arange(float(extent)) for extent in SIZE), indexing="ij"))[None]
    moving = fixed - torch.tensor([3.0, 0, 0]).view(1, 3, 1, 1, 1)

    one, two = (ResidualSearch(half_width=1, rounds=n)(fixed, moving, constant((1.0, 0, 0))) for n in (1, 2))

    # beside the border, where half of a neighbourhood has no match, the field may lag
    assert [field[INNER][:, 0].median().item() for field in (one, two)] == pytest.approx([2, 3], abs=0.01)


def test_one_round_is_the_search_for_the_warped_features_composed_with_the_field():
    fixed, moving = features((1, 1, 0))
    ddf = 0.3 * torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    fixed_mask, moving_mask = torch.ones(1, 1, *SIZE), torch.ones(1, 1, *SIZE)
    moving_mask[..., :3] = 0

    found = ResidualSearch(1, 2, inverse_consistency=3, sharpness=5.0)(fixed, moving, ddf, fixed_mask, moving_mask)

    search = CoupledConvexEstimator(1, 2, inverse_consistency=3, sharpness=5.0)
    residual = search(fixed, warp(moving, ddf), fixed_mask, warp(moving_mask, ddf))
    torch.testing.assert_close(found, residual + warp(ddf, residual))


def test_gradients_reach_the_features_and_the_first_field():
    fixed, moving = (value.requires_grad_() for value in features((1, 0, 0)))
    ddf = constant((0.5, 0, 0)).requires_grad_()

    ResidualSearch(sharpness=2.0)(fixed, moving, ddf).square().mean().backward()

    assert all(value.grad.abs().max() > 0 for value in (fixed, moving, ddf))
