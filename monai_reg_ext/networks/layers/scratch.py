# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["Scratch"]


class Scratch:
    """The same memory again and again, for one chunk after the other.

    An allocator that gets it back in pieces would need more, and memory that comes from the system each time is slow.

    Args:
        like: tensor whose device and dtype the chunks share.
    """

    def __init__(self, like: torch.Tensor) -> None:
        self._memory = like.new_empty(0)

    def __call__(self, shape: Sequence[int]) -> torch.Tensor:
        """Contiguous tensor of any content, which the next call gives away anew."""
        if self._memory.numel() < math.prod(shape):
            self._memory = self._memory.new_empty(math.prod(shape))
        return self._memory[: math.prod(shape)].view(shape)
