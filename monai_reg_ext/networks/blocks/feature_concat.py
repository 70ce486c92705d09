# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["FeatureConcat"]


class FeatureConcat(nn.Module):
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
        return torch.cat([part(image) for part in self.parts], 1)
