# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_reg_ext.losses import KeypointLoss, NonLocalFeatureLoss
from monai_reg_ext.networks.blocks import AdamRefiner, MindSSC, VoxelMorphEstimator, VoxelMorphPlusPlusEstimator

GRID = {"network_def#estimator#grid_spacing": 1}
SMALL = {**GRID, "network_def#estimator#points": 20, "network_def#estimator#labels": 3}
ADAM = {"network_def#refiner#grid_spacing": 1, "network_def#refiner#iterations": 2}
QUICKLY = {"epochs": 1, "pairs_per_epoch": 1, "tensorboard": False, "pictures": False}
METRICS = ["tre_mm", "sdlogj", "folding_percent"]

# what is trained differently: configs, settings of a small network, and of Adam behind it
VARIANTS = {
    "voxelmorph": (["voxelmorph.json"], GRID, ADAM),
    "plain voxelmorph": (["voxelmorph.json", "intensities.json"], GRID, {}),
    "intensities": (["intensities.json"], SMALL, {}),
    "unsupervised": (["unsupervised.json"], SMALL, ADAM),
}


@pytest.fixture(scope="module")
def bundle(bundles_dir) -> Path:
    return bundles_dir / "voxelmorph_pp"


@pytest.fixture(scope="module")
def trained(run, breathing_options, tmp_path_factory) -> Path:
    """Output of one whole training."""
    output = tmp_path_factory.mktemp("training")
    run("train.json", kind="train", pictures=True, **breathing_options, **SMALL, output_dir=str(output))
    return output


@pytest.fixture(scope="module")
def testing(breathing_options) -> dict[str, object]:
    """What the evaluation on a test patient's motion needs, but for network and weights."""
    names = ("dataset_dir", "spacing")
    return {
        **{name: breathing_options[name] for name in names},
        "test_scans": breathing_options["val_scans"],
        "limit": 1,
    }


def content(running: ConfigWorkflow, name: str):
    return running.parser.get_parsed_content(name)


def test_a_training_keeps_the_weights_of_its_best_epoch_and_a_log(read_table, trained):
    weights, best = (torch.load(trained / name, weights_only=True) for name in ("model.pt", "best.pt"))
    assert weights.keys() == best.keys()
    assert all(torch.equal(weights[name], best[name]) for name in weights)
    assert {name.split(".")[1] for name in weights} == {"network", "head"}

    rows = read_table(trained / "training.csv")
    assert list(rows[0]) == ["epoch", "loss", "learning_rate", "seconds", *METRICS]
    summary = json.loads((trained / "training.json").read_text())
    assert summary["best"]["tre_mm"] == min(float(row["tre_mm"]) for row in rows)


def test_a_training_goes_on_where_it_stopped(run, read_table, breathing_options, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "again")
    options = {**breathing_options, **SMALL, "epochs": 3, "output_dir": str(tmp_path / "again")}

    resumed = run("train.json", kind="train", **options)

    assert content(resumed, "train#trainer").state.iteration == 3 * 2
    rows = read_table(tmp_path / "again" / "training.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[:2] == read_table(trained / "training.csv")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_in_mixed_precision_and_its_weights_register(
    run, read_table, breathing_options, testing, tmp_path, name
):
    configs, network, adam = VARIANTS[name]
    options = {**breathing_options, **QUICKLY, **network, "amp": True, "output_dir": str(tmp_path / "training")}

    training = run("train.json", *configs, kind="train", **options)
    inference = [config for config in configs if config != "unsupervised.json"]
    testing = {**testing, **network, **adam, "weights": str(tmp_path / "training" / "model.pt")}
    registering = run(
        *("inference.json", *inference, "evaluate.json", "breathing.json"), **testing, output_dir=str(tmp_path / "test")
    )

    (row,) = read_table(tmp_path / "test" / "metrics.csv")
    assert not row["error"]
    trained, network = content(training, "network_def"), content(registering, "network")
    estimator = VoxelMorphEstimator if "voxelmorph" in name else VoxelMorphPlusPlusEstimator
    features = torch.nn.Identity if "intensities.json" in configs else MindSSC
    loss = NonLocalFeatureLoss if name == "unsupervised" else KeypointLoss
    assert [type(part) for part in (trained.estimator, trained.features)] == [estimator, features]
    assert [type(part) for part in (network.estimator, network.features)] == [estimator, features]
    assert isinstance(content(training, "loss"), loss)
    assert len(network.refiners) == len(adam) // 2


def test_adam_behind_the_network_can_be_left_out(run, read_table, testing, trained, tmp_path):
    options = {**testing, **SMALL, "weights": str(trained / "model.pt")}
    found = {}
    for name, configs, adam in (("with", [], ADAM), ("without", ["network_only.json"], {})):
        configs = ("inference.json", *configs, "evaluate.json", "breathing.json")
        running = run(*configs, **options, **adam, output_dir=str(tmp_path / name))
        (found[name],) = read_table(tmp_path / name / "metrics.csv")
        refiners = content(running, "network").refiners
        assert [type(refiner) for refiner in refiners] == [AdamRefiner] * (name == "with")

    assert found["with"]["tre_mm"] != found["without"]["tre_mm"]
    assert found["with"]["tre_mm_before"] == found["without"]["tre_mm_before"]
    assert all(float(row["tre_mm_snapped"]) > 0 for row in found.values())


def test_both_directions_are_each_others_inverse(run, read_table, testing, trained, tmp_path):
    options = {**testing, **SMALL, **ADAM, "weights": str(trained / "model.pt"), "inverse": "symmetric"}

    run("inference.json", "breathing.json", **options, output_dir=str(tmp_path))

    (row,) = read_table(tmp_path / "metrics.csv")
    assert float(row["inverse_consistency_mm"]) < 0.5


@pytest.mark.parametrize("configs", [[], ["voxelmorph.json"], ["intensities.json"]])
def test_inference_has_the_network_of_the_training(workflow, configs):
    one, other = workflow("train.json", *configs, kind="train"), workflow("inference.json", *configs)

    for part in ("features", "estimator"):
        assert one.parser[f"network_def#{part}"] == other.parser[f"network_def#{part}"]
    assert one.parser["spacing"] == other.parser["spacing"]


def test_learn2optimise_starts_from_this_network_and_both_see_the_same_patients(workflow, bundles_dir):
    other = bundles_dir / "learn2optimise" / "configs"
    behind = json.loads((other / "pre_registered.json").read_text())
    training, inference = workflow("train.json", kind="train"), workflow("inference.json")

    assert behind["pre_registration_def"] == inference.parser["network_def#estimator"]
    of_other = json.loads((other / "train.json").read_text())
    for name in ("train_scans", "val_scans", "spacing", "seen_model", "held_out_model"):
        assert of_other[name] == training.parser[name]
    for name in ("evaluate.json", "breathing.json", "multi_gpu_train.json"):
        assert (other / name).read_text() == (other.parents[1] / "voxelmorph_pp" / "configs" / name).read_text()


def test_configs_have_the_properties_that_monai_asks_for(workflow, breathing_options, trained):
    inference = {"weights": str(trained / "model.pt"), **SMALL}
    training = {**breathing_options, **SMALL, "output_dir": str(trained / "checked")}
    for kind, name, options in (("infer", "inference.json", inference), ("train", "train.json", training)):
        running = workflow(name, kind=kind, **options)
        running.initialize()
        assert running.check_properties() == []
