# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch

from monai_reg_ext.networks.kernels.runtime import compiled_twin

__all__ = ["CostVolume"]


class CostVolume(ABC):
    """Cost of every displacement at every control point, handed out in chunks of displacements.

    ``for start, cost in volume`` gives ``cost (B, l, i, j, k)`` of the displacements ``labels[start : start + l]``, in
    order and without gradients; the next chunk may overwrite it. :py:meth:`pull_back` is the way back. A search needs
    one chunk at a time, so that a volume need never exist as a whole.

    Args:
        labels: ``(L, 3)`` displacements in cells; their dtype (float32 or float64) and device are those of the costs.
        batch: number of items ``B``.
        size: control points along each axis, ``(i, j, k)``.
        inputs: the tensors from which the costs are made, in the order of :py:meth:`pull_back`'s gradients.
        memory: bytes that may be spent on keeping chunks. What fits is computed once, at the first iteration, the rest
            anew at each.
        half: keep the chunks in float16. Costs are rounded to 11 binary digits.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        batch: int,
        size: Sequence[int],
        inputs: Sequence[torch.Tensor],
        memory: int = 0,
        half: bool = False,
    ) -> None:
        self.labels = labels
        self.batch = batch
        self.size = tuple(size)
        self.inputs = tuple(inputs)
        self._kept_dtype = torch.float16 if half else labels.dtype
        self._memory_left = memory
        self._kept: dict[int, torch.Tensor] = {}

    @property
    def _values_per_label(self) -> int:
        return self.batch * math.prod(self.size)

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        # a displacement at least for each thread
        least = torch.get_num_threads() if self.labels.device.type == "cpu" else 1
        step = max(least, _chunk_bytes(self.labels) // (self._values_per_label * self.labels.element_size()))
        for start in range(0, len(self.labels), step):
            yield start, self._chunk(start, min(start + step, len(self.labels)))

    @torch.no_grad()
    def _chunk(self, start: int, stop: int) -> torch.Tensor:
        if start not in self._kept:
            bytes_to_keep = (stop - start) * self._values_per_label * self._kept_dtype.itemsize
            if bytes_to_keep > self._memory_left:
                return self.compute(start, stop, passing=True)
            self._memory_left -= bytes_to_keep
            passing = self._kept_dtype != self.labels.dtype
            self._kept[start] = self.compute(start, stop, passing).to(self._kept_dtype)
        return self._kept[start].to(self.labels.dtype)

    @abstractmethod
    def compute(self, start: int, stop: int, passing: bool) -> torch.Tensor:
        """``(B, stop - start, i, j, k)`` costs of the displacements ``labels[start:stop]``.

        Passing ones may take memory that the next call overwrites.
        """

    @abstractmethod
    def pull_back(self, chunk_gradient: Callable[[int, torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Gradient with respect to :py:attr:`inputs`, in one iteration over the chunks.

        Args:
            chunk_gradient: ``(start, cost) -> gradient`` with respect to that chunk, shaped as ``cost``; the returned
                tensor may be overwritten.

        Returns:
            One tensor per input, with the input's shape and dtype.
        """


def _chunk_bytes(labels: torch.Tensor) -> int:
    # torch on a processor wants the chunk in its cache; compiled kernels, with blocks of their own, and an accelerator
    # want few calls
    if labels.device.type == "cpu" and compiled_twin("coupled_convex", labels) is None:
        return 4 << 20
    return 32 << 20
