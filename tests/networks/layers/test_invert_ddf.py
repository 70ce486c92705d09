# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.invert_ddf import invert_ddf

SIZE = (16, 22, 18)


def linear_field(matrix, size=SIZE):
    """Displacement ``matrix @ y - y`` of y, the voxel counted from the middle of the grid."""
    centred = np.moveaxis(np.indices(size), 0, -1) - (np.array(size) - 1) / 2
    return torch.from_numpy(np.moveaxis(centred @ (matrix - np.eye(3)).T, -1, 0)).float()[None]


def test_a_linear_field_is_inverted_as_its_matrix(interior):
    matrix = np.eye(3) + np.array([[0.1, -0.1, 0.05], [0.1, -0.15, 0], [0, 0.1, 0.2]])

    inverse = invert_ddf(linear_field(matrix))

    expected = linear_field(np.linalg.inv(matrix))
    torch.testing.assert_close(interior(inverse, 5), interior(expected, 5), rtol=0, atol=1e-4)


def test_the_inverse_undoes_a_smooth_field_from_both_sides(smooth_field, interior):
    ddf = smooth_field(SIZE, 2.0)

    inverse = invert_ddf(ddf)

    # a fixed point has no residual on this side; on the other, linear interpolation of the inverse stands between
    assert compose_ddf(ddf, inverse).abs().max() < 1e-4
    assert interior(compose_ddf(inverse, ddf), 2).abs().max() < 0.1
    assert ddf.abs().max() > 1.9


def test_the_residual_shrinks_with_every_step(smooth_field):
    ddf = smooth_field(SIZE, 2.0)

    residuals = [compose_ddf(ddf, invert_ddf(ddf, steps)).abs().mean() for steps in (0, 1, 2, 4, 8)]

    assert all(after < 0.8 * before for before, after in pairwise(residuals))


def test_a_translation_is_inverted_in_every_voxel():
    ddf = torch.tensor([[1.5, -2, 0.25], [0, 3, -1]]).view(2, 3, 1, 1, 1).expand(2, 3, 5, 6, 7)

    torch.testing.assert_close(invert_ddf(ddf), -ddf)
