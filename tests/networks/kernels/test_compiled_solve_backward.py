# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.jacobian import jacobian_determinant
from monai_reg_ext.networks.layers.solve_backward import solve_backward
from monai_reg_ext.networks.layers.warp import identity_grid, sample


def targets_of(size, seed=0):
    """Every voxel, between voxels and beyond the border."""
    generator = torch.Generator().manual_seed(seed)
    voxels = identity_grid(size, torch.zeros(1))[0].flatten(1).T
    return 1.3 * voxels - 2 + torch.rand(voxels.shape, generator=generator)


def moved(ddf, points):
    return points + sample(ddf[None], points.T.reshape(1, 3, -1, 1, 1))[0].reshape(3, -1).T


@pytest.mark.parametrize("size", [(19, 23, 17), (2, 31, 5)])
@pytest.mark.parametrize("magnitude", [0.0, 1.5, 3.0])
def test_the_compiled_solution_is_the_plain_one(smooth_field, size, magnitude, compiled, plain):
    ddf = smooth_field(size, magnitude)[0]
    assert min(size) < 3 or jacobian_determinant(ddf[None]).min() > 0.1
    targets = targets_of(size)

    (fast, fast_left), (slow, slow_left) = (
        run(lambda: solve_backward(ddf, targets, tolerance=1e-4)) for run in (compiled, plain)
    )

    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-3)
    assert max(fast_left.max(), slow_left.max()) < 1e-4


def test_the_distance_is_what_is_left_also_where_the_search_was_cut_short(smooth_field, compiled):
    ddf = smooth_field((13, 18, 11), 4.0, smoothness=2.0)[0]
    assert jacobian_determinant(ddf[None]).min() < 0
    targets = targets_of((13, 18, 11))

    points, distances = compiled(lambda: solve_backward(ddf, targets, iterations=3, tolerance=1e-4))

    torch.testing.assert_close(distances, (targets - moved(ddf, points)).norm(dim=1), rtol=0, atol=1e-4)
    assert distances.max() > 0.01


@pytest.mark.parametrize("layout", ["as rows", "as columns", "every second"])
def test_targets_may_lie_in_memory_in_any_way(smooth_field, layout, compiled):
    ddf = smooth_field((13, 18, 11), 1.5)[0].permute(0, 3, 1, 2)
    targets = targets_of(ddf.shape[1:])
    laid = {
        "as rows": targets,
        "as columns": targets.T.contiguous().T,
        "every second": torch.stack([targets, targets], 1)[:, 0],
    }[layout]

    points, distances = compiled(lambda: solve_backward(ddf, laid))

    assert torch.equal(points, compiled(lambda: solve_backward(ddf, targets.clone()))[0])
    assert distances.max() < 1e-3


def test_the_number_of_threads_changes_nothing(smooth_field, compiled):
    ddf = smooth_field((25, 33, 21), 3.0)[0]
    targets = targets_of((25, 33, 21))
    threads = torch.get_num_threads()
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append(compiled(lambda: solve_backward(ddf, targets)))
    torch.set_num_threads(threads)

    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_target_that_is_not_a_number_harms_no_other(smooth_field, compiled):
    ddf = smooth_field((9, 12, 7), 1.5)[0]
    targets = targets_of((9, 12, 7))
    expected, _ = compiled(lambda: solve_backward(ddf, targets, tolerance=1e-4))
    bad = targets.clone()
    bad[100] = torch.nan

    points, _ = compiled(lambda: solve_backward(ddf, bad, tolerance=1e-4))

    others = torch.arange(len(targets)) != 100
    torch.testing.assert_close(points[others], expected[others], rtol=0, atol=1e-3)
    assert points[100].isnan().all()


def test_five_newton_steps_are_enough_where_nothing_folds(smooth_field, compiled):
    # a wrong derivative still arrives, but slowly; the order keeps neighbours from helping
    ddf = smooth_field((19, 23, 17), 3.0)[0]
    assert jacobian_determinant(ddf[None]).min() > 0.1
    voxels = identity_grid((19, 23, 17), ddf)[0].flatten(1).T
    targets = moved(ddf, voxels)[torch.randperm(voxels.shape[0])]

    _, distances = compiled(lambda: solve_backward(ddf, targets, iterations=5))

    assert distances.max() < 1e-3 + 1e-5
