# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks import FlowNetEstimator, MeanFieldEstimator, ObeliskFeatures, ProbabilityRefiner
from monai_reg_ext.networks.nets import RegistrationNet, SegmentationTraining

SIZE = (21, 16, 26)
WINDOW = {"grid_spacing": (2, 3, 4), "points": (5, 4, 6), "labels": 3, "reach": 2}


def drawn_pair():
    return torch.rand(1, 2, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("estimator", "refiner", "probabilistic"),
    [
        (FlowNetEstimator, None, False),
        (MeanFieldEstimator, None, True),
        (MeanFieldEstimator, ProbabilityRefiner, False),
    ],
)
def test_it_gives_what_the_network_gives_and_classes_of_both_images(estimator, refiner, probabilistic):
    torch.manual_seed(0)
    refiner = None if refiner is None else refiner(iterations=2)
    net = RegistrationNet(ObeliskFeatures(4), estimator(**WINDOW), refiner, probabilistic_training=probabilistic)
    training = SegmentationTraining(net, 4, 3).train()
    image = drawn_pair()

    found, classes, spacing = training(image)

    expected = net(image)
    if probabilistic:
        found, expected = found.mean(), expected.mean()
    torch.testing.assert_close(found, expected)
    assert spacing == (2, 3, 4)
    # both sides in the order of the channels
    for side in range(2):
        (features,) = net.features.pooled(image[:, side : side + 1], [spacing])
        torch.testing.assert_close(classes[:, side], training.classes(features), atol=1e-4, rtol=1e-4)


def test_in_evaluation_it_is_the_network():
    net = RegistrationNet(ObeliskFeatures(4), MeanFieldEstimator(**WINDOW), probabilistic_training=True)
    training = SegmentationTraining(net, 4, 3).eval()

    torch.testing.assert_close(training(drawn_pair()), net(drawn_pair()), atol=0, rtol=0)


def test_several_passes_are_refused():
    net = RegistrationNet(ObeliskFeatures(4), MeanFieldEstimator(**WINDOW), passes=2)

    with pytest.raises(ValueError, match="one pass"):
        SegmentationTraining(net, 4, 3)
