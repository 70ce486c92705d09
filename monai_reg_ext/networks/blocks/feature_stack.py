# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["FeatureStack"]


class FeatureStack(nn.Module):
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

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(channel) for part, channel in self._channels(image)], 1)

    def pair(self, fixed: torch.Tensor, moving: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of both images; parts that must see both do."""
        pairs = [
            part.pair(of_fixed, of_moving) if hasattr(part, "pair") else (part(of_fixed), part(of_moving))
            for (part, of_fixed), (_, of_moving) in zip(self._channels(fixed), self._channels(moving), strict=True)
        ]
        return torch.cat([pair[0] for pair in pairs], 1), torch.cat([pair[1] for pair in pairs], 1)

    def _channels(self, image: torch.Tensor) -> list[tuple[nn.Module, torch.Tensor]]:
        if image.shape[1] != len(self.parts):
            raise ValueError(
                f"FeatureStack needs one channel for each of its {len(self.parts)} parts, got shape "
                f"{tuple(image.shape)}."
            )
        return [(part, image[:, channel : channel + 1]) for channel, part in enumerate(self.parts)]
