# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""What runs on a GPU must not wait for it: on tensors without values, whoever asks the device for one is found out."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from monai_reg_ext.networks.blocks import (
    AdamRefiner,
    CoupledConvexEstimator,
    MeanFieldEstimator,
    MindSSC,
    ProbabilityRefiner,
)
from monai_reg_ext.networks.nets import RegistrationNet

SIZE = (24, 26, 28)


@pytest.fixture(autouse=True)
def _what_meta_tensors_lack(monkeypatch):
    plain_adam = torch.optim.Adam

    def adam(parameters, fused=False, **settings):
        return plain_adam(parameters, foreach=False, **settings)

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch.optim, "Adam", adam)


def _run(net: RegistrationNet) -> torch.Tensor:
    return net.to("meta")(torch.empty(1, 2, *SIZE, device="meta"))


@pytest.mark.parametrize(
    "parts",
    [
        (CoupledConvexEstimator(3, 2), AdamRefiner(iterations=5)),
        (CoupledConvexEstimator(3, 2, sharpness=10.0),),
        (MeanFieldEstimator(grid_spacing=4, labels=5), ProbabilityRefiner(iterations=3)),
    ],
    ids=["convex and Adam", "softmin", "mean field and its refiner"],
)
def test_registration_never_asks_the_device_for_a_value(parts):
    with torch.no_grad():
        ddf = _run(RegistrationNet(MindSSC(), *parts, passes=2))

    assert ddf.device.type == "meta"
    assert ddf.shape == (1, 3, *SIZE)


def test_nor_do_both_fields_of_a_symmetric_registration():
    net = RegistrationNet(MindSSC(), CoupledConvexEstimator(3, 2), AdamRefiner(iterations=5), symmetric=True)

    assert _run(net).shape == (1, 6, *SIZE)


def test_early_stopping_does_and_is_found_out():
    net = RegistrationNet(MindSSC(), CoupledConvexEstimator(3, 2), AdamRefiner(iterations=40, tolerance=1e-3))

    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        _run(net)
