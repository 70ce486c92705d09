# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_reg_ext.networks.blocks import AdamRefiner, Learn2OptimiseEstimator, VoxelMorphPlusPlusEstimator

SMALL = {"optimiser_def#grid_spacing": 1, "optimiser_def#iterations": 2}
METRICS = ["tre_mm", "sdlogj", "folding_percent"]
ADAM = {"network_def#estimator#grid_spacing": 1, "network_def#estimator#iterations": 20}


@pytest.fixture(scope="module")
def bundle(bundles_dir) -> Path:
    return bundles_dir / "learn2optimise"


@pytest.fixture(scope="module")
def options(breathing_options) -> dict[str, object]:
    return {**breathing_options, **SMALL}


@pytest.fixture(scope="module")
def trained(run, options, tmp_path_factory) -> Path:
    """Output of one whole training."""
    output = tmp_path_factory.mktemp("training")
    run("train.json", kind="train", pictures=True, **options, output_dir=str(output))
    return output


@pytest.fixture(scope="module")
def testing(options, trained) -> dict[str, object]:
    """What the evaluation of the trained weights on two test patients' motions needs."""
    names = ("dataset_dir", "spacing", *SMALL)
    scans = {"test_scans": options["val_scans"], "limit": 2}
    return {**{name: options[name] for name in names}, **scans, "weights": str(trained / "model.pt")}


def content(running: ConfigWorkflow, name: str):
    return running.parser.get_parsed_content(name)


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_training_keeps_the_weights_of_its_best_epoch_and_a_log(read_table, trained):
    weights, best = (torch.load(trained / name, weights_only=True) for name in ("model.pt", "best.pt"))
    assert weights.keys() == best.keys()
    assert all(torch.equal(weights[name], best[name]) for name in weights)
    assert all(name.startswith("estimator.network.") for name in weights)

    rows = read_table(trained / "training.csv")
    assert list(rows[0]) == ["epoch", "loss", "learning_rate", "seconds", *METRICS]
    # half a cosine over two epochs
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.0005, 0.00025])
    summary = json.loads((trained / "training.json").read_text())
    assert summary["best"]["tre_mm"] == min(float(row["tre_mm"]) for row in rows)
    assert [path.name for path in sorted((trained / "pictures").iterdir())] == ["epoch_0001.png", "epoch_0002.png"]


def test_a_training_goes_on_where_it_stopped(run, read_table, options, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "again")

    resumed = run("train.json", kind="train", **{**options, "epochs": 3}, output_dir=str(tmp_path / "again"))

    assert content(resumed, "train#trainer").state.iteration == 3 * 2
    rows = read_table(tmp_path / "again" / "training.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[:2] == read_table(trained / "training.csv")


def test_a_training_can_begin_with_given_weights(run, options, trained, tmp_path):
    begin = {**options, "epochs": 1, "learning_rate": 0.0, "pretrained": str(trained / "model.pt"), "seed": 7}

    run("train.json", kind="train", **begin, output_dir=str(tmp_path))

    given, kept = (torch.load(folder / "model.pt", weights_only=True) for folder in (trained, tmp_path))
    assert all(torch.equal(kept[name], given[name]) for name in given)


def test_every_kernel_is_trained(trained):
    checkpoint = torch.load(next((trained / "checkpoints").iterdir()), weights_only=False)

    moments = [moment["exp_avg_sq"] for moment in checkpoint["optimizer"]["state"].values()]
    assert len(moments) == len(torch.load(trained / "model.pt", weights_only=True))
    assert all(moment.any() for moment in moments if moment.dim() > 1)


def test_mixed_precision_trains_as_full_precision_does(run, read_table, options, trained, tmp_path):
    settings = {**options, "epochs": 1, "tensorboard": False, "pictures": False, "output_dir": str(tmp_path)}

    run("train.json", kind="train", **settings, amp=True)

    (half,), (full, _) = read_table(tmp_path / "training.csv"), read_table(trained / "training.csv")
    assert float(half["loss"]) == pytest.approx(float(full["loss"]), rel=0.05)
    assert half["loss"] != full["loss"]


def test_test_patients_and_scans_are_not_those_of_the_training(workflow, options):
    training = workflow("train.json", kind="train", **options)
    testing = workflow("inference.json", "breathing.json", dataset_dir=options["dataset_dir"])

    models = [content(training, "seen_model"), content(training, "held_out_model"), content(testing, "test_model")]

    names = [{motion.name for motion in model.motions} for model in models]
    assert [len(of_model) for of_model in names] == [16, 4, 10]
    assert len(set.union(*names)) == 30
    # those that come with the bundle
    shipped = workflow("train.json", kind="train"), workflow("inference.json", "breathing.json")
    images = [
        {scan["image"] for scan in content(config, f"{use}_scans")}
        for config, use in zip(shipped, ("train", "test"), strict=True)
    ]
    assert not set.intersection(*images)


def test_half_of_the_training_pairs_have_no_masks_and_starts_differ(workflow, options):
    training = workflow("train.json", kind="train", **{**options, "pairs_per_epoch": 12})

    pairs = [content(training, "train#dataset")[number] for number in range(12)]

    assert 0 < sum("fixed_mask_working" in pair for pair in pairs) < 12
    assert all(("moving_mask_working" in pair) == ("fixed_mask_working" in pair) for pair in pairs)
    assert 0 < sum(bool(pair["initial_ddf"].any()) for pair in pairs) < 12
    assert all(pair["initial_ddf"].shape[1:] == pair["image"].shape[1:] for pair in pairs)


def test_the_test_motions_are_measured_by_their_exact_points(run, read_table, testing, tmp_path):
    run("inference.json", "evaluate.json", "breathing.json", **testing, output_dir=str(tmp_path))

    rows, summary = read_table(tmp_path / "metrics.csv"), summary_of(tmp_path)
    assert [row["error"] for row in rows] == ["", ""]
    assert summary["tre_mm_snapped"] == pytest.approx(np.mean([float(row["tre_mm_snapped"]) for row in rows]))
    assert summary["tre_mm"] != summary["tre_mm_snapped"]
    # 0.7 of the way between two pairs
    low, high = sorted(float(row["tre_mm"]) for row in rows)
    assert summary["tre30_mm"] == pytest.approx(low + 0.7 * (high - low))
    assert summary["folding_cases"] == 0
    assert summary["sdlogj"] > 0
    for row in rows:
        assert {"warped.nii.gz", "ddf.nii.gz", "field.nii.gz"} <= {
            path.name for path in (tmp_path / row["pair"]).iterdir()
        }


def test_adam_needs_no_weights_and_starts_where_the_network_does(run, workflow, read_table, testing, tmp_path):
    settings = {key: value for key, value in testing.items() if key != "weights"} | ADAM

    running = run(
        "inference.json", "adam.json", "evaluate.json", "breathing.json", **settings, output_dir=str(tmp_path)
    )

    network = content(running, "network")
    assert isinstance(network.estimator, AdamRefiner)
    assert not list(network.parameters())
    assert network.features.dilation == content(workflow("inference.json"), "network_def").features.dilation
    for row in read_table(tmp_path / "metrics.csv"):
        assert float(row["tre_mm"]) < float(row["tre_mm_before"])


def test_a_first_method_gives_the_start_and_adam_polishes(run, workflow, read_table, testing, tmp_path):
    first = {"pre_registration_def#grid_spacing": 1, "pre_registration_def#points": 20}
    torch.save(
        {f"estimator.{name}": value for name, value in VoxelMorphPlusPlusEstimator(12).state_dict().items()},
        tmp_path / "first.pt",
    )
    settings = {**testing, **first, "pre_registration_weights": str(tmp_path / "first.pt"), "limit": 1}

    behind = run(
        "inference.json",
        "pre_registered.json",
        "evaluate.json",
        "breathing.json",
        **settings,
        output_dir=str(tmp_path / "first"),
    )
    polish = {"network_def#refiner#grid_spacing": 1, "network_def#refiner#iterations": 2}
    polished = run(
        "inference.json",
        "refined.json",
        "evaluate.json",
        "breathing.json",
        **{**testing, **polish, "limit": 1},
        output_dir=str(tmp_path / "polished"),
    )

    network = content(behind, "network")
    assert isinstance(network.estimator, VoxelMorphPlusPlusEstimator)
    (optimiser,) = network.refiners
    assert isinstance(optimiser, Learn2OptimiseEstimator)
    trained = torch.load(testing["weights"], weights_only=True)
    assert all(torch.equal(trained[f"estimator.{name}"], value) for name, value in optimiser.state_dict().items())
    assert isinstance(content(polished, "network").refiners[0], AdamRefiner)
    for name in ("first", "polished"):
        (row,) = read_table(tmp_path / name / "metrics.csv")
        assert not row["error"]


def test_inference_has_the_network_of_the_training(workflow):
    one, other = (workflow("train.json", kind="train"), workflow("inference.json"))

    # trained iteration by iteration; where bfloat16 is safe in training is the engine's business
    training, inference = {"truncation": 1}, {"bfloat16": "@bfloat16"}
    assert one.parser["optimiser_def"] | inference == other.parser["optimiser_def"] | training
    assert one.parser["spacing"] == other.parser["spacing"]
    assert {**one.parser["network_def"], "symmetric": 0} == {**other.parser["network_def"], "symmetric": 0}
    weights = sum(weight.numel() for weight in content(one, "network_def").parameters())
    assert weights == 254_493


@pytest.mark.parametrize(
    ("fixed_points", "moving_points", "message"),
    [
        ([[-10, 10, 20], [-20, 20, 30]], [[-10, 10, 20]], "row i of fixed_points and of moving_points must be one"),
        ([[-500, 10, 20]], [[-10, 10, 20]], "1 of 1 points lie outside their image"),
        # voxels: the flipped axis has none of its mm above 0
        ([[10, 8, 9]], [[10, 8, 9]], "Is their space right"),
    ],
)
def test_points_that_cannot_be_right_are_named(
    run, read_table, breathing_dataset, testing, tmp_path, fixed_points, moving_points, message
):
    files = {}
    for side, points in (("fixed", fixed_points), ("moving", moving_points)):
        files[f"{side}_points"] = str(tmp_path / f"{side}.csv")
        np.savetxt(files[f"{side}_points"], points, delimiter=",")
        files[side] = str(breathing_dataset / "c.nii.gz")
    settings = {name: testing[name] for name in ("spacing", "weights", *SMALL)}

    with pytest.raises(SystemExit, match="1 of 1 pairs failed"):
        run("inference.json", "evaluate.json", **settings, **files, output_dir=str(tmp_path))

    (row,) = read_table(tmp_path / "metrics.csv")
    assert message in row["error"]


def test_two_real_scans_with_points_are_measured_by_the_same_config(
    run, read_table, breathing_dataset, testing, tmp_path
):
    points = tmp_path / "points.csv"
    np.savetxt(points, [[-30, 30, 30], [-50, 40, 20]], delimiter=",")
    pair = {side: str(breathing_dataset / "c.nii.gz") for side in ("fixed", "moving")}
    settings = {name: testing[name] for name in ("spacing", "weights", *SMALL)}

    run(
        "inference.json",
        "evaluate.json",
        **settings,
        **pair,
        fixed_points=str(points),
        moving_points=str(points),
        output_dir=str(tmp_path),
    )

    (row,) = read_table(tmp_path / "metrics.csv")
    assert float(row["tre_mm_before"]) == 0
    assert float(row["tre_mm"]) < 4
    field = nib.load(tmp_path / row["pair"] / "ddf.nii.gz")
    np.testing.assert_allclose(field.affine, nib.load(pair["fixed"]).affine)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset_dir": ""}, "give the folder that holds the scans"),
        ({"patients_dir": "nowhere"}, "no l2r_lung_keypoints.npz in nowhere"),
        ({"train_scans": [{"image": "d.nii.gz", "mask": "a_mask.nii.gz"}]}, "d.nii.gz"),
    ],
)
def test_a_training_without_its_data_ends_with_one_line(workflow, options, tmp_path, changed, message):
    running = workflow("train.json", kind="train", **{**options, **changed}, output_dir=str(tmp_path))

    with pytest.raises(SystemExit, match=message) as caught:
        content(running, "train#dataset")
    assert "\n" not in str(caught.value)


def test_fewer_than_four_keypoints_are_refused(workflow, options, tmp_path):
    running = workflow("train.json", kind="train", **{**options, "keypoints": 3}, output_dir=str(tmp_path))

    with pytest.raises(RuntimeError) as caught:
        content(running, "train#dataset")
    assert "must be at least 4, got 3" in str(caught.value.__cause__ or caught.value)


def test_two_processes_train_together_and_one_of_them_writes(train_on_two_processes, options, tmp_path):
    train_on_two_processes(**{**options, "epochs": 1, "tensorboard": False, "pictures": False, "output_dir": tmp_path})

    # each process takes half of the pairs of an epoch
    checkpoint = torch.load(tmp_path / "checkpoints" / "checkpoint_epoch=1.pt", weights_only=False)
    assert checkpoint["trainer"]["iteration"] == 1
    assert (tmp_path / "model.pt").is_file()
    assert json.loads((tmp_path / "training.json").read_text())["processes"] == 2


def test_configs_have_the_properties_that_monai_asks_for(workflow, options, testing, trained):
    inference = {name: testing[name] for name in ("weights", *SMALL)}
    for kind, name, given in (("infer", "inference.json", inference), ("train", "train.json", options)):
        running = workflow(name, kind=kind, **given, output_dir=str(trained / kind))
        running.initialize()
        assert running.check_properties() == []
