# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.linear_step import linear_step
from monai_reg_ext.networks.layers.warp import identity_grid

SIZE = (7, 9, 6)
IDENTITY = torch.eye(4, dtype=torch.float64)


def linear_features(matrix: torch.Tensor) -> torch.Tensor:
    """Features with constant gradients, looked at where ``matrix`` leads."""
    positions = identity_grid(SIZE, torch.zeros(1))[0].double()
    positions = torch.tensordot(matrix[:3, :3], positions, 1) + matrix[:3, 3].view(3, 1, 1, 1)
    gradients = torch.tensor([[1.0, 0.3, 0], [0, 2.0, 0.5], [0.1, 0, 1.5], [1.0, -1.0, 1.0]]).double()
    return torch.tensordot(gradients, positions, 1)[None].float()


def small(kind: str) -> torch.Tensor:
    generator = torch.zeros(4, 4, dtype=torch.float64)
    generator[:3, 3] = torch.tensor([2e-3, -1e-3, 3e-3])
    generator[:3, :3] = 1e-3 * torch.tensor([[0, -1.0, 0.5], [1.0, 0, 0.2], [-0.5, -0.2, 0]])
    if kind != "rigid":
        generator[:3, :3] += 1e-3 * torch.eye(3)
    if kind == "affine":
        generator[0, 1] += 2e-3
    return torch.linalg.matrix_exp(generator)


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
def test_one_step_takes_back_a_small_transform(kind):
    moved = linear_features(torch.linalg.inv(small(kind)))

    step = linear_step(linear_features(IDENTITY), moved, torch.ones(1, 1, *SIZE), kind)

    torch.testing.assert_close(step, small(kind), atol=1e-4, rtol=0)
    assert (step - IDENTITY).abs().max() > 2e-3


def test_a_rigid_step_is_rigid_and_a_similarity_has_one_scale():
    fixed, moved, weight = torch.rand(1, 4, *SIZE), torch.rand(1, 4, *SIZE), torch.rand(1, 1, *SIZE)

    rigid, similar = (linear_step(fixed, moved, weight, kind)[:3, :3] for kind in ("rigid", "similarity"))

    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(rigid @ rigid.T, eye)
    scale = (similar @ similar.T)[0, 0]
    torch.testing.assert_close(similar @ similar.T, scale * eye)
    assert (scale - 1).abs() > 1e-4


def test_the_step_solves_the_weighted_least_squares_problem_written_out():
    fixed, moved, weight = torch.rand(1, 4, *SIZE), torch.rand(1, 4, *SIZE), torch.rand(1, 1, *SIZE)
    difference = (moved - fixed)[0].double()
    energy = difference.square().sum(0)
    mean = (weight[0, 0] * energy).sum() / weight.sum()
    trust = (weight[0, 0] * (mean / (mean + energy)).square()).sqrt().flatten()
    gradient = torch.stack(torch.gradient(((fixed + moved) / 2)[0].double(), dim=(1, 2, 3)))
    centre = torch.tensor([(extent - 1) / 2 for extent in SIZE]).double()
    positions = (identity_grid(SIZE, fixed)[0].double() - centre.view(3, 1, 1, 1)) / 4.5
    positions = torch.cat([positions, torch.ones(1, *SIZE)]).flatten(1)
    design = torch.einsum("acn,pn,n->cnap", gradient.flatten(2), positions, trust).reshape(-1, 12)
    solution = torch.linalg.lstsq(design, -(trust * difference.flatten(1)).reshape(-1, 1)).solution.view(3, 4)
    generator = torch.zeros(4, 4, dtype=torch.float64)
    generator[:3, :3], generator[:3, 3] = solution[:, :3] / 4.5, solution[:, 3] - solution[:, :3] / 4.5 @ centre

    step = linear_step(fixed, moved, weight)

    torch.testing.assert_close(step, torch.linalg.matrix_exp(generator), atol=1e-4, rtol=1e-4)


def test_voxels_without_weight_do_not_matter():
    fixed, moved = linear_features(IDENTITY), linear_features(small("affine"))
    weight = torch.ones(1, 1, *SIZE)
    weight[..., :2] = 0
    spoilt = moved.clone()
    spoilt[..., 0] += 100  # gradients beside it have no weight either

    torch.testing.assert_close(linear_step(fixed, spoilt, weight), linear_step(fixed, moved, weight))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_equal_features_need_no_step(weight):
    features = torch.rand(1, 4, *SIZE)

    step = linear_step(features, features, torch.full((1, 1, *SIZE), weight))

    torch.testing.assert_close(step, IDENTITY)


def test_features_that_say_nothing_give_no_step():
    step = linear_step(torch.ones(1, 4, *SIZE), torch.zeros(1, 4, *SIZE), torch.ones(1, 1, *SIZE))

    torch.testing.assert_close(step, IDENTITY)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of"):
        linear_step(torch.rand(1, 4, *SIZE), torch.rand(1, 4, *SIZE), torch.ones(1, 1, *SIZE), "elastic")
