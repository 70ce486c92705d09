# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""``multi_gpu_inference.json``, merged behind ``inference.json``: processes share the pairs of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted(REPOSITORY.glob("bundles/*/configs/multi_gpu_inference.json"))
SMALL = {"network_def#estimator#half_width": 2, "network_def#refiner#iterations": 5}


@pytest.fixture(scope="module")
def bundle(bundles_dir) -> Path:
    return bundles_dir / "convex_adam"


@pytest.fixture(scope="module")
def cohort(dataset, tmp_path_factory) -> Path:
    """Three pairs with label maps, the last of which cannot be read."""
    folder = tmp_path_factory.mktemp("cohort")
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).symlink_to(dataset / kind)
    content = json.loads((dataset / "Balls_dataset.json").read_text())
    names = [f"./imagesTr/Balls_{case}_0000.nii.gz" for case in ("0000", "0001", "0002", "missing")]
    content["registration_val"] = [{"fixed": names[i], "moving": names[i + 1]} for i in range(3)]
    (folder / "Balls_dataset.json").write_text(json.dumps(content))
    return folder


def test_two_processes_write_the_table_that_one_writes(run, on_two_processes, read_table, cohort, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    with pytest.raises(SystemExit, match="1 of 3 pairs failed"):
        run("inference.json", "evaluate.json", pictures=True, dataset_dir=str(cohort), output_dir=str(alone), **SMALL)

    configs = ("inference.json", "evaluate.json", "multi_gpu_inference.json")
    done = on_two_processes(*configs, dataset_dir=cohort, output_dir=shared, **SMALL)

    assert done.returncode == 1
    assert done.stderr.count("1 of 3 pairs failed") == 1
    expected, rows = read_table(alone / "metrics.csv"), read_table(shared / "metrics.csv")
    assert [row["pair"] for row in rows] == [row["pair"] for row in expected]
    assert rows[2]["error"] == expected[2]["error"] != ""
    for row, other in zip(rows[:2], expected[:2], strict=True):
        for name in ("dice", "dice_before", "hd95", "sdlogj", "folding_percent"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-3)
    summary, of_one = (json.loads((folder / "summary.json").read_text()) for folder in (shared, alone))
    assert (summary["pairs"], summary["failed"]) == (of_one["pairs"], of_one["failed"]) == (3, 1)
    assert summary["dice"] == pytest.approx(of_one["dice"], rel=1e-3)
    for row in rows[:2]:
        written = {path.name for path in (shared / row["pair"]).iterdir()}
        assert written == {path.name for path in (alone / row["pair"]).iterdir()} >= {"ddf.nii.gz", "report.png"}


def test_every_bundle_has_the_same_config_for_it():
    assert len(CONFIGS) == len(list(REPOSITORY.glob("bundles/*/configs/inference.json")))
    assert len({path.read_text() for path in CONFIGS}) == 1


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.parents[1].name)
def test_it_leaves_out_no_step_of_a_single_process(config):
    single, shared = (json.loads(path.read_text()) for path in (config.with_name("inference.json"), config))

    for step in single["initialize"]:
        assert sum(step.removeprefix("$") in other for other in shared["initialize"]) == 1
    assert single["handlers"][0]["_target_"].endswith("ProgressBar")  # only the first process shows one
    assert single["dataset"]["data"] == "@pairs"
