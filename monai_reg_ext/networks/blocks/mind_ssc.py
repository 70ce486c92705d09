# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["MindSSC"]

# The twelve edges of the octahedron of six neighbours, in the channel order of the reference.
_EDGES = (
    ((1, 0, 0), (0, -1, 0)),
    ((0, 1, 0), (-1, 0, 0)),
    ((0, -1, 0), (-1, 0, 0)),
    ((0, 1, 0), (1, 0, 0)),
    ((0, -1, 0), (0, 0, -1)),
    ((0, 1, 0), (0, 0, 1)),
    ((0, 0, -1), (-1, 0, 0)),
    ((1, 0, 0), (0, 0, 1)),
    ((0, 1, 0), (0, 0, -1)),
    ((0, 0, 1), (0, -1, 0)),
    ((1, 0, 0), (0, 0, -1)),
    ((0, 0, 1), (-1, 0, 0)),
)


class MindSSC(nn.Module):
    r"""Modality independent neighbourhood descriptor with self-similarity context.

    Compares the twelve pairs of adjacent patches around a voxel, so that it depends neither on an image's scale and
    offset nor on the sign of its contrast: :math:`\exp(-(D_c - \min D) / V)`, with :math:`D_c` the mean squared
    difference of two patches and *V* the mean of the numerator over the channels. *V* is kept above a thousandth of
    its mean over the image, which quietens air. A constant image gives ones.

    Args:
        radius: half-width of a patch, in voxels.
        dilation: distance of the patch centres from the voxel, in voxels. Offsets count voxels, not mm: resample
            strongly anisotropic images first.
        compat: take the mean of *V* over the batch, as the reference does; by default every image has its own.

    Shape:
        - input: ``(B, 1, I, J, K)``.
        - output: ``(B, 12, I, J, K)`` float32, values in (0, 1].

    Raises:
        ValueError: when the input has not exactly one channel, or ``radius`` < 0 or ``dilation`` < 1.

    Source: Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using
    self-similarities", MICCAI 2013, section 2.
    """

    def __init__(self, radius: int = 1, dilation: int = 2, compat: bool = False) -> None:
        super().__init__()
        if radius < 0 or dilation < 1:
            raise ValueError(f"MindSSC needs radius >= 0 and dilation >= 1, got radius={radius}, dilation={dilation}.")
        self.radius = radius
        self.dilation = dilation
        self.compat = compat

    @property
    def channels(self) -> int:
        return len(_EDGES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.dim() != 5 or image.shape[1] != 1:
            raise ValueError(f"MindSSC needs images of shape (B, 1, I, J, K), got {tuple(image.shape)}.")
        distance = self._patch_distances(image.to(torch.float32))
        distance -= distance.min(1, keepdim=True).values
        variance = distance.mean(1, keepdim=True)
        mean_variance = variance.mean() if self.compat else variance.mean((1, 2, 3, 4), keepdim=True)
        floor = (0.001 * mean_variance).clamp(min=torch.finfo(torch.float32).tiny)
        variance = torch.minimum(torch.maximum(variance, floor), 1000 * mean_variance + floor)
        return distance.div_(variance).neg_().exp_()

    def _patch_distances(self, image: torch.Tensor) -> torch.Tensor:
        padded = F.pad(image, [self.dilation] * 6, mode="replicate")
        distances = image.new_empty((image.shape[0], len(_EDGES), *image.shape[2:]))
        for channel, (first, second) in enumerate(_EDGES):
            difference = self._neighbour(padded, first) - self._neighbour(padded, second)
            distances[:, channel] = self._patch_mean(difference.square_())[:, 0]
        return distances

    def _neighbour(self, padded: torch.Tensor, direction: tuple[int, int, int]) -> torch.Tensor:
        for dim, step in enumerate(direction, start=2):
            extent = padded.shape[dim] - 2 * self.dilation
            padded = padded.narrow(dim, self.dilation * (1 + step), extent)
        return padded

    def _patch_mean(self, volume: torch.Tensor) -> torch.Tensor:
        if self.radius == 0:
            return volume
        volume = F.pad(volume, [self.radius] * 6, mode="replicate")
        for dim in (2, 3, 4):
            extent = volume.shape[dim] - 2 * self.radius
            total = volume.narrow(dim, 0, extent).clone()
            for shift in range(1, 2 * self.radius + 1):
                total += volume.narrow(dim, shift, extent)
            volume = total
        return volume.div_((2 * self.radius + 1) ** 3)
