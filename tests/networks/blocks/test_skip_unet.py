# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.blocks.skip_unet import SkipUNet

SMALL = {"encoder": (4, 6), "decoder": (6, 5), "remaining": (5, 3)}


def weights(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_it_has_as_many_weights_as_the_published_networks():
    voxelmorph_pp = {"encoder": (32, 48, 48, 64), "decoder": (64, 48, 48, 48), "remaining": (48, 32, 64)}

    assert weights(SkipUNet(45, 13)) == 254_493
    assert weights(SkipUNet(2, **voxelmorph_pp, half=True)) == 901_888


@pytest.mark.parametrize(("padding", "in_numpy"), [("replicate", "edge"), ("constant", "constant")])
@pytest.mark.parametrize("half", [False, True])
def test_a_grid_that_cannot_be_halved_is_continued_and_what_was_added_taken_off(padding, in_numpy, half):
    network = SkipUNet(2, 7, **SMALL, half=half, padding=padding)
    volume = torch.rand(1, 2, 9, 8, 6)
    # 3, 0 and 2 cells are missing, of which an even number comes before
    ends = [(0, 0), (0, 0), (0, 3), (0, 0), (0, 2)]
    continued = torch.from_numpy(np.pad(volume.numpy(), ends, mode=in_numpy))

    found, whole = network(volume), network(continued)

    expected = whole[:, :, :5, :4, :3] if half else whole[:, :, :9, :8, :6]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)


def test_cells_are_added_on_both_sides_an_even_number_before():
    network = SkipUNet(1, 2, (3, 3, 3), (3, 3, 3), (3, 3), half=True)
    # 5 cells are missing: 2 before, 3 behind
    volume = torch.rand(1, 1, 11, 8, 8)
    before, behind = volume[:, :, :1].repeat(1, 1, 2, 1, 1), volume[:, :, -1:].repeat(1, 1, 3, 1, 1)
    continued = torch.cat([before, volume, behind], 2)

    torch.testing.assert_close(network(volume), network(continued)[:, :, 1:7])


def test_stages_normalise_each_instance_by_itself():
    network, volumes = SkipUNet(2, 3, **SMALL), torch.rand(2, 2, 8, 6, 12)

    both = network(volumes)

    torch.testing.assert_close(both[1:], network(volumes[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", [{"pool": "max"}, {"upsampling": "nearest"}])
def test_the_way_down_and_up_may_be_another(way):
    torch.manual_seed(1)
    one = SkipUNet(2, 3, **SMALL)
    other = SkipUNet(2, 3, **SMALL, **way)
    other.load_state_dict(one.state_dict())
    volume = torch.rand(1, 2, 8, 6, 12)

    assert (one(volume) - other(volume)).abs().max() > 1e-3


def test_a_grid_of_which_one_cell_is_left_is_refused():
    network = SkipUNet(2, 3, **SMALL)

    assert network(torch.rand(1, 2, 5, 1, 3)).shape == (1, 3, 5, 1, 3)
    with pytest.raises(ValueError, match=r"an axis of more than 4 cells, got \(4, 3, 4\)"):
        network(torch.rand(1, 2, 4, 3, 4))


@pytest.mark.parametrize("half", [False, True])
def test_bfloat16_gives_and_learns_what_float32_does_but_for_its_digits(half):
    torch.manual_seed(0)
    network, volume = SkipUNet(2, 7, **SMALL, half=half), torch.rand(1, 2, 17, 20, 12)
    expected = network(volume)
    weight = torch.randn(expected.shape)

    def slopes(result):
        return torch.cat([one.flatten() for one in torch.autograd.grad((weight * result).sum(), network.parameters())])

    with torch.autocast("cpu", torch.bfloat16):
        found = network(volume)

    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).std() < 0.1 * expected.std()
    assert torch.cosine_similarity(slopes(found.float()), slopes(expected), 0) > 0.8


def test_bfloat16_takes_the_mean_of_cells_where_channels_lie_side_by_side():
    from monai_reg_ext.networks.blocks.skip_unet import _mean_of_cells

    volume = torch.rand(2, 5, 4, 6, 8)
    there = volume.bfloat16().contiguous(memory_format=torch.channels_last_3d)

    torch.testing.assert_close(
        _mean_of_cells(there, 2).float(), torch.nn.functional.avg_pool3d(volume, 2), rtol=0, atol=4e-3
    )
