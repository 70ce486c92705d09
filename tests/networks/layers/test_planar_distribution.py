# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.displacement_distribution import DisplacementDistribution
from monai_reg_ext.networks.layers.planar_distribution import PlanarDistribution
from monai_reg_ext.networks.layers.search_grid import SearchGrid, search_grid

CUBE = search_grid((12, 10, 9), (3, 2, 4), (3, 5, 2), (2.0, 1.5, 3.0), torch.zeros(1))


def through(axis: int) -> SearchGrid:
    """The plane of displacements that are 0 along an axis."""
    return SearchGrid(CUBE.points, tuple(x[:1] * 0 if n == axis else x for n, x in enumerate(CUBE.labels)))


def planes_of(marginals: list[torch.Tensor], offset: torch.Tensor | None = None) -> PlanarDistribution:
    """Planes of a distribution whose components are independent, from ``(B, l, i, j, k)`` for each axis."""
    planes = []
    for axis in range(3):
        one, two, three = (torch.ones_like(x[:, :1]) if n == axis else x for n, x in enumerate(marginals))
        joint = one[:, :, None, None] * two[:, None, :, None] * three[:, None, None]
        of_plane = None
        if offset is not None:
            of_plane = torch.zeros_like(offset)
            of_plane[:, axis] = offset[:, axis]
        planes.append(DisplacementDistribution(joint, through(axis), of_plane))
    return PlanarDistribution(tuple(planes))


def independent() -> tuple[list[torch.Tensor], DisplacementDistribution]:
    marginals = [(3 * torch.rand(2, labels, 3, 2, 4)).softmax(1) for labels in (3, 5, 2)]
    one, two, three = marginals
    joint = one[:, :, None, None] * two[:, None, :, None] * three[:, None, None]
    return marginals, DisplacementDistribution(joint, CUBE)


def test_of_independent_components_it_knows_mean_and_covariance():
    marginals, cube = independent()

    planes = planes_of(marginals)

    torch.testing.assert_close(planes.mean(), cube.mean())
    torch.testing.assert_close(planes.covariance(), cube.covariance(), atol=1e-5, rtol=1e-5)


def test_a_component_is_the_mean_of_the_two_planes_that_know_it():
    marginals, _ = independent()
    offset = torch.randn(2, 3, 3, 2, 4)

    # where a plane goes through does not tell the component across it
    torch.testing.assert_close(planes_of(marginals, offset).mean(), planes_of(marginals).mean())


def test_its_grid_has_the_displacements_of_all_planes():
    grid = planes_of(independent()[0]).grid

    for one, other in zip(grid.labels, CUBE.labels, strict=True):
        torch.testing.assert_close(one, other)
    assert grid.size == (3, 2, 4)


def test_what_is_seen_and_how_probable_a_field_is_are_means_of_the_planes():
    marginals, _ = independent()
    planes, values, field = planes_of(marginals), torch.rand(2, 3, 12, 10, 9), torch.randn(2, 3, 3, 2, 4)

    seen, at = planes.seen(values), planes.at(field)

    torch.testing.assert_close(seen, torch.stack([plane.seen(values) for plane in planes.planes]).mean(0))
    torch.testing.assert_close(at, torch.stack([plane.at(field) for plane in planes.planes]).mean(0))


def test_in_another_unit_it_sees_the_same_places():
    marginals, _ = independent()
    offset = torch.rand(2, 3, 3, 2, 4)
    planes = planes_of(marginals, offset)
    # a ramp: twice as many voxels, each half as far from the next
    ramp = torch.arange(12.0).view(1, 1, 12, 1, 1).expand(2, 1, 12, 10, 9)
    fine = (torch.arange(24.0).view(1, 1, 24, 1, 1) / 2 - 0.25).expand(2, 1, 24, 10, 9)

    found = planes.scaled((2, 1, 1), (0.5, 0, 0)).seen(fine)

    # the middle points do not look beyond the border
    torch.testing.assert_close(found[:, :, 1], planes.seen(ramp)[:, :, 1], atol=1e-4, rtol=1e-4)
