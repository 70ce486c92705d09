# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from monai_reg_ext.data import LungMotion
from monai_reg_ext.data.lung_motion import NODES

MATRIX = torch.tensor([[0.1, 0.02, 0.0], [-0.05, 0.15, 0.1], [0.0, -0.2, 0.3]], dtype=torch.float64)
SHIFT = torch.tensor([0.05, -0.1, -0.2], dtype=torch.float64)


def _random_motion(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LungMotion(0.1 * torch.randn(3, *NODES, generator=generator, dtype=torch.float64))


def test_linear_breathing_is_fitted_exactly_and_costs_no_bending(linear_patient):
    motion = LungMotion.fit(linear_patient(MATRIX, SHIFT))

    position = torch.rand(50, 3, dtype=torch.float64) * 2.4 - 1.2
    torch.testing.assert_close(motion.at(position), position @ MATRIX.T + SHIFT, atol=1e-4, rtol=0)
    expected = torch.linalg.det(torch.eye(3) + MATRIX)
    assert motion.smallest_determinant() == pytest.approx(expected.item(), abs=1e-3)


def test_a_few_wrong_correspondences_hardly_matter(linear_patient):
    patient = linear_patient(MATRIX, SHIFT)
    wrong = patient._replace(inhale=patient.inhale.clone())
    wrong.inhale[::40] += 60.0

    motion, disturbed = LungMotion.fit(patient), LungMotion.fit(wrong)

    position = torch.rand(50, 3, dtype=torch.float64) * 2 - 1
    assert (motion.at(position) - disturbed.at(position)).abs().max() < 0.1  # of 60 / 40 = 1.5 halves of the box


def test_on_a_mesh_it_is_what_it_is_at_its_points():
    motion = _random_motion()
    axes = [torch.linspace(-1.5, 1.3, number).double() for number in (5, 3, 4)]

    field = motion.on_grid(axes)

    assert field.shape == (3, 5, 3, 4)
    torch.testing.assert_close(field.flatten(1).T, motion.at(torch.cartesian_prod(*axes)))


def test_beyond_its_reach_it_goes_on_as_it_is_there():
    motion, beyond = _random_motion(), torch.tensor([[5.0, 0.3, -0.2], [1.2, 0.3, -0.2]])

    there, at_end = motion.at(beyond)

    torch.testing.assert_close(there, at_end)


def test_a_mirrored_motion_is_that_of_the_mirrored_place():
    motion, position = _random_motion(), torch.rand(20, 3, dtype=torch.float64) * 2 - 1
    mirror = torch.tensor([-1.0, 1, 1], dtype=torch.float64)

    torch.testing.assert_close(motion.mirrored().at(position * mirror), motion.at(position) * mirror)
    torch.testing.assert_close(motion.mirrored().mirrored().coefficients, motion.coefficients)


def test_the_faces_of_the_box_end_where_a_scaling_takes_them(linear_patient):
    scaling, shift = torch.tensor([0.1, -0.2, 0.4]).double(), torch.tensor([0.3, 0.0, -0.5]).double()

    lower, upper = LungMotion.fit(linear_patient(torch.diag(scaling), shift)).ends()

    torch.testing.assert_close(lower, -1 - scaling + shift, atol=1e-4, rtol=0)
    torch.testing.assert_close(upper, 1 + scaling + shift, atol=1e-4, rtol=0)


def test_too_few_correspondences_and_other_coefficients_are_refused(linear_patient):
    with pytest.raises(ValueError, match="at least four corresponding places, got 3 and 3"):
        LungMotion.fit(linear_patient(MATRIX, number=3))
    with pytest.raises(ValueError, match=r"\(3, 7, 7, 8\), got \(3, 7, 7, 7\)"):
        LungMotion(torch.zeros(3, 7, 7, 7))
