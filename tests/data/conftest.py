# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from monai_reg_ext.data import BreathingCarrier, BreathingPatient

SIZE = (26, 30, 23)
AFFINE = torch.eye(4, dtype=torch.float64)
AFFINE[:3, :3] = torch.diag(torch.tensor([3.0, 2.0, 4.0]))
AFFINE[:3, 3] = torch.tensor([-30.0, 12.0, 100.0])


@pytest.fixture
def linear_patient():
    """``linear_patient(matrix, shift)``: lungs in a box that moves linearly, in halves of its extent."""

    def make(matrix, shift=(0.0, 0.0, 0.0), name="linear", number=400):
        half, centre = torch.tensor([50.0, 40.0, 70.0]).double(), torch.tensor([90.0, 100.0, 80.0]).double()
        generator = torch.Generator().manual_seed(1)
        place = torch.rand(number, 3, generator=generator, dtype=torch.float64) * 2 - 1
        ends = place.quantile(torch.tensor([0.01, 0.99]).double(), dim=0)
        place = 2 * (place - ends[0]) / (ends[1] - ends[0]) - 1  # the box ends at -1 and 1
        moved = place + place @ torch.as_tensor(matrix).double().T + torch.as_tensor(shift).double()
        return BreathingPatient(name, centre + half * place, centre + half * moved)

    return make


@pytest.fixture
def lung_scan():
    """A smooth texture in an ellipsoid of lung in soft tissue: image and mask, their axes right, anterior, superior."""
    noise = np.random.default_rng(0).normal(size=SIZE)
    texture = torch.from_numpy(gaussian_filter(noise, 2.0)).float()
    index = torch.stack(torch.meshgrid(*[torch.linspace(-1.6, 1.6, extent) for extent in SIZE], indexing="ij"))
    mask = index.square().sum(0) < 1
    image = torch.where(mask, -800.0, 30.0) + 60 * texture / texture.std()
    image = torch.from_numpy(gaussian_filter(image.numpy(), 1.0))
    return MetaTensor(image[None], affine=AFFINE, meta={"filename_or_obj": "scan.nii.gz"}), MetaTensor(
        mask[None].to(torch.uint8), affine=AFFINE
    )


@pytest.fixture
def carrier(lung_scan):
    return BreathingCarrier(*lung_scan)
