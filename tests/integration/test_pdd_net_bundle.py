# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_reg_ext.losses import NonLocalFeatureLoss, NonLocalLabelLoss, WarpedLabelLoss
from monai_reg_ext.networks.blocks import FlowNetEstimator, MindSSC, PlanarMeanFieldEstimator
from monai_reg_ext.networks.nets import SegmentationTraining

WINDOW = {"points": [7, 6, 8], "labels": 5, "reach": 6}
ESTIMATOR = {f"network_def#estimator#{name}": value for name, value in WINDOW.items()}
CHANNELS = {"channels": 4}
BOTH_WARPS = {f"network_def#estimator#{warp}#{name}": WINDOW[name] for warp in (0, 1) for name in ("points", "labels")}
TRAINING = {"epochs": 2, "pairs_per_epoch": 2, "val_interval": 1, "val_cases": 2, **ESTIMATOR, **CHANNELS}
QUICKLY = {"epochs": 1, "pairs_per_epoch": 1, "val_interval": 1, "val_cases": 2, "tensorboard": False}
METRICS = ["dice", "hd95", "sdlogj", "folding_percent"]
MLFLOW = find_spec("mlflow") is not None
TRACKING = "mlflow" if MLFLOW else None

FLOW_NET = ESTIMATOR | CHANNELS | {"network_def#estimator#hidden": [8, 6]}

# small networks of all that is trained differently
VARIANTS = {
    "mind_features.json": ESTIMATOR,
    "obelisk_features.json": ESTIMATOR | CHANNELS,
    "without_mean_field.json": ESTIMATOR | CHANNELS,
    "without_non_local_loss.json": ESTIMATOR | CHANNELS,
    "flow_net.json": FLOW_NET,
    "planar.json": ESTIMATOR | CHANNELS,
    "unsupervised.json": ESTIMATOR | CHANNELS,
}


@pytest.fixture(scope="module")
def bundle(bundles_dir) -> Path:
    return bundles_dir / "pdd_net"


@pytest.fixture(scope="module")
def trained(run, dataset, tmp_path_factory) -> Path:
    """Output of one whole training, tracked by all that is installed."""
    output = tmp_path_factory.mktemp("training")
    options = {**TRAINING, "dataset_dir": str(dataset), "output_dir": str(output), "tracking": TRACKING}
    run("train.json", kind="train", pictures=True, **options)
    return output


def content(running: ConfigWorkflow, name: str):
    return running.parser.get_parsed_content(name)


def test_a_training_keeps_the_weights_of_its_best_epoch_and_a_log(read_table, trained):
    weights, best = (torch.load(trained / name, weights_only=True) for name in ("model.pt", "best.pt"))
    assert weights.keys() == best.keys()
    assert all(torch.equal(weights[name], best[name]) for name in weights)

    rows = read_table(trained / "training.csv")
    assert list(rows[0]) == ["epoch", "loss", "learning_rate", "seconds", *METRICS]
    # half a cosine over two epochs
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.003, 0.0015])
    summary = json.loads((trained / "training.json").read_text())
    assert summary["best"]["dice"] == max(float(row["dice"]) for row in rows)
    assert [path.name for path in sorted((trained / "pictures").iterdir())] == ["epoch_0001.png", "epoch_0002.png"]
    assert (trained / "tensorboard").exists() == (find_spec("tensorboard") is not None)


@pytest.mark.skipif(not MLFLOW, reason="mlflow is not installed")
def test_mlflow_shows_the_loss_of_steps_whose_outputs_are_not_taken_apart(mlflow_metric, read_table, trained):
    losses = mlflow_metric(trained, "train_loss")

    means = [float(row["loss"]) for row in read_table(trained / "training.csv")]
    assert len(losses) == TRAINING["epochs"] * TRAINING["pairs_per_epoch"] == 4
    assert means == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])


def test_a_training_goes_on_where_it_stopped(run, read_table, dataset, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "again")
    options = {**TRAINING, "epochs": 3, "dataset_dir": str(dataset), "output_dir": str(tmp_path / "again")}

    resumed = run("train.json", kind="train", **options)

    assert content(resumed, "train#trainer").state.iteration == 3 * 2
    rows = read_table(tmp_path / "again" / "training.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[:2] == read_table(trained / "training.csv")


def test_every_weight_but_those_without_effect_is_trained(workflow, dataset, trained):
    options = {**TRAINING, "dataset_dir": str(dataset)}
    start = workflow("train.json", kind="train", **options)
    torch.manual_seed(0)
    names = {id(weight): name for name, weight in content(start, "network_def").named_parameters()}
    # in the order of the optimiser's groups
    names = [names[id(weight)] for group in content(start, "optimizer").param_groups for weight in group["params"]]

    checkpoint = torch.load(next((trained / "checkpoints").iterdir()), weights_only=False)

    moments = checkpoint["optimizer"]["state"]
    still = [name for number, name in enumerate(names) if not moments[number]["exp_avg_sq"].any()]
    # a constant added to both images' features does not change their difference
    assert still in ([], ["features.head.bias"])


def test_mixed_precision_trains_as_full_precision_does(run, read_table, dataset, trained, tmp_path):
    options = {**TRAINING, "epochs": 1, "tensorboard": False, "dataset_dir": str(dataset), "output_dir": str(tmp_path)}

    run("train.json", kind="train", **options, amp=True)

    (half,), (full, _) = read_table(tmp_path / "training.csv"), read_table(trained / "training.csv")
    assert float(half["loss"]) == pytest.approx(float(full["loss"]), rel=0.05)
    assert half["loss"] != full["loss"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_and_its_weights_register(run, read_table, dataset, tmp_path, name):
    options = {**VARIANTS[name], "dataset_dir": str(dataset), "output_dir": str(tmp_path)}

    run("train.json", name, kind="train", **QUICKLY, **options)
    run("inference.json", name, "evaluate.json", **options, weights=str(tmp_path / "model.pt"))

    (row,) = read_table(tmp_path / "metrics.csv")
    assert not row["error"]
    assert 0 < float(row["dice"]) <= 100


@pytest.mark.parametrize(
    ("settings", "network", "amp"),
    [((), ESTIMATOR | CHANNELS, True), (("flow_net.json",), FLOW_NET, False), (("flow_net.json",), FLOW_NET, True)],
)
def test_features_learn_to_segment_besides(run, workflow, dataset, tmp_path, settings, network, amp):
    options = {**network, "dataset_dir": str(dataset), "output_dir": str(tmp_path), "amp": amp}

    training = run("train.json", *settings, "train_segmenting.json", kind="train", **QUICKLY, **options)

    assert isinstance(content(training, "training_def"), SegmentationTraining)
    moments = content(training, "optimizer").state
    of_classes = [weight for name, weight in content(training, "training_def").named_parameters() if "classes" in name]
    assert all(moments[weight]["exp_avg_sq"].any() for weight in of_classes)
    # what is kept is the registration alone
    kept = torch.load(tmp_path / "model.pt", weights_only=True)
    assert kept.keys() == content(training, "network_def").state_dict().keys()
    content(workflow("inference.json", *settings, weights=str(tmp_path / "model.pt"), **network), "network")


@pytest.mark.parametrize("more_channels", [False, True])
def test_features_can_begin_with_those_of_a_segmentation(run, workflow, dataset, tmp_path, more_channels):
    options = {"dataset_dir": str(dataset), **ESTIMATOR}
    segmenting = content(workflow("train.json", kind="train", **options), "network_def").features.network
    torch.save(segmenting.state_dict(), tmp_path / "segmenting.pt")
    options |= QUICKLY | {"learning_rate": 0.0, "segmentation": str(tmp_path / "segmenting.pt"), "seed": 7}
    options |= CHANNELS if more_channels else {}

    run("train.json", kind="train", output_dir=str(tmp_path), **options)

    kept = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, weight in segmenting.state_dict().items():
        if not more_channels or not name.startswith("output_block"):
            assert torch.equal(kept[f"features.network.{name}"], weight)


def test_variants_change_what_their_names_say(workflow, dataset):
    def part(variant: str, name: str):
        running = workflow("train.json", variant, kind="train", dataset_dir=str(dataset), **VARIANTS[variant])
        return content(running, name)

    assert isinstance(part("mind_features.json", "network_def").features, MindSSC)
    without = part("without_mean_field.json", "network_def").estimator
    cost = torch.rand(1, 5, 5, 5, 7, 6, 8)
    changed = cost.clone()
    changed[..., 3, 2, 4] = 0
    differs = (without.mean_field(cost) != without.mean_field(changed)).flatten(0, 3).any(0)
    assert differs.nonzero().tolist() == [[3, 2, 4]]
    assert isinstance(part("flow_net.json", "network_def").estimator, FlowNetEstimator)
    planar = part("planar.json", "network_def").estimator
    assert isinstance(planar, PlanarMeanFieldEstimator)
    assert planar.mean_field.settings["averages"] == 1
    pair = part("unsupervised.json", "train#dataset")[0]
    assert torch.equal(pair["label"], pair["image"])
    losses = [
        type(part(name, "loss"))
        for name in ("planar.json", "unsupervised.json", "without_non_local_loss.json", "flow_net.json")
    ]
    assert losses == [NonLocalLabelLoss, NonLocalFeatureLoss, WarpedLabelLoss, WarpedLabelLoss]


@pytest.mark.parametrize("name", [None, "abdomen_mr.json", *VARIANTS])
def test_inference_looks_at_the_same_window_as_training(workflow, dataset, name):
    configs = [] if name is None else [name]
    one = content(workflow("train.json", *configs, kind="train", dataset_dir=str(dataset)), "network_def")
    other = content(workflow("inference.json", *configs), "network_def")

    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (one, other)]
    assert shapes[0] == shapes[1]
    # a training takes fewer points
    for setting in ("labels", "reach", "grid_spacing"):
        assert getattr(one.estimator, setting) == getattr(other.estimator, setting)


@pytest.mark.parametrize(
    ("settings", "network"),
    [
        ((), ESTIMATOR),
        (("search_only.json",), ESTIMATOR),
        (("probability_refiner.json",), ESTIMATOR),
        (("planar.json",), ESTIMATOR),
        (("two_warps.json",), BOTH_WARPS),
    ],
)
def test_trained_weights_register_the_validation_pair(run, read_table, dataset, trained, tmp_path, settings, network):
    options = {"weights": str(trained / "model.pt"), **CHANNELS, **network}

    run(
        "inference.json",
        *settings,
        "evaluate.json",
        dataset_dir=str(dataset),
        output_dir=str(tmp_path),
        **options,
    )

    (row,) = read_table(tmp_path / "metrics.csv")
    assert not row["error"]
    assert 0 < float(row["dice"]) <= 100


def test_the_second_warp_has_the_weights_of_the_first_and_a_smaller_window(workflow, trained):
    options = {"weights": str(trained / "model.pt"), **CHANNELS, **BOTH_WARPS}

    network = content(workflow("inference.json", "two_warps.json", **options), "network")

    (second,) = network.later_estimators
    assert second.mean_field is network.estimator.mean_field
    assert max(second.reach) < min(network.estimator.reach)
    weights = torch.load(trained / "model.pt", weights_only=True)
    assert torch.equal(second.mean_field.message_weight, weights["estimator.mean_field.message_weight"])


def test_the_uncertainty_is_a_map_of_mm_on_the_fixed_grid(run, dataset, trained, tmp_path):
    options = {"weights": str(trained / "model.pt"), **CHANNELS, **ESTIMATOR, "uncertainty": True}

    run("inference.json", dataset_dir=str(dataset), output_dir=str(tmp_path), **options)

    (path,) = tmp_path.rglob("uncertainty.nii.gz")
    found, fixed = nib.load(path), nib.load(dataset / "imagesTr" / "Balls_0006_0000.nii.gz")
    assert found.shape == fixed.shape
    np.testing.assert_allclose(found.affine, fixed.affine)
    values = found.get_fdata()
    # the corner of the window: 6 voxels along each axis
    assert 0 < values.min() <= values.max() < 6 * np.linalg.norm([1.5, 2.0, 1.0])


def test_both_directions_are_each_others_inverse(run, read_table, dataset, trained, tmp_path):
    options = {"weights": str(trained / "model.pt"), **CHANNELS, **ESTIMATOR, "inverse": "symmetric"}

    run("inference.json", dataset_dir=str(dataset), output_dir=str(tmp_path), **options)

    (row,) = read_table(tmp_path / "metrics.csv")
    assert float(row["inverse_consistency_mm"]) < 0.1


def test_weights_of_another_variant_are_refused_with_one_line(workflow, trained):
    options = {"weights": str(trained / "model.pt"), **ESTIMATOR}

    with pytest.raises(SystemExit, match="Give the weights that were trained with this config"):
        content(workflow("inference.json", "mind_features.json", **options), "network")


def test_two_processes_train_together_and_one_of_them_writes(train_on_two_processes, dataset, tmp_path):
    train_on_two_processes(
        **{**TRAINING, "epochs": 1, "tensorboard": False, "dataset_dir": dataset, "output_dir": tmp_path}
    )

    # each process takes half of the pairs of an epoch
    checkpoint = torch.load(tmp_path / "checkpoints" / "checkpoint_epoch=1.pt", weights_only=False)
    assert checkpoint["trainer"]["iteration"] == 1
    assert (tmp_path / "model.pt").is_file()
    assert json.loads((tmp_path / "training.json").read_text())["processes"] == 2
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["epoch_0001.png"]


def test_configs_have_the_properties_that_monai_asks_for(workflow, dataset, trained):
    training = {**TRAINING, "dataset_dir": str(dataset), "output_dir": str(trained)}
    inference = {"weights": str(trained / "model.pt"), **CHANNELS, **ESTIMATOR}
    for kind, name, options in (("infer", "inference.json", inference), ("train", "train.json", training)):
        running = workflow(name, kind=kind, **options)
        running.initialize()
        assert running.check_properties() == []
