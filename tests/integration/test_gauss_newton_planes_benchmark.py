# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from monai.data import MetaTensor
from monai.utils import optional_import

from monai_reg_ext.networks.blocks.learned_gauss_newton_estimator import LearnedGaussNewtonEstimator

_, has_fire = optional_import("fire")
pytestmark = pytest.mark.skipif(not has_fire, reason="fire is not installed")


@pytest.fixture
def script(monkeypatch, bundles_dir):
    monkeypatch.syspath_prepend(str(bundles_dir.parent / "benchmarks"))
    return import_module


def test_the_slice_shows_all_organs_from_the_left_and_from_the_top(script):
    # array axes: down, right to left, backwards; 3, 2 and 5 mm
    affine = torch.tensor([[0.0, -2, 0, 9], [0, 0, -5, 4], [-3, 0, 0, 8], [0, 0, 0, 1]], dtype=torch.float64)
    label = torch.zeros((1, 10, 12, 7), dtype=torch.uint8)
    label[0, 2:5, 3:7, 2] = 5  # the largest area of one organ
    label[0, 0:2, 9:12, 4], label[0, 4, 0, 4] = 5, 8
    label[0, 7, 7, 4] = 3

    plane = script("coronal_slices").coronal_slice(MetaTensor(label, affine=affine), (5, 8), (26, 25), 1.0)

    # one voxel is 2 x 3 pixels; 24 x 30 of them become 26 x 25: one more at each side, five less at the bottom
    expected = torch.zeros((26, 25))
    expected[1:7, 19:25] = 1
    expected[23:25, 10:13] = 2
    assert plane.dtype == torch.uint8
    torch.testing.assert_close(plane[0, 0].float(), expected)


def test_a_training_pair_shares_one_map_and_labels_stay_shares(script):
    planes = script("gauss_newton_planes")
    ramp = torch.arange(24.0)[:, None].expand(24, 22)[None, None] * 100
    slices = [
        script("coronal_slices").Slice((ramp > threshold).to(torch.uint8), ramp + threshold) for threshold in (600, 900)
    ]

    fixed, moving = planes.random_pair(slices, 2, torch.Generator().manual_seed(3))

    difference = (moving.features - fixed.features).abs()
    assert (difference - 300).abs().max() < 8  # noise of both
    assert fixed.label.shape == (1, 2, 24, 22)
    torch.testing.assert_close(fixed.label.sum(1), torch.ones(1, 24, 22))
    assert not torch.allclose(fixed.features, ramp + 600, atol=50)


def test_iterations_grow_from_five_to_ten(script):
    unrolled = script("gauss_newton_planes").unrolled

    assert [unrolled(step) for step in (0, 99, 100, 399)] == [5, 10, 10, 10]
    assert all(unrolled(step) <= unrolled(step + 1) for step in range(120))


def test_both_losses_vanish_where_labels_match_and_count_rare_ones_more(script):
    planes = script("gauss_newton_planes")
    fixed = torch.zeros((1, 3, 4, 5))
    fixed[:, 0, 1:], fixed[:, 1, 0, 1:], fixed[:, 2, 0, 0] = 1, 1, 1
    weights = torch.tensor([0.5, 1.0, 3.0]).view(1, 3, 1, 1)
    lacking_common, lacking_rare = fixed.clone(), fixed.clone()
    lacking_common[:, 1, 0, 1], lacking_rare[:, 2, 0, 0] = 0.5, 0.5

    for loss in planes.LOSSES.values():
        assert loss(fixed, fixed, weights) == 0
        assert 0 < loss(lacking_common, fixed, weights) < loss(lacking_rare, fixed, weights)
    assert planes.squares(lacking_rare, fixed, weights).item() == pytest.approx((3 * 0.5) ** 2 / 60)


@pytest.mark.parametrize(("features", "loss"), [("merged", "squares"), ("organs", "cross_entropy")])
def test_a_training_changes_the_stencils_and_is_not_repeated(script, dataset, tmp_path, capsys, features, loss):
    planes = script("gauss_newton_planes")
    settings = {
        "data_dir": str(dataset.parent),
        "task": dataset.name,
        "features": features,
        "loss": loss,
        "steps": 25,
        "size": (26, 23),
        "pixel_mm": 1.6,
        "organs": (1, 2),
        "weights": str(tmp_path / "weights" / "planes.pt"),
    }
    planes.main(**settings)
    first = capsys.readouterr().out
    planes.main(**settings)
    again = capsys.readouterr().out

    assert "step 25" in first
    assert "step" not in again
    dice = [{row.split("|")[1]: row.split("|")[2:5] for row in out.splitlines()[-6:]} for out in (first, again)]
    assert dice[0] == dice[1]
    assert next(iter(dice[0])) == " before "
    assert float(dice[0][" conventional "][0]) > float(dice[0][" before "][0])
    learned = torch.load(tmp_path / "weights" / "planes.pt", weights_only=True)
    untrained = LearnedGaussNewtonEstimator(1 if features == "merged" else 2, 2).state_dict()
    assert all((learned[name] - weight).abs().max() > 1e-3 for name, weight in untrained.items())
