# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from monai.utils import optional_import

from monai_reg_ext.metrics import compute_folding_percent, compute_learn2reg_dice, compute_sdlogj
from monai_reg_ext.networks.blocks import AdamRefiner
from monai_reg_ext.networks.blocks.gauss_newton_estimator import GaussNewtonEstimator
from monai_reg_ext.networks.layers import box_filter, pool_to_grid, upsample_ddf, warp

_, has_fire = optional_import("fire")
_, has_numba = optional_import("numba")
pytestmark = pytest.mark.skipif(not (has_fire and has_numba), reason="fire or numba is not installed")

SIZE = (17, 13, 21)


@pytest.fixture
def script(monkeypatch, bundles_dir):
    # to compile the package's kernels would take longer than the test
    monkeypatch.setenv("MONAI_REG_NUMBA", "0")
    monkeypatch.syspath_prepend(str(bundles_dir.parent / "benchmarks"))
    return import_module


def smooth(channels: int, seed: int, amplitude: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return amplitude * box_filter(torch.randn((1, channels, *SIZE), generator=generator), (5, 5))


def test_one_pass_measures_are_the_metrics(script):
    measures = script("field_measures")
    fixed, moving = ((smooth(1, seed, 30.0) + 2).round().clamp(0, 4).byte() for seed in (0, 1))
    moving[moving == 3] = 2
    for amplitude, folds in ((4.0, False), (40.0, True)):
        ddf = smooth(3, 2, amplitude)

        dice, (sdlogj, folding) = measures.label_dice(fixed, moving, ddf, 5), measures.smoothness(ddf)

        warped = warp(moving, ddf, mode="nearest", padding="zeros")
        np.testing.assert_allclose(dice, compute_learn2reg_dice(warped, fixed, moving, range(1, 5)).numpy())
        assert np.isnan(dice).tolist() == [False, False, True, False]
        assert sdlogj == pytest.approx(compute_sdlogj(ddf).item(), rel=1e-5)
        assert folding == pytest.approx(compute_folding_percent(ddf).item(), abs=1e-9)
        assert (folding > 0) == folds


def test_the_energy_of_a_coupled_state_is_the_estimators(script):
    fixed, moving = (smooth(2, seed, 100.0) for seed in (3, 4))
    estimator = GaussNewtonEstimator(iterations=2)
    fields = list(estimator.fields(fixed, moving))

    states = list(script("gauss_newton_methods").gauss_newton(fixed, moving, iterations_of(script, 2)))

    voxels = fixed[0, 0].numel()
    for state, field in zip(states, fields, strict=True):
        value = script("gauss_newton_iterations").energy(fixed, moving, state, 25.0)
        assert value == pytest.approx(estimator.energy(fixed, moving, field, 25.0).item() * 4**3 / voxels, rel=1e-4)
        torch.testing.assert_close(state.ddf, estimator.at_features(field, SIZE))


def iterations_of(script, number: int):
    return [script("gauss_newton_methods").Level(1, 4, number, (125.0, 25.0))]


def test_a_level_begins_where_the_coarser_one_has_ended(script):
    methods = script("gauss_newton_methods")
    fixed, moving = (smooth(1, seed, 100.0) for seed in (5, 6))
    levels = [methods.Level(4, 1, 2, (400.0, 200.0)), methods.Level(1, 4, 1, (30.0, 30.0))]

    *_, state = methods.gauss_newton(fixed, moving, levels)

    cells = [pool_to_grid(volume, (4, 4, 4)) for volume in (fixed, moving)]
    start = GaussNewtonEstimator(1, 2, (400.0, 200.0))(*cells)
    expected = GaussNewtonEstimator(4, 1, 30.0)(fixed, moving, upsample_ddf(start, (4, 4, 4), SIZE))
    torch.testing.assert_close(state.ddf, expected)
    assert state.iteration == 3


def test_adams_fields_are_those_of_runs_of_so_many_iterations(script):
    fixed, moving = (smooth(1, seed, 1000.0) for seed in (7, 8))

    states = list(script("gauss_newton_methods").adam(fixed, moving, (0, 1, 4)))

    cells = [pool_to_grid(volume / 100, (4, 4, 4)) for volume in (fixed, moving)]
    assert [state.iteration for state in states] == [0, 1, 4]
    assert [state.seconds for state in states] == sorted(state.seconds for state in states)
    for state in states:
        refiner = AdamRefiner(4, state.iteration + 1, 0.65, compat=True)
        field = refiner(*cells, cells[0].new_zeros((1, 3, *cells[0].shape[2:])))
        expected = box_filter(upsample_ddf(field, (4, 4, 4), SIZE), (3, 3, 3), compat=True)
        torch.testing.assert_close(state.ddf, expected)
    assert states[2].ddf.abs().max() > 0.1


def test_degraded_label_maps_are_similar_and_reproducible(script):
    degraded = script("degraded_labels").degraded
    label = torch.zeros((1, 1, 30, 26, 34), dtype=torch.uint8)
    label[..., 3:14, 4:20, 5:28] = 1
    label[..., 17:27, 6:20, 9:23] = 4

    one, again, other = (degraded(label, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))

    assert one.dtype == label.dtype
    assert one.equal(again)
    assert not one.equal(other)
    for one_of in (one, other):
        dice = compute_learn2reg_dice(one_of, label, label)
        assert (dice > 0.6).all()
        assert (dice < 0.99).all()
    assert set(one.unique().tolist()) == {0, 1, 4}


def test_a_part_that_is_missing_is_as_large_as_asked(script):
    label = torch.zeros((1, 1, 40, 36, 44), dtype=torch.uint8)
    label[..., 10:30, 10:26, 12:32] = 3

    whole, lacking = (
        script("degraded_labels").degraded(label, torch.Generator().manual_seed(0), 0.0, missing, radius=0.1)
        for missing in (0.0, 1.0)
    )

    # a ball of 0.1 times the edge 18.6, wholly or in part inside
    assert whole.equal(label)
    assert 5 <= (whole != lacking).sum() <= 27


@pytest.mark.parametrize(("features", "degrade"), [("merged", True), ("organs", False)])
def test_a_run_goes_on_where_its_csv_ends(script, dataset, tmp_path, capsys, monkeypatch, features, degrade):
    benchmark = script("gauss_newton_iterations")
    settings = {
        "data_dir": str(dataset.parent),
        "task": dataset.name,
        "features": features,
        "degrade": degrade,
        "methods": "coupled, three levels;Adam",
        "out": str(tmp_path / "runs" / "fields.csv"),
    }
    benchmark.main(**settings)
    first = capsys.readouterr().out

    monkeypatch.setattr(benchmark, "measured", None)
    benchmark.main(**settings)

    tables = capsys.readouterr().out
    assert first.endswith(tables)
    assert ("registered label maps: Dice 100.0" in first) == (not degrade)
    rows = script("gauss_newton_tables").read_rows(tmp_path / "runs" / "fields.csv")
    of_ours = [row for row in rows if row["method"] == "coupled, three levels"]
    assert [row["iteration"] for row in of_ours] == list(range(11))
    assert degrade or of_ours[10]["dice"] > of_ours[0]["dice"] + 5
    assert [row["iteration"] for row in rows if row["method"] == "weight 2.5"] == list(range(11))


def test_adam_is_looked_at_after_as_many_iterations_and_after_as_many_seconds(script):
    def rows(method, dice, seconds):
        values = zip(range(len(dice)), dice, seconds, strict=True)
        return [
            {"pair": "a", "method": method, "iteration": i, "dice": value, "cpu_seconds": at} for i, value, at in values
        ]

    fields = rows("coupled", [20, 40, 50], [0, 1.0, 2.5]) + rows("Adam", [20, 30, 45, 55], [0, 0.9, 1.1, 9])

    *_, first, second = script("gauss_newton_tables").against_adam(fields)

    # the field that took 1.1 seconds is the first that had as long as 1.0, that of 9 the first that had 2.5
    assert first == "| coupled | 1 | 40.00 | 30.00 | 1 of 1 | 45.00 | 0 of 1 |"
    assert second == "| coupled | 2 | 50.00 | 45.00 | 1 of 1 | 55.00 | 0 of 1 |"


def test_pairs_whose_energy_rises_once_are_not_counted(script):
    energies = {"a": [100.0, 50.0, 40.0], "b": [100.0, 50.0, 51.0]}
    fields = [
        {"pair": pair, "method": "weight 2", "iteration": iteration, "energy": energy}
        for pair, of_pair in energies.items()
        for iteration, energy in enumerate(of_pair)
    ]

    *_, row = script("gauss_newton_tables").falling(fields, ["weight 2"])

    assert row == "| weight 2 | 1 of 2 pairs | 2 | 45.5 |"
