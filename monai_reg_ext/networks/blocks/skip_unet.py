# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from monai_reg_ext.networks.layers.pool_to_grid import grid_size

__all__ = ["SkipUNet"]


class SkipUNet(nn.Module):
    """VoxelMorph's U-Net with two convolutions per stage: one of 3x3x3, one of 1x1x1, both normalised per instance.

    Each encoder stage halves the grid, each decoder stage doubles it again and takes the encoder's result of that grid
    beside its own; the remaining stages work on the grid of the result.

    Args:
        in_channels: of the input.
        out_channels: of the result, by a last convolution without norm and activation; ``None`` gives the last stage's.
        encoder: channels of the stages on the way down.
        decoder: channels of the stages on the way up, as many.
        remaining: channels of the stages behind.
        half: leave out the last doubling, and what would stand beside it: the result has half as many cells.
        pool: ``"avg"`` or ``"max"`` of 2x2x2 cells.
        upsampling: ``"trilinear"`` or ``"nearest"``.
        padding: how the grid is continued up to a multiple of ``2 ** len(encoder)``, as
            :py:func:`torch.nn.functional.pad` names it; what is added is taken off again.

    Shape:
        - input: ``(B, in_channels, i, j, k)``.
        - output: ``(B, out_channels, i, j, k)``, with ``half`` ``ceil(i / 2)`` and so on: cell *n* is that of cells
          *2n* and *2n + 1*.

    Raises:
        ValueError: when so little is left at the bottom, a single cell, that it cannot be normalised.

    Source: Balakrishnan et al., "VoxelMorph: a learning framework for deformable medical image registration", IEEE TMI
    2019, in the form of Heinrich & Hansen, "Voxelmorph++", WBIR 2022.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        encoder: Sequence[int] = (16, 24, 24, 32),
        decoder: Sequence[int] = (32, 24, 24, 24),
        remaining: Sequence[int] = (24, 16, 32),
        half: bool = False,
        pool: str = "avg",
        upsampling: str = "trilinear",
        padding: str = "replicate",
    ) -> None:
        super().__init__()
        self.half = half
        self.pool = {"avg": _mean_of_cells, "max": F.max_pool3d}[pool]
        self.upsampling = upsampling
        self.padding = padding
        self.encoder, self.decoder, self.remaining = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = in_channels
        for width in encoder:
            self.encoder.append(_stage(channels, width))
            channels = width
        skips = [0 if half and number == 0 else width for number, width in enumerate(encoder)]
        for width, skip in zip(decoder, reversed(skips), strict=True):
            self.decoder.append(_stage(channels, width))
            channels = width + skip
        for width in remaining:
            self.remaining.append(_stage(channels, width))
            channels = width
        if out_channels is not None:
            self.remaining[-1][1] = nn.Conv3d(channels, out_channels, kernel_size=1)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        size, multiple = volume.shape[2:], 2 ** len(self.encoder)
        missing = [-extent % multiple for extent in size]
        if not self.works_on(size):
            raise ValueError(
                f"a U-Net that halves its grid {len(self.encoder)} times needs an axis of more than {multiple} cells, "
                f"got {tuple(size)}. Choose a finer grid or fewer stages."
            )
        # an even number before, so that cells of the coarser grid begin where those of the finer one do
        before = [number // 4 * 2 for number in missing]
        ends = [(first, number - first) for first, number in zip(before, missing, strict=True)]
        volume = F.pad(volume, [end for axis in reversed(ends) for end in axis], mode=self.padding)
        if torch.is_autocast_enabled("cpu"):
            # there convolutions are twice as fast when a cell's channels lie side by side
            volume = volume.contiguous(memory_format=torch.channels_last_3d)
        step = 2 if self.half else 1
        inner = [
            slice(first // step, first // step + cells)
            for first, cells in zip(before, grid_size(size, [step] * 3), strict=True)
        ]
        return self._on_even_grid(volume)[(..., *inner)]

    def works_on(self, size: Sequence[int]) -> bool:
        """Whether more than one cell is left at the bottom, so that there is something to normalise."""
        return any(extent > 2 ** len(self.encoder) for extent in size)

    def _on_even_grid(self, volume: torch.Tensor) -> torch.Tensor:
        beside = []
        for stage in self.encoder:
            volume = stage(volume)
            beside.append(volume)
            volume = self.pool(volume, 2)
        for number, stage in enumerate(self.decoder, start=1):
            volume = stage(volume)
            if not (self.half and number == len(self.decoder)):
                volume = F.interpolate(volume, scale_factor=2, mode=self.upsampling)
                volume = torch.cat([volume, beside.pop()], 1)
        for stage in self.remaining:
            volume = stage(volume)
        return volume


def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(_normalised(in_channels, out_channels, 3), _normalised(out_channels, out_channels, 1))


def _normalised(in_channels: int, out_channels: int, width: int) -> nn.Sequential:
    conv = nn.Conv3d(in_channels, out_channels, width, padding=width // 2)
    return nn.Sequential(OrderedDict(conv=conv, norm=_InstanceNorm(), act=nn.ReLU(inplace=True)))


class _InstanceNorm(nn.Module):
    """:py:class:`torch.nn.InstanceNorm3d`, but a single volume keeps its memory format in bfloat16.

    In float32 the kernel that does so is less exact.
    """

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        if len(volume) == 1 and volume.dtype == torch.bfloat16:
            return F.batch_norm(volume, None, None, training=True)
        return F.instance_norm(volume)


def _mean_of_cells(volume: torch.Tensor, width: int) -> torch.Tensor:
    """:py:func:`torch.nn.functional.avg_pool3d`, which CPUs do not know in bfloat16."""
    if not (volume.is_cpu and volume.dtype == torch.bfloat16):
        return F.avg_pool3d(volume, width)
    channels = volume.shape[1]
    weight = volume.new_full((channels, 1, width, width, width), width**-3)
    return F.conv3d(volume, weight, stride=width, groups=channels)
