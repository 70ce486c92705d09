# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.blocks.feature_block import as_feature_block
from monai_reg_ext.networks.blocks.feature_concat import FeatureConcat

__all__ = ["FeatureStack"]


class FeatureStack(FeatureConcat):
    """Several kinds of features side by side, each computed from its own channel of the image.

    Args:
        parts: feature modules; part *p* sees channel *p*, for example MIND-SSC of the scan and semantic features of its
            label map.

    Shape:
        - input: ``(B, len(parts), I, J, K)``.
        - output: ``(B, F, I, J, K)``, the parts' features one after the other.

    Raises:
        ValueError: when the image has not one channel per part.
    """

    def warped(self, image: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
        """Each channel moved by a ddf as its part needs it."""
        moved = zip(self.parts, self._seen(image), strict=True)
        return torch.cat([as_feature_block(part).warped(seen, ddf).to(image) for part, seen in moved], 1)

    def _seen(self, image: torch.Tensor) -> list[torch.Tensor]:
        if image.shape[1] != len(self.parts):
            raise ValueError(
                f"FeatureStack needs one channel for each of its {len(self.parts)} parts, got shape "
                f"{tuple(image.shape)}."
            )
        return list(image.split(1, 1))
