# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks.mind_ssc import MindSSC


@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (0, 1), (2, 1), (3, 3)])
@pytest.mark.parametrize("size", [(13, 17, 19), (3, 2, 9), (8, 30, 5)])
@pytest.mark.parametrize("spacings", [[(1, 1, 1)], [(6, 6, 6), (2, 2, 2)], [(3, 2, 4), (2, 5, 3), (1, 7, 1)]])
def test_the_compiled_descriptors_are_the_plain_ones(texture, radius, dilation, size, spacings, compiled, plain):
    image = torch.cat([texture(size, 1.0, seed) for seed in range(2)])
    # a part without texture needs the floor of the variance, a strong spot its ceiling
    image[0, :, : size[0] // 2] = 0
    image[1] *= 1e-3
    image[1, 0, 0, 0, 0] = 1e4
    mind = MindSSC(radius, dilation)

    fast, slow = (run(lambda: mind.pooled(image, spacings)) for run in (compiled, plain))

    for grid, expected in zip(fast, slow, strict=True):
        torch.testing.assert_close(grid, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("compat", [False, True])
def test_the_compiled_form_keeps_both_meanings_of_compat(texture, compat, compiled, plain):
    image = torch.cat([texture((13, 11, 9)), 100 * texture((13, 11, 9), seed=1)])
    image[0, :, 5:] = 0
    mind = MindSSC(compat=compat)

    fast, slow = (run(lambda: mind.pooled(image, [(4, 3, 2)], compat=not compat)) for run in (compiled, plain))

    torch.testing.assert_close(fast[0], slow[0], rtol=0, atol=5e-6)


def test_a_constant_image_gives_ones(compiled):
    assert torch.equal(compiled(lambda: MindSSC()(torch.full((1, 1, 5, 6, 7), 3.0))), torch.ones(1, 12, 5, 6, 7))


def test_what_is_not_a_number_stays_visible(texture, compiled):
    image = texture((9, 8, 7))
    image[0, 0, 4, 4, 4] = torch.nan

    assert compiled(lambda: MindSSC()(image)).isnan().any()
