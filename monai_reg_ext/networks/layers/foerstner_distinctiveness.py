# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch

from monai_reg_ext.networks.layers.separable_filter import gaussian_taps, separable_filter

__all__ = ["foerstner_distinctiveness"]

_SLOPE = (1 / 12, -8 / 12, 0.0, 8 / 12, -1 / 12)


def foerstner_distinctiveness(
    image: torch.Tensor, sigma: float = 1.4, spacing: Sequence[float] | None = None
) -> torch.Tensor:
    r"""How well a place can be found again: large at corners and branchings, 0 on edges and without contrast.

    :math:`S = 1 / \mathrm{tr}(T^{-1})`, with the structure tensor *T*, products of the image's slopes smoothed by a
    Gaussian: the inverse of the variance with which a displacement could be measured there.

    Args:
        image: ``(B, C, *size)``, two or three axes; the tensors of several channels are added.
        sigma: standard deviation of the Gaussian in voxels.
        spacing: size of a voxel along each axis; slopes are per voxel by default.

    Returns:
        ``(B, 1, *size)`` float32, or float64 with a float64 image; not negative, finite. Grows with the square of the
        contrast. Memory: seven volumes per channel in three dimensions.

    Raises:
        ValueError: for an image without two or three axes, or a spacing that is not positive along each of them.

    Source: Foerstner & Guelch, "A fast operator for detection and precise location of distinct points, corners and
    centres of circular features", 1987; slopes and smoothing as in Hansen & Heinrich, "GraphRegNet: Deep Graph
    Regularisation Networks on Sparse Keypoints for Dense Registration of 3D Lung CTs", 2021.
    """
    axes = image.dim() - 2
    spacing = (1.0,) * axes if spacing is None else tuple(spacing)
    if axes not in (2, 3) or len(spacing) != axes or not all(step > 0 for step in spacing):
        raise ValueError(
            "The distinctiveness needs an image (B, C, *size) of two or three axes and a spacing > 0 for each, got "
            f"shape {tuple(image.shape)} and spacing {spacing}."
        )
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    # a constant image has slopes of exactly 0 then, not the rounding of its value
    image = image - image.flatten(2)[..., :1].view(*image.shape[:2], *[1] * axes)
    slopes = [_slope(image, axis) / step for axis, step in enumerate(spacing)]
    return _inverse_of_inverse_trace(_structure_tensor(slopes, gaussian_taps(sigma)), axes)


def _slope(image: torch.Tensor, axis: int) -> torch.Tensor:
    return separable_filter(image, [_SLOPE if other == axis else None for other in range(image.dim() - 2)])


def _structure_tensor(slopes: list[torch.Tensor], taps: Sequence[float]) -> dict[tuple[int, int], torch.Tensor]:
    pairs = combinations_with_replacement(range(len(slopes)), 2)
    products = {(a, b): (slopes[a] * slopes[b]).sum(1, keepdim=True) for a, b in pairs}
    return {pair: separable_filter(product, [taps] * len(slopes)) for pair, product in products.items()}


def _inverse_of_inverse_trace(tensor: dict[tuple[int, int], torch.Tensor], axes: int) -> torch.Tensor:
    """``1 / tr(T^-1)`` by elimination: a determinant is but its own rounding error along an edge."""
    least = 8 * torch.finfo(tensor[0, 0].dtype).eps * sum(tensor[axis, axis] for axis in range(axes))
    regular = tensor[0, 0] > least
    pivot_0 = torch.where(regular, tensor[0, 0], 1)
    factor_1 = tensor[0, 1] / pivot_0
    pivot_1 = tensor[1, 1] - factor_1 * tensor[0, 1]
    regular = regular & (pivot_1 > least)
    pivot_1 = torch.where(regular, pivot_1, 1)
    inverse_trace = 1 / pivot_0 + (1 + factor_1.square()) / pivot_1
    if axes == 3:
        factor_2 = tensor[0, 2] / pivot_0
        rest = tensor[1, 2] - factor_2 * tensor[0, 1]
        factor_12 = rest / pivot_1
        pivot_2 = tensor[2, 2] - factor_2 * tensor[0, 2] - factor_12 * rest
        regular = regular & (pivot_2 > least)
        weight = 1 + factor_12.square() + (factor_1 * factor_12 - factor_2).square()
        inverse_trace = inverse_trace + weight / torch.where(regular, pivot_2, 1)
    return torch.where(regular, 1 / inverse_trace, 0)
