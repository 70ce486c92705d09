# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from monai_reg_ext.networks.blocks.feature_block import FeatureBlock, as_feature_block

__all__ = ["FeatureConcat"]


class FeatureConcat(FeatureBlock):
    """Several kinds of features of the same image side by side.

    Args:
        parts: feature modules; each sees the whole image.

    Shape:
        - input: ``(B, C, I, J, K)``.
        - output: ``(B, F, I, J, K)``, the parts' features one after the other.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(seen) for part, seen in zip(self.parts, self._seen(image), strict=True)], 1)

    def pooled(
        self, image: torch.Tensor, spacings: Sequence[Sequence[int]], compat: bool = False
    ) -> list[torch.Tensor]:
        return _side_by_side(
            as_feature_block(part).pooled(seen, spacings, compat)
            for part, seen in zip(self.parts, self._seen(image), strict=True)
        )

    def pooled_pair(
        self, fixed: torch.Tensor, moving: torch.Tensor, spacings: Sequence[Sequence[int]], compat: bool = False
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        seen = zip(self.parts, self._seen(fixed), self._seen(moving), strict=True)
        pairs = [as_feature_block(part).pooled_pair(*images, spacings, compat) for part, *images in seen]
        return _side_by_side(pair[0] for pair in pairs), _side_by_side(pair[1] for pair in pairs)

    def _seen(self, image: torch.Tensor) -> list[torch.Tensor]:
        """What each part sees of the image."""
        return [image] * len(self.parts)


def _side_by_side(of_parts: Iterable[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.cat(of_grid, 1) for of_grid in zip(*of_parts, strict=True)]
