# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.transforms import MapTransform

__all__ = ["SplitDirectionsD", "SplitDirectionsDict", "SplitDirectionsd"]

# parts behind the field itself, by the number of all channels
PARTS = {6: {"backward": 3}, 9: {"covariance": 6}, 12: {"backward": 3, "covariance": 6}}


class SplitDirectionsd(MapTransform):
    """Take apart what a network returns side by side: the field, that of the opposite direction, the covariance.

    ========  =========  ==================  ====================
    channels  ``<key>``  ``<key>_backward``  ``<key>_covariance``
    ========  =========  ==================  ====================
    3         all
    6         0 to 2     3 to 5
    9         0 to 2                         3 to 8
    12        0 to 2     3 to 5              6 to 11
    ========  =========  ==================  ====================

    Which of them a network returns say ``symmetric`` and ``uncertainty`` of
    :py:class:`monai_reg_ext.networks.nets.RegistrationNet`.
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            parts = PARTS.get(len(out[key]), {})
            if parts:
                out[key], *others = out[key].split([3, *parts.values()])
                out |= {f"{key}_{name}": part for name, part in zip(parts, others, strict=True)}
        return out


SplitDirectionsD = SplitDirectionsDict = SplitDirectionsd
