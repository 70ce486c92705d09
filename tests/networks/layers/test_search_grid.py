# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.networks.layers.search_grid import search_grid

LIKE = torch.zeros(1)


def test_points_lie_in_the_centres_of_equal_parts():
    # faces of 12 cells lie at -0.5 and 11.5: three parts of 4 cells, centres at 1.5, 5.5, 9.5; two of 3.5; one of 5
    grid = search_grid((12, 7, 5), (3, 2, 1), (1, 1, 1), (0, 0, 0), LIKE)

    torch.testing.assert_close(grid.points[0], torch.tensor([1.5, 5.5, 9.5]))
    torch.testing.assert_close(grid.points[1], torch.tensor([1.25, 4.75]))
    torch.testing.assert_close(grid.points[2], torch.tensor([2.0]))


def test_the_reference_puts_the_outermost_points_into_the_outermost_cells():
    grid = search_grid((12, 7, 5), (3, 4, 1), (1, 1, 1), (0, 0, 0), LIKE, compat=True)

    torch.testing.assert_close(grid.points[0], torch.tensor([0, 5.5, 11]))
    torch.testing.assert_close(grid.points[1], torch.tensor([0.0, 2, 4, 6]))
    torch.testing.assert_close(grid.points[2], torch.tensor([2.0]))


def test_displacements_reach_equally_far_to_both_sides_in_equal_steps():
    grid = search_grid((12, 7, 5), (1, 1, 1), (5, 2, 1), (3.0, 0.5, 4.0), LIKE)

    torch.testing.assert_close(grid.labels[0], torch.tensor([-3, -1.5, 0, 1.5, 3]))
    torch.testing.assert_close(grid.labels[1], torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(grid.labels[2], torch.tensor([0.0]))
    torch.testing.assert_close(grid.step, torch.tensor([1.5, 1.0, 1.0]))
    assert (grid.window, grid.size) == ((5, 2, 1), (1, 1, 1))


def test_the_displacement_along_the_last_axis_changes_fastest():
    grid = search_grid((12, 7, 5), (1, 1, 1), (3, 1, 2), (1.0, 0.0, 0.5), LIKE)

    expected = [[-1, 0, -0.5], [-1, 0, 0.5], [0, 0, -0.5], [0, 0, 0.5], [1, 0, -0.5], [1, 0, 0.5]]
    torch.testing.assert_close(grid.displacements, torch.tensor(expected))


def test_a_point_looks_at_itself_moved_by_the_displacement():
    grid = search_grid((12, 7, 5), (3, 2, 1), (3, 1, 1), (2.0, 0, 0), LIKE)

    torch.testing.assert_close(grid.targets(0), torch.tensor([[-0.5, 3.5, 7.5], [1.5, 5.5, 9.5], [3.5, 7.5, 11.5]]))


def test_in_another_volume_positions_move_and_displacements_only_grow():
    grid = search_grid((12, 7, 5), (3, 2, 1), (3, 3, 3), (2.0, 1.0, 0.5), LIKE).scaled((3.0, 2.0, 1.0), (1.0, 0.5, 0.0))

    torch.testing.assert_close(grid.points[0], torch.tensor([5.5, 17.5, 29.5]))
    torch.testing.assert_close(grid.points[1], torch.tensor([3.0, 10.0]))
    torch.testing.assert_close(grid.labels[0], torch.tensor([-6.0, 0.0, 6.0]))
    torch.testing.assert_close(grid.labels[2], torch.tensor([-0.5, 0.0, 0.5]))


@pytest.mark.parametrize("reach", [(12.1, 0, 0), (0, 7.5, 0), (-1.0, 0, 0), (0, 0, float("nan"))])
def test_a_window_larger_than_the_volume_is_refused(reach):
    with pytest.raises(ValueError, match="larger than the volume of \\(12, 7, 5\\) cells"):
        search_grid((12, 7, 5), (3, 2, 1), (3, 3, 3), reach, LIKE)


def test_a_grid_without_points_or_displacements_is_refused():
    with pytest.raises(ValueError, match="along every axis"):
        search_grid((12, 7, 5), (3, 0, 1), (3, 3, 3), (1, 1, 1), LIKE)
    with pytest.raises(ValueError, match="along every axis"):
        search_grid((12, 7, 5), (3, 1, 1), (3, 3, 0), (1, 1, 1), LIKE)
