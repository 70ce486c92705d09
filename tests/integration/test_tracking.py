# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""MONAI's ``--tracking mlflow``, which appends its handlers to those of a bundle's config."""

from __future__ import annotations

import json
import sqlite3
from importlib.util import find_spec
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

TRAINED = ("fused_convex", "gauss_newton", "learn2optimise", "pdd_net", "voxelmorph_pp")
TRAININGS = [(name, "train.json") for name in TRAINED]
TRAININGS += [(name, "train_semantic.json") for name in ("fused_convex", "gauss_newton")]


def workflow(bundle: Path, *configs: str, **options) -> ConfigWorkflow:
    return ConfigWorkflow(
        [str(bundle / "configs" / name) for name in configs],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(bundle),
        **options,
    )


@pytest.mark.parametrize("several_processes", [False, True])
@pytest.mark.parametrize(("bundle", "config"), TRAININGS)
def test_the_switch_alone_logs_each_engine_of_a_training_once(bundles_dir, tmp_path, bundle, config, several_processes):
    configs = [config, "multi_gpu_train.json"] if several_processes and config == "train.json" else [config]

    tracked = workflow(bundles_dir / bundle, *configs, output_dir=str(tmp_path), tracking="mlflow").parser
    untracked = workflow(bundles_dir / bundle, *configs, output_dir=str(tmp_path)).parser

    for parser, number in ((tracked, 1), (untracked, 0)):
        for part in ("train", "validate"):
            targets = [handler["_target_"] for handler in parser[f"{part}#handlers"]]
            assert targets.count("MLFlowHandler") == number
        assert parser.get_parsed_content("tracked") == bool(number)
        assert sum("share_mlflow_run" in step for step in parser["initialize"]) == 1
    assert tracked.get_parsed_content("run_name") == str(tmp_path)
    assert tracked.get_parsed_content("experiment_name") == bundle


@pytest.mark.parametrize("bundle", TRAINED[:2])
def test_networks_that_are_trained_before_are_tracked_as_the_one_behind_them(bundles_dir, tmp_path, bundle):
    for tracking in ("mlflow", None):
        parser = workflow(bundles_dir / bundle, "train.json", output_dir=str(tmp_path), tracking=tracking).parser

        options = parser.get_parsed_content("semantic_tracking")

        assert options["tracking"] == tracking
        assert options["tracking_uri"] == parser.get_parsed_content("tracking_uri")


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_a_run_of_inference_leaves_its_metrics_and_files(bundles_dir, dataset, tmp_path):
    places = {"dataset_dir": str(dataset), "output_dir": str(tmp_path)}
    small = {"network_def#estimator#half_width": 2, "network_def#refiner#iterations": 2}

    running = workflow(bundles_dir / "convex_adam", "inference.json", **places, **small, tracking="mlflow")
    running.initialize()
    running.run()

    with sqlite3.connect(tmp_path / "mlruns.db") as database:
        ((artifacts, status),) = database.execute("SELECT artifact_uri, status FROM runs")
        metrics = dict(database.execute("SELECT key, value FROM metrics"))
    assert status == "FINISHED"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert metrics["sdlogj"] == pytest.approx(summary["sdlogj"])
    for name in ("metrics.csv", "summary.json"):
        assert (Path(artifacts.removeprefix("file://")) / name).read_text() == (tmp_path / name).read_text()
