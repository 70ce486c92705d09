# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.blocks import AdamRefiner, CoupledConvexEstimator, MindSSC
from monai_reg_ext.networks.nets import RegistrationNet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_the_convex_stage_gives_the_same_field_on_cuda_and_cpu():
    net = RegistrationNet(MindSSC(), CoupledConvexEstimator(grid_spacing=3, half_width=2))
    image = torch.rand(2, 2, 24, 26, 28)

    # a tie of two displacements may go either way
    different = (net.cuda()(image.cuda()).cpu() - net.cpu()(image)).abs() > 1e-3
    assert different.float().mean() < 0.01


def test_the_whole_registration_runs_on_cuda_and_stays_there():
    net = RegistrationNet(MindSSC(), CoupledConvexEstimator(3, 2), AdamRefiner(iterations=5), passes=2).cuda()

    ddf = net(torch.rand(1, 2, 24, 26, 28, device="cuda"))

    assert ddf.device.type == "cuda"
    assert ddf.isfinite().all()


def test_masks_and_both_fields_work_on_cuda():
    net = RegistrationNet(MindSSC(), CoupledConvexEstimator(3, 2), AdamRefiner(iterations=5), symmetric=True).cuda()
    masks = torch.ones(2, 1, 1, 24, 26, 28)
    masks[0, ..., :8] = masks[1, :, :, 19:] = 0

    fields = net(torch.rand(1, 2, 24, 26, 28, device="cuda"), *masks.cuda())

    assert fields.device.type == "cuda"
    assert fields.shape == (1, 6, 24, 26, 28)
    assert fields.isfinite().all()
