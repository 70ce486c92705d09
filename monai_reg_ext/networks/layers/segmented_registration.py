# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import NamedTuple

import torch

from monai_reg_ext.networks.layers.displacement_distribution import DisplacementDistribution
from monai_reg_ext.networks.layers.planar_distribution import PlanarDistribution

__all__ = ["SegmentedRegistration"]


class SegmentedRegistration(NamedTuple):
    """What a registration network found, and what its features say of the classes of both images.

    registration: the network's own output.
    classes: ``(B, 2, C, i, j, k)`` logits on a grid of cells, moving first.
    spacing: voxels per cell along each axis.
    """

    registration: torch.Tensor | DisplacementDistribution | PlanarDistribution
    classes: torch.Tensor
    spacing: tuple[int, int, int]

    def float(self) -> SegmentedRegistration:
        """The same in float32, as a tensor's ``float()``."""
        return self._replace(registration=self.registration.float(), classes=self.classes.float())
