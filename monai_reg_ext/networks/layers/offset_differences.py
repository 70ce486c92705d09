# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from monai_reg_ext.networks.kernels.runtime import compiled_twin

__all__ = ["offset_differences"]


def offset_differences(volume: torch.Tensor, places: Sequence[torch.Tensor]) -> torch.Tensor:
    """Differences between what a volume shows at the first and at the second place of some pairs, on a grid of cells.

    Args:
        volume: ``(B, C, I, J, K)``; between voxels linear, outside 0.
        places: for each axis ``(2, pairs, cells)`` where the cells' first and second places lie, in voxels of the
            volume.

    Returns:
        ``(B, C * pairs, i, j, k)``, pairs fastest, of the volume's type; gradients to volume and places.

    Source: Heinrich, Oktay & Bouteldja, "OBELISK-Net: Fewer layers to solve 3D multi-organ segmentation with sparse
    deformable convolutions", Medical Image Analysis 2019, section 2.
    """
    precise = volume.to(places[0].dtype)
    if compiled_twin("offset_differences", *(tensor.detach() for tensor in (precise, *places))) is not None:
        return _Compiled.apply(precise, *places).to(volume.dtype)
    batch, pairs, cells = len(volume), places[0].shape[1], places[0].shape[2]
    along = [
        (2 * place + 1) / extent - 1 for place, extent in zip(places, volume.shape[2:], strict=True)
    ]  # align_corners=False
    i, j, k = (place.unflatten(2, [-1 if axis == dim else 1 for dim in range(3)]) for axis, place in enumerate(along))
    grid = torch.stack(torch.broadcast_tensors(k, j, i), -1).flatten(1, 2)
    # grid_sample is parallel over its batch only, on a CPU
    ends = F.grid_sample(precise.repeat(2, 1, 1, 1, 1), grid.repeat_interleave(batch, 0), align_corners=False)
    ends = ends.to(volume.dtype)
    return (ends[:batch] - ends[batch:]).unflatten(2, (pairs, cells)).flatten(1, 2)


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, volume: torch.Tensor, *places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(volume, *places)
        return compiled_twin("offset_differences", volume, *places).offset_differences(volume, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        volume, *places = ctx.saved_tensors
        twin = compiled_twin("offset_differences", volume, *places)
        return twin.offset_differences_gradient(volume, places, gradient)
