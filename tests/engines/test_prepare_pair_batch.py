# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator

from monai_reg_ext.engines import prepare_pair_batch

SIZE = (3, 5, 4)


class Network(torch.nn.Module):
    """Stands in for a registration network and remembers what it was given."""

    def forward(self, image, moving_mask=None, fixed_mask=None):
        self.given = {"image": image, "moving_mask": moving_mask, "fixed_mask": fixed_mask}
        return image


@pytest.fixture
def pair():
    return {
        "image": torch.rand(2, *SIZE),
        "moving_mask_working": torch.rand(1, *SIZE),
        "fixed_mask_working": torch.rand(1, *SIZE),
    }


@pytest.mark.parametrize("absent", [(), ("fixed_mask",), ("moving_mask",), ("fixed_mask", "moving_mask")])
def test_the_network_of_an_evaluator_gets_the_masks_there_are(pair, absent):
    item = {key: value for key, value in pair.items() if key.removesuffix("_working") not in absent}
    network = Network()

    SupervisedEvaluator(
        torch.device("cpu"), DataLoader([item], batch_size=1), network, prepare_batch=prepare_pair_batch
    ).run()

    assert torch.equal(network.given["image"], pair["image"][None])
    for mask in ("fixed_mask", "moving_mask"):
        if mask in absent:
            assert network.given[mask] is None
        else:
            assert torch.equal(network.given[mask], pair[f"{mask}_working"][None])


def test_everything_goes_to_the_device_and_only_the_image_becomes_another_type(pair):
    batch = {key: value[None] for key, value in pair.items()}

    image, target, args, masks = prepare_pair_batch(batch, "meta", dtype=torch.float64)

    assert target is None
    assert args == ()
    assert {tensor.device.type for tensor in (image, *masks.values())} == {"meta"}
    assert image.dtype == torch.float64
    assert {mask.dtype for mask in masks.values()} == {torch.float32}


def test_a_label_is_the_target_of_the_loss_on_the_device(pair):
    batch = {key: value[None] for key, value in pair.items()} | {"label": torch.ones(1, 2, *SIZE, dtype=torch.int32)}

    _, target, _, masks = prepare_pair_batch(batch, "meta")

    assert (target.shape, target.dtype, target.device.type) == ((1, 2, *SIZE), torch.int32, "meta")
    assert masks.keys() == {"moving_mask", "fixed_mask"}
