# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch

from monai_reg_ext.data import BreathingModel


def _generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def patients(linear_patient):
    return [
        linear_patient(torch.diag(torch.tensor([0.1, 0.2, 0.5 * size])), (0.1, 0.0, 0.3 * size), f"patient_{size}")
        for size in (-1, 0, 1)
    ]


def test_mean_and_modes_are_those_of_the_patients_and_their_twins(patients):
    model = BreathingModel(patients, modes=5)

    coefficients = torch.stack([motion.coefficients for motion in model.motions])
    assert [motion.name for motion in model.motions[:3]] == ["patient_-1", "patient_-1_mirrored", "patient_0"]
    torch.testing.assert_close(model.mean, coefficients.mean(0))
    centred = (coefficients - model.mean).flatten(1)
    modes = model.modes.flatten(1)
    torch.testing.assert_close(modes.T @ modes, centred.T @ centred / 6, atol=1e-8, rtol=0)
    assert model.explained == pytest.approx(1)


def test_few_modes_hold_the_largest_part_of_the_variance(patients):
    # the patients differ in one way, and from their twins in another
    model = BreathingModel(patients, modes=1)

    whole = BreathingModel(patients, modes=5).modes.square().sum()
    assert 0.5 < model.explained < 1
    assert model.explained == pytest.approx(float(model.modes.square().sum() / whole))


def test_the_generator_decides_what_is_drawn(patients):
    model = BreathingModel(patients)

    assert torch.equal(model.draw(_generator(3)).coefficients, model.draw(_generator(3)).coefficients)
    assert not torch.equal(model.draw(_generator(3)).coefficients, model.draw(_generator(4)).coefficients)


def test_what_is_drawn_does_not_fold_even_if_the_modes_would(patients):
    model = BreathingModel(patients)
    # along the first mode the lungs shrink or grow by half of their height at one standard deviation
    model.modes = 3 * model.modes

    drawn = [model.draw(_generator(seed)) for seed in range(12)]

    assert min(motion.smallest_determinant() for motion in drawn) > 0.2
    assert len({round(float(motion.coefficients.sum()), 6) for motion in drawn}) == 12


def test_with_a_reach_amplitudes_differ_from_place_to_place_and_are_as_large_on_average(patients):
    model = BreathingModel(patients, modes=2, reach=1.5)
    # a motion that is the same everywhere shows amplitudes as they are
    model.modes = torch.full_like(model.modes, 0.01)
    generator = _generator(0)

    drawn = torch.stack([model.draw(generator).coefficients - model.mean for _ in range(400)])

    one = drawn[:, 0] / 0.01
    # two modes, cut at two standard deviations: the variance of one is 0.774 then, of what lies beyond 4 each
    assert one.var(0).mean() == pytest.approx(2 * 0.92, rel=0.1)
    near, far = one[:, 3, 3, 3] * one[:, 3, 3, 4], one[:, 0, 3, 3] * one[:, 6, 3, 3]
    assert near.mean() / one.var() == pytest.approx(math.exp(-1 / (2 * 1.5**2)), abs=0.15)
    assert far.mean() / one.var() == pytest.approx(0, abs=0.15)


def test_without_a_reach_amplitudes_are_the_same_everywhere(patients):
    model = BreathingModel(patients, modes=1)
    model.modes = torch.full_like(model.modes, 0.01)

    drawn = model.draw(_generator(0)).coefficients - model.mean

    torch.testing.assert_close(drawn, drawn[:, :1, :1, :1].expand_as(drawn))


def test_real_test_patients_do_not_fold_and_move_centimetres(data_dir):
    from monai_reg_ext.data import breathing_patients

    folder = data_dir / "LungCT"
    if not (folder / "l2r_lung_keypoints.npz").is_file():
        pytest.skip("no lung correspondences")

    motions = BreathingModel(breathing_patients(folder, "test")).motions

    assert len(motions) == 20
    axis = torch.linspace(-0.8, 0.8, 5)
    for motion in motions:
        assert motion.smallest_determinant() > 0.2
    # halves of a lung's extent are some 100 mm
    assert max(float(motion.on_grid([axis] * 3).norm(dim=0).max()) for motion in motions) > 0.3


def test_a_model_needs_patients_and_modes(patients):
    with pytest.raises(ValueError, match="at least two patients and a mode, got 1"):
        BreathingModel(patients[:1])
    with pytest.raises(ValueError, match="modes=0"):
        BreathingModel(patients, modes=0)
    with pytest.raises(ValueError, match="reach must be above 0 knots, or None, got 0"):
        BreathingModel(patients, reach=0)
