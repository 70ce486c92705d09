# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.autograd import grad, gradcheck

from monai_reg_ext.networks.kernels import runtime
from monai_reg_ext.networks.layers.offset_differences import offset_differences

# a volume of one plane, one cell along an axis
SIZES = [((9, 7, 12), (4, 3, 5)), ((1, 8, 6), (3, 1, 2)), ((5, 1, 1), (2, 2, 3))]


def drawn(size, cells, pairs=4, dtype=torch.float32):
    """A volume, and places of which some lie outside."""
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(2, 3, *size, generator=generator, dtype=dtype)
    places = [
        torch.rand(2, pairs, number, generator=generator, dtype=dtype) * (extent + 2) - 1.5
        for extent, number in zip(size, cells, strict=True)
    ]
    return volume, places


@pytest.mark.parametrize(("size", "cells"), SIZES)
@pytest.mark.parametrize("form", ["compiled", "plain"])
def test_scipy_sees_the_same(size, cells, form, compiled, plain):
    volume, places = drawn(size, cells)

    found = {"compiled": compiled, "plain": plain}[form](lambda: offset_differences(volume, places))

    for pair in range(4):
        grids = [torch.meshgrid(*(place[side, pair] for place in places), indexing="ij") for side in (0, 1)]
        for item in range(2):
            for channel in range(3):
                first, second = (
                    torch.from_numpy(
                        map_coordinates(
                            volume[item, channel].double().numpy(),
                            torch.stack(grid).double().numpy(),
                            order=1,
                            mode="grid-constant",
                        )
                    )
                    for grid in grids
                )
                seen = found[item, channel * 4 + pair].double()
                torch.testing.assert_close(seen, first - second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "cells"), SIZES)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_compiled_differences_and_gradients_are_the_plain_ones(size, cells, threads, compiled, plain):
    compiled(lambda: runtime._load("offset_differences"))
    volume, places = drawn(size, cells)
    inputs = volume.requires_grad_(), *(place.requires_grad_() for place in places)
    slopes = torch.randn(2, 12, *cells, generator=torch.Generator().manual_seed(1))

    def found():
        differences = offset_differences(volume, places)
        return differences, *grad(differences, inputs, slopes)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        both = compiled(found), plain(found)
    finally:
        torch.set_num_threads(before)

    for one, other in zip(*both, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_gradients_are_those_of_finite_differences():
    volume, places = drawn((5, 4, 6), (2, 3, 2), pairs=2, dtype=torch.float64)

    inputs = [tensor.requires_grad_() for tensor in (volume, *places)]
    assert gradcheck(lambda volume, *places: offset_differences(volume, places), inputs)


def test_half_precision_stays_and_is_sampled_in_float32(compiled):
    volume, places = drawn((9, 7, 12), (4, 3, 5))

    found = compiled(lambda: offset_differences(volume.bfloat16(), places))

    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), offset_differences(volume.bfloat16().float(), places), atol=0, rtol=8e-3)
