# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from monai.data import MetaTensor

from monai_reg_ext.networks.blocks import MindSSC
from monai_reg_ext.transforms import MindSSCd


def test_descriptors_of_a_dictionary_item_are_the_blocks_and_stay_in_place():
    affine = torch.diag(torch.tensor([-2.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.rand(1, 7, 8, 9), affine=affine)

    out = MindSSCd("fixed", radius=2, dilation=1)({"fixed": image, "moving": image})

    torch.testing.assert_close(out["fixed"].as_tensor(), MindSSC(2, 1)(image.as_tensor()[None])[0])
    torch.testing.assert_close(out["fixed"].affine, affine)
    assert out["moving"] is image
