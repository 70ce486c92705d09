# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import shutil

import pytest

from monai_reg_ext.apps.bundle_run import BundleRun
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.data import phantom_pair

QUICK = {"network_def#estimator#half_width": 1, "network_def#refiner#iterations": 2}
RECORDER = "monai_reg_ext.apps.pair_recorder.PairRecorder"


@pytest.fixture(scope="module")
def pairs() -> list[dict]:
    return [phantom_pair((32, 28, 24), (6, 6, 8), 12, seed=seed) | {"pair": f"phantom {seed}"} for seed in (0, 1)]


def described(run: BundleRun) -> dict:
    return run.description([{"pair": "a", "fixed": "b.nii", "moving": "/c.nii", "points_space": "ras"}])


def test_settings_are_files_or_names_of_the_bundles_configs(tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"network_def#passes": 2}))

    config = described(BundleRun(settings=["same_modality", "LPBA40.json", own]))["config"]

    assert config["network_def"]["features"]["parts"][0]["_target_"].endswith("MindSSC")
    assert config["network_def"]["refiner"]["iterations"] == 60
    assert config["network_def"]["passes"] == 2
    with pytest.raises(FileNotFoundError, match="no settings file 'none', neither here nor in"):
        BundleRun(settings=["none"])


def test_the_description_has_all_that_decides_and_no_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    description = described(BundleRun(overrides={"device": "cpu", "seed": 3}))

    assert description["method"] == "convex_adam"
    assert description["config"]["device"] == "$torch.device('cpu')"
    assert description["config"]["seed"] == 3
    assert not {"bundle_root", "output_dir", "fixed", "pairs", "_meta_"} & description["config"].keys()
    pair = {"pair": "a", "fixed": str(tmp_path / "b.nii"), "moving": "/c.nii", "points_space": "ras"}
    assert description["pairs"] == [pair]
    assert json.loads(json.dumps(description)) == description


def test_a_copy_of_the_bundle_elsewhere_is_described_alike(bundles_dir, tmp_path):
    shutil.copytree(bundles_dir / "convex_adam", tmp_path / "convex_adam")

    assert described(BundleRun(tmp_path / "convex_adam")) == described(BundleRun("convex_adam"))


@pytest.mark.parametrize("key", ["iterations", "network_deff#passes", "seed#what"])
def test_ids_that_do_not_exist_are_refused_with_those_that_do(key):
    with pytest.raises(UsageError, match=f"no option --{key}; the bundle has .*--initial.*network_def#"):
        BundleRun(overrides={key: 1})


def test_arguments_that_the_config_leaves_out_may_be_given_to_its_parts():
    config = described(BundleRun(overrides={"network_def#refiner#tolerance": 0.1}))["config"]

    assert config["network_def"]["refiner"]["tolerance"] == 0.1


def test_a_device_that_torch_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"device must be one that torch knows.*'gpu'"):
        BundleRun(overrides={"device": "gpu"})


def test_all_that_makes_a_run_passes_through_json(tmp_path):
    run = BundleRun(settings=["same_modality"], overrides={"device": "cpu", **QUICK}, evaluate=True)

    again = BundleRun(**json.loads(json.dumps(run.arguments())))

    assert described(again) == described(run)


def test_a_run_returns_its_rows_and_writes_table_and_summary(pairs, tmp_path):
    rows = BundleRun(overrides=QUICK, evaluate=True).run(pairs, tmp_path / "out")

    assert [row["pair"] for row in rows] == ["phantom 0", "phantom 1"]
    assert all(row["dice"] > 0 and not row["error"] for row in rows)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["metrics.csv", "phantom 0", "phantom 1", "summary.json"]


def test_the_pair_recorder_leaves_each_good_pairs_row_beside_it_and_no_tables(pairs, tmp_path):
    bad = {"pair": "bad", "fixed": str(tmp_path / "none.nii"), "moving": str(tmp_path / "none.nii")}

    rows = BundleRun(overrides=QUICK, evaluate=True).run([bad, *pairs], tmp_path / "out", RECORDER)

    assert "none.nii" in rows[0]["error"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["phantom 0", "phantom 1"]
    for row in rows[1:]:
        folder = tmp_path / "out" / row["pair"]
        assert json.loads((folder / "metrics.json").read_text()) == row
        times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert max(times, key=times.get) == "metrics.json"  # written last
        assert {"warped.nii.gz", "field.nii.gz", "report.png"} <= times.keys()


def test_a_folder_that_cannot_be_written_to_is_one_message(pairs, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ValueError, match="cannot write"):
        BundleRun(overrides=QUICK).run(pairs, tmp_path / "file" / "out")


def test_a_bundle_that_keeps_no_figures_is_refused(bundles_dir, pairs, tmp_path):
    shutil.copytree(bundles_dir / "convex_adam", tmp_path / "mute")
    path = tmp_path / "mute" / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["handlers"] = config["handlers"][:1]
    path.write_text(json.dumps(config))

    with pytest.raises(ValueError, match="keeps no figures"):
        BundleRun(tmp_path / "mute").run(pairs, tmp_path / "out")
