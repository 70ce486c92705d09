# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

__all__ = ["apply_in_box", "box_above_minimum"]


def apply_in_box(
    network: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    box: tuple[slice, slice, slice] = (slice(None), slice(None), slice(None)),
    divisor: int = 1,
) -> torch.Tensor:
    """What a network makes of a part of images, whose extents need not suit it.

    Args:
        network: ``(B, C, i, j, k) -> (B, F, i, j, k)`` for extents that are multiples of ``divisor``.
        image: ``(B, C, I, J, K)``.
        box: the part; by default everything.
        divisor: the part is padded with its border up to it, and what is added is taken off again.

    Returns:
        ``(B, F, i, j, k)`` for a box of ``(i, j, k)`` voxels.
    """
    seen = image[(..., *box)]
    size = seen.shape[2:]
    missing = [-extent % divisor for extent in size]
    padded = F.pad(seen, [pad for extent in reversed(missing) for pad in (0, extent)], mode="replicate")
    return network(padded)[:, :, : size[0], : size[1], : size[2]]


def box_above_minimum(image: torch.Tensor) -> tuple[slice, slice, slice]:
    """The smallest box with all that is above an image's minimum; everything if nothing is.

    Args:
        image: ``(1, C, I, J, K)``.
    """
    above = (image > image.min()).any(1)[0]
    if not above.any():
        return slice(None), slice(None), slice(None)
    return tuple(
        slice(int(found.min()), int(found.max()) + 1)
        for axis in range(3)
        for found in [above.any(dim=tuple({0, 1, 2} - {axis})).nonzero()]
    )
