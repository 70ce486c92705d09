# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from monai_reg_ext.networks.layers.cosine_transform import cosine_transform
from monai_reg_ext.networks.layers.graph_laplacian import graph_laplacian, laplacian_eigenvalues

SIZES = [(7,), (4, 6), (3, 4, 5), (1, 4, 3)]
WEIGHTS = (1.0, 0.25, 3.0)


def assembled(size, weights):
    """Degree minus adjacency, edge by edge."""
    cells = np.arange(np.prod(size)).reshape(size)
    matrix = np.zeros((cells.size, cells.size))
    for axis, weight in zip(range(len(size)), weights, strict=False):
        one, other = (np.take(cells, range(*part), axis).ravel() for part in ((1, size[axis]), (0, size[axis] - 1)))
        for i, j in zip(one, other, strict=True):
            matrix[i, i] += weight
            matrix[j, j] += weight
            matrix[i, j] -= weight
            matrix[j, i] -= weight
    return torch.from_numpy(matrix)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_product_with_degree_minus_adjacency(size):
    field = torch.randn(2, 3, *size, dtype=torch.float64)

    laplacian = graph_laplacian(field, WEIGHTS[: len(size)])

    expected = field.flatten(2) @ assembled(size, WEIGHTS)
    torch.testing.assert_close(laplacian.flatten(2), expected)


@pytest.mark.parametrize("size", SIZES)
def test_constants_have_none_and_nothing_has_less(size):
    field = torch.randn(2, 3, *size, dtype=torch.float64)

    assert graph_laplacian(torch.full_like(field, 5.0)).abs().max() == 0
    roughness = (field * graph_laplacian(field)).sum()
    squares = sum(field.diff(dim=dim).square().sum() for dim in range(2, field.dim()))
    torch.testing.assert_close(roughness, squares)


@pytest.mark.parametrize("size", SIZES)
def test_cosines_are_its_eigenvectors(size):
    weights = WEIGHTS[: len(size)]
    field = torch.randn(2, 3, *size, dtype=torch.float64)

    waves = cosine_transform(graph_laplacian(field, weights))

    torch.testing.assert_close(waves, laplacian_eigenvalues(size, field, weights) * cosine_transform(field))


@pytest.mark.parametrize("size", SIZES)
def test_the_cosine_transform_keeps_lengths_and_is_undone(size):
    field = torch.randn(2, 3, *size, dtype=torch.float64)

    waves = cosine_transform(field)

    torch.testing.assert_close(waves.norm(), field.norm())
    torch.testing.assert_close(cosine_transform(waves, inverse=True), field)


def test_its_gradient_is_right():
    field = torch.randn(1, 2, 3, 4, 2, dtype=torch.float64, requires_grad=True)

    assert gradcheck(lambda u: graph_laplacian(u, WEIGHTS), field)


@pytest.mark.parametrize("weights", [(1, 1), (1, 0, 1), (1, float("nan"), 1)])
def test_every_axis_needs_a_weight(weights):
    with pytest.raises(ValueError, match="a weight > 0 for each"):
        graph_laplacian(torch.zeros(1, 3, 4, 3, 5), weights)
