# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedTrainer

from monai_reg_ext.engines import prepare_keypoint_batch
from monai_reg_ext.losses import KeypointLoss

SIZE = (3, 5, 4)
AFFINE = torch.diag(torch.tensor([2.0, 0.5, 3.0, 1.0], dtype=torch.float64))


class Network(torch.nn.Module):
    """Says the same of all points, and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(3))

    def forward(self, image, moving_mask=None, fixed_mask=None, fixed_points=None, initial_ddf=None):
        self.given = {"fixed_points": fixed_points, "fixed_mask": fixed_mask, "initial_ddf": initial_ddf}
        return self.shift.expand(len(image), 2, fixed_points.shape[1], 3)


@pytest.fixture
def pair():
    keypoints = torch.rand(2, 6, 3)
    keypoints[0] = keypoints[1] + torch.tensor([1.0, 0, 0])
    return {
        "image": torch.rand(2, *SIZE),
        "fixed_mask_working": torch.ones(1, *SIZE),
        "keypoints": MetaTensor(keypoints, affine=AFFINE),
    }


@pytest.mark.parametrize("started", [False, True])
def test_a_trainer_hands_keypoints_to_the_network_and_to_the_loss_with_their_affine(pair, started):
    if started:
        pair["initial_ddf"] = torch.rand(3, *SIZE)
    network, losses = Network(), []
    loss = KeypointLoss("mm")

    def noted(pred, target):
        losses.append(loss(pred, target))
        return losses[-1]

    SupervisedTrainer(
        torch.device("cpu"), 1, DataLoader([pair, pair], batch_size=2), network,
        torch.optim.SGD(network.parameters(), 0.1), noted, prepare_batch=prepare_keypoint_batch,
    ).run()  # fmt: skip

    assert losses[0].item() == pytest.approx(2.0, rel=1e-5)
    torch.testing.assert_close(
        network.given["fixed_points"].as_subclass(torch.Tensor), pair["keypoints"].as_subclass(torch.Tensor)[[1, 1]]
    )
    assert (network.given["initial_ddf"] is not None) == started
    assert network.given["fixed_mask"].shape == (2, 1, *SIZE)


def test_a_label_is_what_the_loss_compares_with(pair):
    batch = {key: value[None] for key, value in pair.items()} | {"label": torch.rand(1, 2, *SIZE)}

    _, target, _, named = prepare_keypoint_batch(batch)

    assert torch.equal(target, batch["label"])
    assert set(named) == {"fixed_mask", "fixed_points"}


def test_a_batch_without_keypoints_is_refused(pair):
    del pair["keypoints"]

    with pytest.raises(KeyError, match="keypoints"):
        prepare_keypoint_batch({key: value[None] for key, value in pair.items()})
