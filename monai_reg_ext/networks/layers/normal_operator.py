# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_reg_ext.networks.kernels.runtime import compiled_twin
from monai_reg_ext.networks.layers.graph_laplacian import axis_weights, graph_laplacian
from monai_reg_ext.networks.layers.symmetric_matrix import matrices_of, symmetric_shape

__all__ = ["NormalOperator"]


class NormalOperator:
    r"""The matrix :math:`A = \text{blockdiag}(M_i) + \lambda L` of regularised normal equations, never assembled.

    Args:
        matrix: ``(B, E, *size)``, the symmetric matrix *M* of every cell: the ``n (n + 1) / 2`` entries of its upper
            triangle row by row, or its diagonal alone, ``n`` entries.
        components: *n*, those of the field.
        regularization: ``(B,)``, weight :math:`\lambda` of the graph Laplacian *L*; ``None``: without it.
        weights: of the Laplacian's axes, see :py:func:`graph_laplacian`.
    """

    def __init__(
        self,
        matrix: torch.Tensor,
        components: int,
        regularization: torch.Tensor | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.matrix = matrix
        self.components = components
        self.coupled = matrix.shape[1] > components
        self.regularization = regularization
        self.weights = axis_weights(weights, self.axes)
        self._twin = compiled_twin("normal_operator", matrix) if components == len(self.weights) == 3 else None
        self._blocks = matrices_of(matrix) if self.coupled and self._twin is None else matrix

    def __call__(self, field: torch.Tensor) -> torch.Tensor:
        """The product with a field ``(B, n, *size)``."""
        if self._twin is not None:
            return self._twin.normal_product(self.matrix, field, self.regularization, self.weights)
        product = (self._blocks * field.unsqueeze(1)).sum(2) if self.coupled else self._blocks * field
        if self.regularization is None:
            return product
        return product + self.per_cell(self.regularization) * graph_laplacian(field, self.weights)

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return self.matrix.dim() - 2

    @property
    def diagonal(self) -> list[int]:
        """Which entries of the matrices stand on the diagonal."""
        if not self.coupled:
            return list(range(self.components))
        shape = zip(*symmetric_shape(self.matrix.shape[1]), strict=True)
        return [entry for entry, (row, column) in enumerate(shape) if row == column]

    def per_cell(self, values: torch.Tensor) -> torch.Tensor:
        """One value for each system, such that it multiplies fields."""
        return values.view(-1, *[1] * (self.axes + 1))
