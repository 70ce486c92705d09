# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["graph_laplacian", "laplacian_eigenvalues"]


def graph_laplacian(field: torch.Tensor, weights: Sequence[float] | None = None) -> torch.Tensor:
    r"""How much every cell differs from its neighbours: :math:`(Lu)_i = \sum_a w_a \sum_j (u_i - u_j)`.

    Cells beyond a face do not exist (natural border): constants have Laplacian 0. The matrix is symmetric and positive
    semidefinite; :math:`u^T L u` is the weighted sum of the squared differences of all neighbours.

    Args:
        field: ``(B, C, *size)``, any number of axes; every channel by itself.
        weights: one for each axis *a*, 1 by default.

    Returns:
        The same shape and dtype, with gradients.

    Raises:
        ValueError: when there is not one weight for each axis.
    """
    laplacian = torch.zeros_like(field)
    for dim, weight in enumerate(axis_weights(weights, field.dim() - 2), start=2):
        difference = weight * field.diff(dim=dim)
        laplacian.narrow(dim, 1, difference.shape[dim]).add_(difference)
        laplacian.narrow(dim, 0, difference.shape[dim]).sub_(difference)
    return laplacian


def laplacian_eigenvalues(
    size: Sequence[int], like: torch.Tensor, weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Eigenvalues of the graph Laplacian, ``(*size)``; its eigenvectors are those of :py:func:`cosine_transform`."""
    total = like.new_zeros(())
    for extent, weight in zip(size, axis_weights(weights, len(size)), strict=True):
        frequency = torch.arange(extent, device=like.device, dtype=like.dtype) * (torch.pi / extent)
        total = total.unsqueeze(-1) + weight * (2 - 2 * frequency.cos())
    return total


def axis_weights(weights: Sequence[float] | None, axes: int) -> tuple[float, ...]:
    weights = (1.0,) * axes if weights is None else tuple(weights)
    if len(weights) != axes or not all(weight > 0 for weight in weights):
        raise ValueError(f"a Laplacian over {axes} axes needs a weight > 0 for each of them, got {weights}.")
    return weights
