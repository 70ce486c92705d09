# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.networks.blocks.adam_refiner import AdamRefiner
from monai_reg_ext.networks.blocks.coupled_convex_estimator import CoupledConvexEstimator
from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.warp import warp
from monai_reg_ext.networks.nets.registration_net import RegistrationNet
from monai_reg_ext.transforms import FillOutsideMask

SIZE = (36, 30, 42)
# an organ off the centre, that slides along its surroundings by as much as they slide back
CORNER, EXTENT, SHIFT = (9, 7, 14), (19, 17, 21), (4, -3, 2)


def convex_adam(iterations=20, **settings):
    refiner = AdamRefiner(2, iterations) if iterations else None
    return RegistrationNet(MindSSC(), CoupledConvexEstimator(3, 2), refiner, **settings)


def box(corner, extent=EXTENT, size=SIZE):
    mask = torch.zeros(1, 1, *size)
    mask[(..., *(slice(c, c + e) for c, e in zip(corner, extent, strict=True)))] = 1
    return mask


def shifted(image, shift):
    """``shifted(image, shift)(x) = image(x - shift)``."""
    return image.roll(shift, (2, 3, 4))


@pytest.fixture(scope="module")
def sliding_pair(texture):
    """Moving and fixed image and their masks: inside ``fixed(x) = moving(x + d)``, outside with ``-d``."""
    organ, surroundings = texture(SIZE, seed=0), texture(SIZE, seed=1)
    fixed_mask = box(CORNER)
    moving_mask = shifted(fixed_mask, SHIFT)
    fixed = torch.where(fixed_mask > 0, organ, surroundings)
    moving = torch.where(moving_mask > 0, shifted(organ, SHIFT), shifted(surroundings, [-s for s in SHIFT]))
    return moving, fixed, moving_mask, fixed_mask


@pytest.fixture(scope="module")
def pair(texture):
    return torch.cat([texture(SIZE, seed=2), texture(SIZE, seed=3)], 1)


class Masked(torch.nn.Module):
    """Stands in for an estimator or a refiner: adds half a cell to the field and remembers the masks."""

    def __init__(self, grid_spacing):
        super().__init__()
        self.grid_spacing, self.masks = grid_spacing, []

    def spacing(self, size):
        return self.grid_spacing

    def forward(self, fixed, moving, coarse_ddf=0.0, fixed_mask=None, moving_mask=None):
        self.masks.append((fixed_mask, moving_mask))
        return coarse_ddf + 0.5 * torch.ones_like(fixed[:, :1]).expand(-1, 3, -1, -1, -1)


class Unmasked(Masked):
    def forward(self, fixed, moving, coarse_ddf=0.0):
        return super().forward(fixed, moving, coarse_ddf)


def filled(image, mask):
    return FillOutsideMask()(MetaTensor(image[0]), mask[0])[None]


def errors_inside(ddf, mask, shift=SHIFT):
    """Distances from the true shift at the voxels inside."""
    return (ddf - torch.tensor(shift).view(1, 3, 1, 1, 1)).norm(dim=1, keepdim=True)[mask > 0]


def test_the_search_finds_the_nearest_cells_up_to_the_border_of_an_organ_that_slides(sliding_pair):
    moving, fixed, moving_mask, fixed_mask = sliding_pair
    net = convex_adam(0)

    ddf = net.register(filled(moving, moving_mask), filled(fixed, fixed_mask), moving_mask, fixed_mask)

    # 4/3, -1 and 2/3 cells of 3 voxels
    assert errors_inside(ddf, fixed_mask, (3, -3, 3)).max() < 1e-3
    assert errors_inside(net.register(moving, fixed), fixed_mask, (3, -3, 3)).mean() > 3


def test_an_organ_that_slides_is_followed_up_to_its_border_with_masks_and_not_without(sliding_pair):
    moving, fixed, moving_mask, fixed_mask = sliding_pair
    net = convex_adam(60)

    ddf = net.register(filled(moving, moving_mask), filled(fixed, fixed_mask), moving_mask, fixed_mask)

    errors = errors_inside(ddf, fixed_mask)
    assert errors.max() < 0.4
    assert errors.mean() < 0.15
    assert errors_inside(net.register(moving, fixed), fixed_mask).mean() > 3


@pytest.mark.parametrize("iterations", [0, 5])
def test_masks_of_ones_change_nothing(pair, iterations):
    ones = torch.ones(1, 1, *SIZE)
    net = convex_adam(iterations, passes=2)

    torch.testing.assert_close(net(pair, ones, ones), net(pair), rtol=0, atol=1e-2 if iterations else 1e-6)


def test_intensities_outside_have_no_influence_once_they_are_filled(sliding_pair, texture):
    moving, fixed, moving_mask, fixed_mask = sliding_pair
    other = texture(SIZE, seed=7)

    def field(*images):
        masks = moving_mask, fixed_mask
        return convex_adam(5).register(*map(filled, images, masks), *masks)

    changed = [torch.where(mask > 0, image, other) for image, mask in ((moving, moving_mask), (fixed, fixed_mask))]
    assert torch.equal(field(moving, fixed), field(*changed))


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("given", [(0,), (1,), (0, 1)])
def test_every_stage_gets_the_share_of_its_own_cells_that_lies_inside(pair, given, compat):
    masks = [box((1, 2, 3), (20, 11, 30)), box((8, 2, 5), (14, 25, 30))]
    moving_mask, fixed_mask = (mask if number in given else None for number, mask in enumerate(masks))
    estimator, refiner = Masked((5, 4, 6)), Masked((2, 3, 4))

    RegistrationNet(MindSSC(), estimator, refiner, compat=compat)(pair, moving_mask, fixed_mask)

    for stage in (estimator, refiner):
        for seen, mask in zip(stage.masks[0], (fixed_mask, moving_mask), strict=True):
            if mask is None:
                assert seen is None
            else:
                assert torch.equal(seen, pool_to_grid(mask, stage.grid_spacing, compat))


def test_later_passes_see_the_moving_mask_warped_so_far(pair):
    estimator = Masked((3, 2, 4))
    moving_mask, fixed_mask = box((1, 2, 3), (20, 11, 30)), box((8, 2, 5), (14, 25, 30))

    RegistrationNet(MindSSC(), estimator, passes=3)(pair, moving_mask, fixed_mask)

    ddf = torch.tensor([1.5, 1, 2]).view(1, 3, 1, 1, 1).expand(1, 3, *SIZE)
    for passes_before, (of_fixed, of_moving) in enumerate(estimator.masks):
        assert torch.equal(of_fixed, pool_to_grid(fixed_mask, (3, 2, 4)))
        assert torch.equal(of_moving, pool_to_grid(warp(moving_mask, passes_before * ddf, "nearest"), (3, 2, 4)))


def test_without_masks_a_stage_need_not_know_of_any(pair):
    net = RegistrationNet(MindSSC(), Unmasked((3, 2, 4)), Unmasked((2, 2, 2)))

    assert net(pair).shape == (1, 3, *SIZE)


@pytest.mark.parametrize("stages", [(Unmasked((3, 2, 4)),), (Masked((3, 2, 4)), Unmasked((2, 2, 2)))])
def test_masks_for_a_stage_that_does_not_take_them_are_refused(pair, stages):
    with pytest.raises(TypeError, match=r"Unmasked takes no masks: .* arguments fixed_mask and moving_mask"):
        RegistrationNet(MindSSC(), *stages)(pair, fixed_mask=torch.ones(1, 1, *SIZE))


@pytest.mark.parametrize("kind", [torch.Tensor.bool, torch.Tensor.short, lambda mask: MetaTensor(-3 * mask)])
def test_masks_may_be_of_any_type(pair, kind):
    masks = box((1, 2, 3), (20, 11, 30)), box((8, 2, 5), (14, 25, 30))

    assert torch.equal(convex_adam(3)(pair, *map(kind, masks)), convex_adam(3)(pair, *masks))


def test_masks_of_a_batch_belong_to_their_pairs(pair):
    batch = torch.cat([pair, pair.flip(1)])
    moving_mask = torch.cat([box((1, 2, 3), (20, 11, 30)), box((3, 3, 3), (18, 20, 25))])
    fixed_mask = torch.cat([box((8, 2, 5), (14, 25, 30)), torch.ones(1, 1, *SIZE)])
    net = convex_adam(0)

    ddf = net(batch, moving_mask, fixed_mask)

    for item in (slice(0, 1), slice(1, 2)):
        torch.testing.assert_close(ddf[item], net(batch[item], moving_mask[item], fixed_mask[item]))


@pytest.mark.parametrize("name", ["fixed_mask", "moving_mask"])
def test_a_mask_on_another_grid_is_refused(pair, name):
    with pytest.raises(ValueError, match=rf"{name} of shape \(1, 1, 36, 30, 42\), got \(1, 1, 36, 30, 41\)"):
        convex_adam()(pair, **{name: torch.ones(1, 1, 36, 30, 41)})


@pytest.mark.parametrize("name", ["fixed_mask", "moving_mask"])
def test_an_empty_mask_is_refused(pair, name):
    mask = torch.ones(2, 1, *SIZE)
    mask[1] = 0

    with pytest.raises(ValueError, match=f"{name} without any voxel inside"):
        convex_adam()(pair.expand(2, -1, -1, -1, -1), **{name: mask})
