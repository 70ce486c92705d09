# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms import centre_alignment, initial_alignment, overlap_fraction, voxel_to_mm

IDENTITY = torch.eye(4, dtype=torch.float64)


def box(size, spacing=(1.0, 1.0, 1.0), corner=(0.0, 0.0, 0.0)) -> MetaTensor:
    """Volume with its outer corner at ``corner``."""
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor(corner, dtype=torch.float64) + torch.tensor(spacing, dtype=torch.float64) / 2
    return MetaTensor(torch.zeros(1, *size), affine=affine)


def shift(x: float, y: float, z: float) -> torch.Tensor:
    matrix = IDENTITY.clone()
    matrix[:3, 3] = torch.tensor([x, y, z], dtype=torch.float64)
    return matrix


@pytest.mark.parametrize(
    ("corner", "fraction"),
    [((0, 0, 0), 1.0), ((5, 0, 0), 0.5), ((5, 10, 0), 0.25), ((0, 0, -20), 0.5), ((10, 0, 0), 0.0), ((0, 0, 90), 0.0)],
)
def test_overlap_of_two_boxes_is_the_shared_part(corner, fraction):
    fixed = box((10, 20, 40))
    moving = box((5, 10, 10), spacing=(2.0, 2.0, 4.0), corner=corner)  # the same 10 x 20 x 40 mm

    assert overlap_fraction(fixed, moving, IDENTITY) == pytest.approx(fraction)
    assert overlap_fraction(moving, fixed, IDENTITY) == pytest.approx(fraction)


def test_overlap_counts_the_smaller_volume():
    large, small = box((100, 100, 100)), box((4, 4, 4), corner=(98, 50, 50))

    assert overlap_fraction(large, small, IDENTITY) == pytest.approx(0.5)
    assert overlap_fraction(small, large, IDENTITY) == pytest.approx(0.5)


def test_overlap_looks_for_fixed_points_where_the_initial_transform_says():
    fixed, moving = box((10, 10, 10)), box((10, 10, 30), corner=(100, 0, 0))

    assert overlap_fraction(fixed, moving, shift(95, 0, 0)) == pytest.approx(0.5)
    assert overlap_fraction(moving, fixed, shift(-95, 0, 0)) == pytest.approx(0.5)


def test_centres_meet(fixed_affine, fixed_size, moving_affine, moving_size):
    fixed = MetaTensor(torch.zeros(1, *fixed_size), affine=fixed_affine)
    moving = MetaTensor(torch.zeros(1, *moving_size), affine=moving_affine)

    initial = centre_alignment(fixed, moving)

    centre = voxel_to_mm(torch.tensor([[8.0, 6.5, 5.0]]), fixed_affine)
    expected = voxel_to_mm(torch.tensor([[9.0, 11.0, 10.0]]), moving_affine)
    torch.testing.assert_close(voxel_to_mm(centre, initial), expected)
    assert torch.equal(initial[:3, :3], IDENTITY[:3, :3])


def test_auto_trusts_headers_that_overlap_enough(caplog):
    fixed, moving = box((10, 10, 10)), box((10, 10, 10), corner=(7, 0, 0))

    assert torch.equal(initial_alignment(fixed, moving), IDENTITY)
    assert not caplog.records


def test_auto_brings_centres_together_when_headers_do_not_overlap_enough_and_says_so(caplog):
    fixed, moving = box((10, 10, 10)), box((10, 10, 10), corner=(0, 8, 0))

    initial = initial_alignment(fixed, moving, pair="anna__bert")

    torch.testing.assert_close(initial, shift(0, 8, 0))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "anna__bert" in caplog.text
    assert "[0.0, 8.0, 0.0] mm" in caplog.text
    assert torch.equal(initial_alignment(fixed, moving, min_overlap=0.15), IDENTITY)


def test_centres_are_brought_together_when_asked():
    fixed, moving = box((10, 10, 10)), box((10, 10, 10), corner=(1, 0, 0))

    torch.testing.assert_close(initial_alignment(fixed, moving, "centres"), shift(1, 0, 0))


@pytest.mark.parametrize("given", ["headers", IDENTITY])
def test_volumes_that_do_not_overlap_are_refused(given):
    fixed, moving = box((10, 10, 10)), box((10, 10, 10), corner=(0, 0, 11))

    with pytest.raises(ValueError, match=r"anna__bert.*do not overlap.*initial='centres'"):
        initial_alignment(fixed, moving, given, pair="anna__bert")


def test_a_given_matrix_is_taken():
    fixed, moving = box((10, 10, 10)), box((10, 10, 10), corner=(0, 0, 11))

    assert torch.equal(initial_alignment(fixed, moving, shift(0, 0, 10).tolist()), shift(0, 0, 10))


@pytest.mark.parametrize(
    "given", ["center", torch.eye(3), torch.zeros(4, 4), torch.full((4, 4), float("nan")), torch.ones(4, 4)]
)
def test_anything_else_is_refused(given):
    with pytest.raises(ValueError, match="initial must be"):
        initial_alignment(box((4, 4, 4)), box((4, 4, 4)), given)
