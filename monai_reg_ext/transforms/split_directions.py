# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.transforms import MapTransform

__all__ = ["SplitDirectionsD", "SplitDirectionsDict", "SplitDirectionsd"]


class SplitDirectionsd(MapTransform):
    """Take the two fields apart that a symmetric network returns side by side.

    Of ``(6, i, j, k)`` under ``<key>`` the first three channels, the field, stay there; the others, the field of the
    opposite direction, go to ``<key>_backward``. A field ``(3, i, j, k)`` passes unchanged.
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            if out[key].shape[0] == 6:
                out[key], out[f"{key}_backward"] = out[key].split(3)
        return out


SplitDirectionsD = SplitDirectionsDict = SplitDirectionsd
