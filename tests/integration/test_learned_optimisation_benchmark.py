# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from monai.data import MetaTensor
from monai.utils import optional_import

from monai_reg_ext.apps import breathing_model
from monai_reg_ext.networks.blocks import AdamRefiner, Learn2OptimiseEstimator, MindSSC, VoxelMorphPlusPlusEstimator
from monai_reg_ext.networks.layers import pool_to_grid, upsample_ddf
from monai_reg_ext.transforms import FindCorrespondencesd

_, has_fire = optional_import("fire")
pytestmark = pytest.mark.skipif(not has_fire, reason="fire is not installed")

GRID = {
    "optimiser_def#grid_spacing": 1,
    "optimiser_def#iterations": 2,
    "network_def#estimator#grid_spacing": 1,
    "network_def#estimator#iterations": 3,
    "network_def#estimator#points": 20,
    "network_def#refiner#grid_spacing": 1,
    "network_def#refiner#iterations": 2,
    "pre_registration_def#grid_spacing": 1,
    "pre_registration_def#points": 20,
}


@pytest.fixture
def script(monkeypatch, bundles_dir):
    monkeypatch.syspath_prepend(str(bundles_dir.parent / "benchmarks"))
    return import_module


@pytest.fixture
def weights(tmp_path) -> dict[str, str]:
    """Untrained ones of both bundles."""
    parts = {"learn2optimise": Learn2OptimiseEstimator(), "voxelmorph_pp": VoxelMorphPlusPlusEstimator(12)}
    for name, part in parts.items():
        state = {f"estimator.{key}": value for key, value in part.state_dict().items()}
        torch.save(state, tmp_path / f"{name}.pt")
    return {name: str(tmp_path / f"{name}.pt") for name in parts}


@pytest.fixture
def small_scan(script, monkeypatch):
    """The small scan in the place of the real one."""
    scans = {"test_scans": [{"image": "c.nii.gz", "mask": "c_mask.nii.gz"}]}
    monkeypatch.setattr(script("learned_optimisation"), "read_bundle_config", lambda *_: scans)


def test_a_run_goes_on_where_its_files_end(
    script, small_scan, weights, breathing_dataset, tmp_path, capsys, monkeypatch
):
    benchmark, tables = script("learned_optimisation"), script("learned_optimisation_tables")
    settings = {"data_dir": str(breathing_dataset), "out_dir": str(tmp_path / "out"), "data_sets": ("breathing",)}
    settings |= {"pairs": 1, "watched": 1, "spacing": 4.0, **weights, **GRID}
    benchmark.main(**settings)
    first = capsys.readouterr().out

    monkeypatch.setattr(benchmark, "measured", None)
    monkeypatch.setattr(benchmark, "convergence", None)
    benchmark.main(**settings)

    table = capsys.readouterr().out
    assert first.endswith(table)
    names = [line.split("|")[1].strip() for line in table.splitlines()[4:]]
    behind = ["VoxelMorph++", "VoxelMorph++ + Adam", "VoxelMorph++ + Learn2Optimise"]
    assert names == ["before", "Adam", "Learn2Optimise", "Learn2Optimise + Adam", *behind]
    rows = tables.read_rows(tmp_path / "out" / "pairs.csv")
    assert [row["iterations"] for row in rows] == [0, 3, 2, 4, 0, 2, 2]
    # a network that was not trained does not move
    assert rows[2]["tre_mm"] == rows[0]["tre_mm"]
    assert rows[1]["tre_mm"] != rows[0]["tre_mm"]
    followed = tables.read_rows(tmp_path / "out" / "convergence.csv")
    assert [row["iterations"] for row in followed] == [0, 1, 2, 3, 0, 1, 2]
    assert {row["tre_mm"] for row in followed if row["iterations"] == 0} == {rows[0]["tre_mm"]}
    # what is followed ends where the method does
    for last, row in ((3, rows[1]), (-1, rows[2])):
        assert followed[last]["tre_mm"] == pytest.approx(row["tre_mm"], rel=1e-5)
    assert (tmp_path / "out" / "convergence.png").stat().st_size > 10_000


def test_the_motions_are_those_of_the_test_patients(script, small_scan, breathing_dataset):
    pairs = list(script("learned_optimisation").loaded_pairs("breathing", breathing_dataset, 3))

    motions = breathing_model(breathing_dataset / "LungCT", "test").motions
    assert [pair["pair"] for pair in pairs] == [f"c_{motion.name}__c" for motion in motions[:3]]
    assert all(len(pair["fixed_points"]) == 1000 for pair in pairs)


def test_methods_without_weights_are_left_out(script):
    assert list(script("learned_optimisation_methods").learned_methods({}, {})) == ["before", "Adam"]


def test_an_energy_is_that_of_adam_and_its_last_field_the_refiners(script):
    methods = script("learned_optimisation_methods")
    pair = torch.rand(1, 2, 36, 17, 20, generator=torch.Generator().manual_seed(0))
    item = methods.Prepared(pair, {}, lambda ddf: ddf[0])

    states = [state for _, state in methods.convergence(item, methods.learned_methods({}, GRID))]

    moving, fixed = (pool_to_grid(MindSSC()(image), (1, 1, 1)) for image in pair.split(1, 1))
    field = AdamRefiner(1, 3, 0.65)(fixed, moving)
    torch.testing.assert_close(states[-1].ddf, upsample_ddf(field, (1, 1, 1), (36, 17, 20)))
    start = (fixed - moving).square().sum(1).mean()
    assert states[0].energy == pytest.approx(float(start), rel=1e-5)
    assert states[-1].energy < states[0].energy
    assert [state.seconds for state in states] == sorted(state.seconds for state in states)


def test_the_table_has_means_over_pairs_and_counts_foldings(script):
    common = {"data_set": "LiverMR4D", "method": "Adam", "iterations": 5.0, "sdlogj": 0.1, "cpu_seconds": 2.0}
    rows = [
        {**common, "pair": pair, "tre_mm": tre, "tre_mm_snapped": tre - 1, "folding_percent": folding}
        for pair, tre, folding in (("a", 2.0, 0.0), ("b", 4.0, 0.01), ("c", 3.0, 0.2))
    ]
    rows.append({**rows[0], "data_set": "breathing", "tre_mm": 100.0})

    title, _, _, row = script("learned_optimisation_tables").summary(rows, "LiverMR4D")

    assert title == "LiverMR4D, 3 pairs"
    # 0.7 of the way through 2, 3, 4
    assert row == "| Adam | 3.00 | 3.40 | 2.00 | 2 of 3 | 0.100 | 2.0 | 5 |"


def test_every_real_pair_is_there(script, data_dir):
    (pair,) = script("learned_optimisation").loaded_pairs("LiverMR4D", data_dir, 1)

    assert pair["fixed_points"].shape == pair["moving_points"].shape == (32, 3)


@pytest.mark.parametrize(("error", "share"), [(0.5, 100), (2.5, 0)])
def test_correspondences_are_compared_with_the_known_motion(script, monkeypatch, error, share):
    def field(*shift: float) -> MetaTensor:
        return MetaTensor(torch.tensor(shift).view(3, 1, 1, 1).expand(3, *size).clone(), affine=torch.eye(4))

    size, benchmark = (24, 20, 22), script("keypoints")
    image, mask = (MetaTensor(values, affine=torch.eye(4)) for values in (torch.randn(1, *size), torch.ones(1, *size)))
    pair = {"pair": "a", "fixed": image, "moving": image, "fixed_mask": mask, "true_ddf": field(2.0 + error, 0, 0)}
    monkeypatch.setattr(benchmark, "loaded_pairs", lambda *_: [pair])
    found = {"pred": field(2, 0, 0), "pred_inverse": field(-2, 0, 0)}

    ((name, row),) = benchmark.measured(None, 1, FindCorrespondencesd(60, method=lambda item: {**item, **found}))

    keypoints, _, kept, _, *figures = row
    assert name == "a"
    assert 10 <= kept <= keypoints == 60
    assert figures == pytest.approx([share, error, 2 + error])
