# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from monai_reg_ext.networks.blocks.feature_block import FeatureBlock
from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.pool_to_grid import grid_size, pool_slabs, slabs

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
_NEIGHBOURS = sorted({neighbour for edge in _EDGES for neighbour in edge})


class MindSSC(FeatureBlock):
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
        - output: ``(B, 12, I, J, K)`` float32, values in (0, 1]. Memory: what is returned and a few slabs; several
          times the output where the image requires gradients.

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
        if not _in_graph(image):
            return self.pooled(image, [(1, 1, 1)])[0]
        return _mind_ssc(self._checked(image), self.radius, self.dilation, self.compat)

    def pooled(
        self, image: torch.Tensor, spacings: Sequence[Sequence[int]], compat: bool = False
    ) -> list[torch.Tensor]:
        """Averages of the descriptors over the cells of control grids; slab by slab, unless gradients are wanted."""
        if _in_graph(image):
            return super().pooled(image, spacings, compat)
        return _pooled_mind_ssc(self._checked(image), spacings, self.radius, self.dilation, self.compat, compat)

    def _checked(self, image: torch.Tensor) -> torch.Tensor:
        if image.dim() != 5 or image.shape[1] != 1:
            raise ValueError(f"MindSSC needs images of shape (B, 1, I, J, K), got {tuple(image.shape)}.")
        return image.to(torch.float32)


def _in_graph(image: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and image.requires_grad


def _mind_ssc(image: torch.Tensor, radius: int, dilation: int, batch_mean: bool) -> torch.Tensor:
    """Descriptors ``(B, 12, I, J, K)`` of an image ``(B, 1, I, J, K)``, differentiable."""
    excess = _excess_distances(image, 0, image.shape[2], radius, dilation)
    mean_variance = excess.mean() if batch_mean else excess.mean((1, 2, 3, 4), keepdim=True)
    return _descriptors(excess, mean_variance)


def _pooled_mind_ssc(
    image: torch.Tensor,
    spacings: Sequence[Sequence[int]],
    radius: int,
    dilation: int,
    batch_mean: bool,
    full_cells: bool,
) -> list[torch.Tensor]:
    """``pool_to_grid(_mind_ssc(image), spacing, full_cells)`` for every spacing, without any voxel's descriptor kept.

    The first pass over the slabs finds the mean variance, the second one needs it.
    """
    twin = compiled_twin("mind_ssc", image)
    if twin is not None:
        cells = [grid_size(image.shape[2:], spacing, full_cells) for spacing in spacings]
        return twin.pooled_mind_ssc(image, _EDGES, spacings, cells, radius, dilation, batch_mean)

    def excess(begin: int, end: int) -> torch.Tensor:
        return _excess_distances(image, begin, end, radius, dilation)

    sums = [excess(*slab).sum((1, 2, 3, 4), keepdim=True) for slab in slabs(image, len(_EDGES))]
    mean_variance = torch.stack(sums).sum(0, dtype=torch.float64) / (len(_EDGES) * image[0].numel())
    mean_variance = (mean_variance.mean() if batch_mean else mean_variance).float()
    return pool_slabs(
        lambda begin, end: _descriptors(excess(begin, end), mean_variance), image, len(_EDGES), spacings, full_cells
    )


def _excess_distances(image: torch.Tensor, begin: int, end: int, radius: int, dilation: int) -> torch.Tensor:
    """How much farther than the nearest pair each pair of patches is apart, ``(B, 12, end - begin, J, K)``.

    Sums of squares: their number cancels in the descriptors.
    """
    neighbours = _neighbours(image, begin, end, radius, dilation)
    distances = image.new_empty((image.shape[0], len(_EDGES), end - begin, *image.shape[3:]))
    least = torch.full_like(distances[:, :1], torch.inf)
    for channel, (first, second) in enumerate(_EDGES):
        distance = _patch_sum((neighbours[first] - neighbours[second]).square_(), radius)
        distances[:, channel : channel + 1] = distance
        least = torch.minimum(least, distance)
    return distances.sub_(least)


def _neighbours(
    image: torch.Tensor, begin: int, end: int, radius: int, dilation: int
) -> dict[tuple[int, int, int], torch.Tensor]:
    """Rows ``begin`` to ``end`` and ``radius`` more on every side of the image moved towards each neighbour.

    Beyond the faces the image counts as constant, and so do the differences of two neighbours.
    """
    rows = image.shape[2]
    inner_begin, inner_end = max(begin - radius, 0), min(end + radius, rows)
    outer_begin, outer_end = max(inner_begin - dilation, 0), min(inner_end + dilation, rows)
    missing = (dilation - inner_begin + outer_begin, dilation - outer_end + inner_end)
    padded = F.pad(image[:, :, outer_begin:outer_end], [*[dilation] * 4, *missing], mode="replicate")
    missing = (radius - begin + inner_begin, radius - inner_end + end)
    return {
        neighbour: F.pad(_moved(padded, neighbour, dilation), [*[radius] * 4, *missing], mode="replicate")
        for neighbour in _NEIGHBOURS
    }


def _moved(padded: torch.Tensor, neighbour: tuple[int, int, int], dilation: int) -> torch.Tensor:
    for dim, step in enumerate(neighbour, start=2):
        padded = padded.narrow(dim, dilation * (1 + step), padded.shape[dim] - 2 * dilation)
    return padded


def _patch_sum(volume: torch.Tensor, radius: int) -> torch.Tensor:
    for dim in (2, 3, 4) if radius else ():
        extent = volume.shape[dim] - 2 * radius
        total = volume.narrow(dim, 0, extent) + volume.narrow(dim, 1, extent)
        for shift in range(2, 2 * radius + 1):
            total += volume.narrow(dim, shift, extent)
        volume = total
    return volume


def _descriptors(excess: torch.Tensor, mean_variance: torch.Tensor) -> torch.Tensor:
    floor = (0.001 * mean_variance).clamp(min=torch.finfo(torch.float32).tiny)
    variance = excess.mean(1, keepdim=True)
    variance = torch.minimum(torch.maximum(variance, floor), 1000 * mean_variance + floor)
    return excess.div_(variance).neg_().exp_()
