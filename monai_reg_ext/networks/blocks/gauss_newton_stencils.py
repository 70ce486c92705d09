# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import nn

__all__ = ["GaussNewtonStencils"]

_BINOMIAL, _DERIVATIVE, _REFERENCE_BOX = (0.25, 0.5, 0.25), (-0.5, 0.0, 0.5), 1 / 27
# strides of two convolutions
_STRIDES = {1: (1, 1), 2: (2, 1), 4: (2, 2)}
# what lies before and behind for each: where both have strides, the second one, centred on every second cell, takes
# back what the first one, centred on the first voxel of two, has moved
_PADDINGS = {1: ((1, 1), (1, 1)), 2: ((0, 2), (1, 1)), 4: ((1, 1), (0, 2))}
_REFERENCE_PADDINGS = (1, 1), (1, 1)


class GaussNewtonStencils(nn.Module):
    """Slopes and differences of features at control points some voxels apart, by stencils that are learned.

    For the slope along each axis, and for the difference, two convolutions of three taps per axis, of stride 2 each
    where control points are four voxels apart, without bias and with nothing between them; each channel has its own.
    They begin as the conventional kernels: slopes are half the difference of the neighbours on both sides, differences
    just that; both are smoothed by 1/4, 1/2, 1/4 along all other axes, then along all. The border repeats. Whatever
    they learn, they see nothing where both features have one value everywhere: first convolutions take the mean off
    their weights.

    Stencils of three taps cannot lie in the middle of two or four voxels: theirs is half a voxel behind the control
    point.

    Args:
        channels: of the features.
        axes: spatial axes of the features, two or three.
        grid_spacing: voxels from one control point to the next, 1, 2 or 4, as in the reference.
        compat: the reference's: zeros beyond the border, stencils around the first voxel of the four, slopes whose
            second convolution begins as 1/27 everywhere, on two axes a third of the slopes that there are, and weights
            that are taken as they are.

    Shape:
        - fixed, warped: ``(B, channels, *size)``.
        - output: a slope for each axis, per voxel, and the difference ``warped - fixed``, each ``(B, channels,
          *cells)``, ``ceil(size / grid_spacing)`` cells, in the type of the weights.

    Raises:
        ValueError: for features with other channels or axes, another spacing.

    Source: Heinrich, "Learning registration models with differentiable Gauss-Newton optimisation", MIDL 2022.
    """

    def __init__(self, channels: int = 1, axes: int = 3, grid_spacing: int = 4, compat: bool = False) -> None:
        super().__init__()
        if grid_spacing not in _STRIDES or (compat and grid_spacing != 4):
            raise ValueError(f"stencils need a grid_spacing of 1, 2 or 4, with compat of 4, got {grid_spacing}.")
        smooth = [_BINOMIAL] * axes
        mean = torch.full([3] * axes, _REFERENCE_BOX) if compat else _kernel(smooth)
        self.channels = channels
        self.axes = axes
        self.strides = _STRIDES[grid_spacing]
        self.paddings = _REFERENCE_PADDINGS if compat else _PADDINGS[grid_spacing]
        self.compat = compat
        self._convolve = F.conv2d if axes == 2 else F.conv3d
        self.padding_mode = "constant" if compat else "replicate"
        self.slopes = nn.ModuleList()
        for axis in range(axes):
            steep = _kernel([*smooth[:axis], _DERIVATIVE, *smooth[axis + 1 :]])
            self.slopes.append(_stencil(channels, self.strides, [steep], mean))
        self.difference = _stencil(channels, self.strides, [-_kernel(smooth), _kernel(smooth)], _kernel(smooth))

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
        for stride, padding in zip(self.strides, self.paddings, strict=True):
            weight = -pool(F.pad(-weight, padding * self.axes, mode="replicate"), 3, stride)
        return weight

    def _apply_stencil(self, stencil: Sequence[nn.Module], values: torch.Tensor) -> torch.Tensor:
        for layer, (convolution, padding) in enumerate(zip(stencil, self.paddings, strict=True)):
            weight = convolution.weight
            if layer == 0 and not self.compat:
                weight = weight - weight.flatten(1).mean(1).view(-1, *[1] * (self.axes + 1))
            padded = F.pad(values, padding * self.axes, mode=self.padding_mode)
            values = self._convolve(padded, weight, stride=convolution.stride, groups=self.channels)
        return values


def _kernel(taps: Sequence[Sequence[float]]) -> torch.Tensor:
    """The product of taps along every axis."""
    kernel = torch.ones(())
    for along_axis in taps:
        kernel = kernel.unsqueeze(-1) * torch.tensor(along_axis)
    return kernel


def _stencil(
    channels: int, strides: Sequence[int], first: Sequence[torch.Tensor], second: torch.Tensor
) -> nn.Sequential:
    """Two convolutions for every channel by itself, the first one of as many inputs as it has kernels."""
    convolution = Conv[Conv.CONV, second.dim()]
    layers = [
        convolution(len(kernels) * channels, channels, 3, stride, groups=channels, bias=False)
        for stride, kernels in zip(strides, (first, [second]), strict=True)
    ]
    with torch.no_grad():
        for layer, kernels in zip(layers, (first, [second]), strict=True):
            layer.weight.copy_(torch.stack(list(kernels)))
    return nn.Sequential(*layers)
