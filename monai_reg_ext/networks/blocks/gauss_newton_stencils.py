# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import nn

__all__ = ["GaussNewtonStencils"]

_BINOMIAL, _DERIVATIVE, _REFERENCE_BOX = (0.25, 0.5, 0.25), (-0.5, 0.0, 0.5), 1 / 27
# what lies before and behind for each of two convolutions: the second one, centred on every second cell, takes back
# what the first one, centred on the first voxel of two, has moved
_PADDINGS = (1, 1), (0, 2)
_REFERENCE_PADDINGS = (1, 1), (1, 1)


class GaussNewtonStencils(nn.Module):
    """Slopes and differences of features at control points four voxels apart, by stencils that are learned.

    For the slope along each axis, and for the difference, two convolutions of three taps per axis and stride 2, without
    bias and with nothing between them; each channel has its own. They begin as the conventional kernels: slopes are
    half the difference of the neighbours on both sides, differences just that; both are smoothed by 1/4, 1/2, 1/4
    along all other axes, then along all. The border repeats.

    Stencils of three taps cannot lie in the middle of four voxels: theirs is half a voxel behind the control point.

    Args:
        channels: of the features.
        axes: spatial axes of the features, two or three.
        compat: the reference's: zeros beyond the border, stencils around the first voxel of the four, and slopes
            whose second convolution begins as 1/27 everywhere: on two axes a third of the slopes that there are.

    Shape:
        - fixed, warped: ``(B, channels, *size)``.
        - output: a slope for each axis, per voxel, and the difference ``warped - fixed``, each ``(B, channels,
          *cells)``, ``ceil(size / 4)`` cells, in the type of the weights.

    Raises:
        ValueError: for features with other channels or axes.

    Source: Heinrich, "Learning registration models with differentiable Gauss-Newton optimisation", MIDL 2022.
    """

    def __init__(self, channels: int = 1, axes: int = 3, compat: bool = False) -> None:
        super().__init__()
        smooth = [_BINOMIAL] * axes
        mean = torch.full([3] * axes, _REFERENCE_BOX) if compat else _kernel(smooth)
        self.channels = channels
        self.axes = axes
        self.paddings = _REFERENCE_PADDINGS if compat else _PADDINGS
        self.padding_mode = "constant" if compat else "replicate"
        self.slopes = nn.ModuleList()
        for axis in range(axes):
            steep = _kernel([*smooth[:axis], _DERIVATIVE, *smooth[axis + 1 :]])
            self.slopes.append(_stencil(channels, [steep], mean))
        self.difference = _stencil(channels, [-_kernel(smooth), _kernel(smooth)], _kernel(smooth))

    def forward(self, fixed: torch.Tensor, warped: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        fits = fixed.shape == warped.shape and fixed.dim() == self.axes + 2 and fixed.shape[1] == self.channels
        if not fits:
            raise ValueError(
                f"stencils for {self.channels} channels on {self.axes} axes need two such features on one grid, got "
                f"{tuple(fixed.shape)} and {tuple(warped.shape)}. Set channels and axes to those of the features."
            )
        dtype = self.difference[0].weight.dtype
        with torch.autocast(fixed.device.type, enabled=False):
            fixed, warped = fixed.to(dtype), warped.to(dtype)
            # fixed and warped of a channel stand side by side
            pairs = torch.stack([fixed, warped], 2).flatten(1, 2)
            slopes = [self._apply_stencil(slope, warped) for slope in self.slopes]
            return slopes, self._apply_stencil(self.difference, pairs)

    def least(self, weight: torch.Tensor) -> torch.Tensor:
        """The least weight ``(B, 1, *cells)`` of all voxels that a control point's stencils read, ``(B, 1, *size)``."""
        pool = F.max_pool2d if self.axes == 2 else F.max_pool3d
        for padding in self.paddings:
            weight = -pool(F.pad(-weight, padding * self.axes, mode="replicate"), 3, stride=2)
        return weight

    def _apply_stencil(self, stencil: Iterable[nn.Module], values: torch.Tensor) -> torch.Tensor:
        for convolution, padding in zip(stencil, self.paddings, strict=True):
            values = convolution(F.pad(values, padding * self.axes, mode=self.padding_mode))
        return values


def _kernel(taps: Sequence[Sequence[float]]) -> torch.Tensor:
    """The product of taps along every axis."""
    kernel = torch.ones(())
    for along_axis in taps:
        kernel = kernel.unsqueeze(-1) * torch.tensor(along_axis)
    return kernel


def _stencil(channels: int, first: Sequence[torch.Tensor], second: torch.Tensor) -> nn.Sequential:
    """Two convolutions for every channel by itself, the first one of as many inputs as it has kernels."""
    convolution = Conv[Conv.CONV, second.dim()]
    layers = [
        convolution(len(kernels) * channels, channels, 3, stride=2, groups=channels, bias=False)
        for kernels in (first, [second])
    ]
    with torch.no_grad():
        for layer, kernels in zip(layers, (first, [second]), strict=True):
            layer.weight.copy_(torch.stack(list(kernels)))
    return nn.Sequential(*layers)
