# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
from collections.abc import Callable
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_reg_ext.handlers.report_layout import ReportLayout
from monai_reg_ext.handlers.validation_picture import COLUMNS, DOTS_PER_INCH

NETWORK = {"network_def#filters": [4, 6, 8, 8]}
SEMANTIC = {**NETWORK, "patch": [24, 24, 24], "epochs": 1, "steps_per_epoch": 3, "val_interval": 1, "amp": False}
TRAINING = {
    "semantic_folds": 2,
    "semantic_options": SEMANTIC,
    "epochs": 2,
    "pairs_per_epoch": 2,
    "val_interval": 1,
    "val_cases": 2,
    "learning_rate": 0.01,
    "network_def#estimator#half_width": 2,
}
MLFLOW = find_spec("mlflow") is not None
TRACKING = "mlflow" if MLFLOW else None
METRICS = ["smooth_dice", "dice", "hd95", "sdlogj", "folding_percent"]


@pytest.fixture(scope="module")
def bundle(bundles_dir) -> Path:
    return bundles_dir / "fused_convex"


@pytest.fixture(scope="module")
def trained(run, dataset, tmp_path_factory) -> Path:
    """Output of one whole training, tracked by all that is installed."""
    output = tmp_path_factory.mktemp("training")
    options = {**TRAINING, "dataset_dir": str(dataset), "output_dir": str(output), "tracking": TRACKING}
    run("train.json", kind="train", pictures=True, **options)
    return output


@pytest.fixture(scope="module")
def untracked(run, dataset, tmp_path_factory) -> Path:
    """Output of the same training with all tracking switched off."""
    output = tmp_path_factory.mktemp("untracked")
    options = {**TRAINING, "dataset_dir": str(dataset), "output_dir": str(output)}
    run("train.json", kind="train", **options, tensorboard=False)
    return output


def test_noise_does_not_keep_training_pairs_from_being_cropped_to_the_scans(workflow, dataset, tmp_path):
    """As at inference: the fusion's instance norm depends on the field of view."""
    shutil.copytree(dataset, tmp_path / "wide")
    for file in (tmp_path / "wide").glob("*/*.nii.gz"):
        small = nib.load(file)
        nib.save(nib.Nifti1Image(np.pad(np.asarray(small.dataobj), 12), small.affine), file)
    training = workflow(
        "train.json",
        kind="train",
        dataset_dir=str(tmp_path / "wide"),
        predictions_dir=str(tmp_path / "wide" / "labelsTr"),
        val_cases=2,
        **{f"train#intensity_transforms#{index}#prob": 1.0 for index in range(8)},
        **{"train#spatial_transforms#0#prob": 0.0},
    )
    pair = training.parser.get_parsed_content("train#dataset")[0]
    voxel = np.linalg.norm(pair["image"].affine[:3, :3], axis=0)
    bodies = np.array([29, 25, 27]) * [1.5, 2.0, 1.0]  # both ellipsoids, in mm
    assert (np.array(pair["image"].shape[1:]) <= bodies / voxel + 2 * 4 + 2).all()
    assert pair["image"].shape[1:] == pair["label"].shape[1:]


def test_one_command_trains_segmentation_by_folds_then_fusion_and_joins_their_weights(dataset, trained):
    # cases 6 and 7 are validation
    predictions = sorted(path.name for path in (trained / "semantic" / "predictions").iterdir())
    assert predictions == [f"Balls_{case:04d}_0000.nii.gz" for case in range(6)]
    predicted = nib.load(trained / "semantic" / "predictions" / predictions[0])
    image = nib.load(dataset / "imagesTr" / predictions[0])
    assert predicted.shape == image.shape
    np.testing.assert_allclose(predicted.affine, image.affine)
    assert set(np.unique(predicted.dataobj)) <= {0, 1, 2}

    weights = torch.load(trained / "model.pt", weights_only=True)
    segmentation = torch.load(trained / "semantic" / "all" / "model.pt", weights_only=True)
    fusion = torch.load(trained / "best.pt", weights_only=True)
    assert len(weights) == len(segmentation) + len(fusion)
    for name, value in segmentation.items():
        assert torch.equal(weights[f"preparation.network.{name}"], value)
    assert all(torch.equal(weights[name], value) for name, value in fusion.items())


def test_both_scans_of_a_training_pair_were_segmented_by_one_network(workflow, dataset, trained):
    options = {**TRAINING, "val_cases": 1, "semantic_dir": str(trained / "semantic"), "dataset_dir": str(dataset)}
    drawn_by = workflow("train.json", kind="train", **options).parser.get_parsed_content("train#dataset")

    pairs = {drawn_by.draw(np.random.default_rng(seed))["pair"] for seed in range(60)}

    # two folds take turns; the last case of the second one is for validation
    by_fold = [pair for cases in ([0, 2, 4], [1, 3]) for pair in permutations(cases, 2)]
    assert pairs == {"__".join(f"Balls_{case:04d}_0000" for case in pair) for pair in by_fold}


def test_a_training_goes_on_where_it_stopped(run, read_table, dataset, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "again")
    options = {**TRAINING, "epochs": 3, "dataset_dir": str(dataset), "output_dir": str(tmp_path / "again")}

    resumed = run("train.json", kind="train", **options)

    assert resumed.parser.get_parsed_content("train#trainer").state.iteration == 3 * 2
    assert (tmp_path / "again" / "checkpoints" / "checkpoint_epoch=3.pt").is_file()
    assert [row["epoch"] for row in read_table(tmp_path / "again" / "training.csv")] == ["1", "2", "3"]
    assert read_table(tmp_path / "again" / "training.csv")[:2] == read_table(trained / "training.csv")


def test_the_same_seed_trains_the_same_weights_whatever_tracks_it(trained, untracked):
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (trained, untracked))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def column(read_table) -> Callable[[Path, str], list[float]]:
    """Values of one column in the log of a training."""
    return lambda folder, name: [float(row[name]) for row in read_table(folder / "training.csv")]


def test_the_log_of_a_training_needs_no_package(column, read_table, untracked):
    columns = ["epoch", "loss", "learning_rate", "seconds"]

    assert list(read_table(untracked / "training.csv")[0]) == [*columns, *METRICS]
    # half a cosine over two epochs
    assert column(untracked, "learning_rate") == pytest.approx([0.01, 0.005])
    summary = json.loads((untracked / "training.json").read_text())
    scores = np.subtract(column(untracked, "dice"), 20 * np.array(column(untracked, "sdlogj")))
    np.testing.assert_allclose(column(untracked, "smooth_dice"), scores, rtol=1e-5)
    assert summary["best"]["smooth_dice"] == max(column(untracked, "smooth_dice"))
    assert summary["seed"] == 0
    assert list(read_table(untracked / "semantic" / "fold0" / "training.csv")[0]) == [*columns, "dice"]
    assert list(read_table(untracked / "semantic" / "all" / "training.csv")[0]) == columns


def test_switched_off_tracking_leaves_no_files(untracked):
    kept = {"best.pt", "model.pt", "training.csv", "training.json", "checkpoint_epoch=1.pt", "checkpoint_epoch=2.pt"}

    files = {path.name for path in untracked.rglob("*") if path.is_file() and path.parent.name != "predictions"}

    assert files == kept


def events(folder: Path):
    """What TensorBoard would show of a training."""
    name = "tensorboard.backend.event_processing.event_accumulator"
    module = pytest.importorskip(name, reason="tensorboard is not installed")
    return module.EventAccumulator(str(folder / "tensorboard")).Reload()


def test_tensorboard_shows_losses_learning_rate_metrics_and_the_pair(column, trained):
    shown = events(trained)

    steps, losses = zip(*((event.step, event.value) for event in shown.Scalars("train_loss")), strict=True)
    assert steps == (1, 2, 3, 4)
    assert column(trained, "loss") == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])
    assert [event.value for event in shown.Scalars("learning_rate")] == pytest.approx([0.01, 0.01, 0.005, 0.005])
    for name in ("loss", *METRICS):
        assert [event.step for event in shown.Scalars(name)] == [1, 2]
        assert [event.value for event in shown.Scalars(name)] == pytest.approx(column(trained, name))
    assert [event.step for event in shown.Images("validation_pair")] == [1, 2]
    assert shown.Tags()["tensors"] == ["summary/text_summary"]
    for name, validated in (("fold0", {"dice"}), ("all", set())):
        scalars = set(events(trained / "semantic" / name).Tags()["scalars"])
        assert scalars == {"train_loss", "learning_rate", "loss"} | validated


@pytest.mark.skipif(not MLFLOW, reason="mlflow is not installed")
def test_mlflow_keeps_a_run_per_training_with_metrics_log_and_pictures(mlflow_metric, column, trained):
    with sqlite3.connect(trained / "mlruns.db") as database:
        runs = dict(database.execute("SELECT name, artifact_uri FROM runs WHERE status = 'FINISHED'"))
    folds = [trained / "semantic" / name for name in ("fold0", "fold1")]
    assert set(runs) == {str(folder) for folder in (trained, *folds, trained / "semantic" / "all")}
    assert all(mlflow_metric(trained, name) == column(trained, name) for name in ("loss", *METRICS))
    assert all(mlflow_metric(trained, name, fold) == column(fold, name) for fold in folds for name in ("loss", "dice"))
    losses = mlflow_metric(trained, "train_loss")  # of every step, once
    assert column(trained, "loss") == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])
    assert mlflow_metric(trained, "lr_group_0") == pytest.approx([0.01, 0.01, 0.005, 0.005])
    artifacts = Path(runs[str(trained)].removeprefix("file://"))
    for name in ("training.csv", "training.json"):
        assert (artifacts / name).read_text() == (trained / name).read_text()
    assert sorted(path.name for path in (artifacts / "pictures").iterdir()) == ["epoch_0001.png", "epoch_0002.png"]


def test_pictures_show_how_registration_reduces_the_difference(trained):
    layout = ReportLayout([(52, 45), (28, 45), (28, 52)], len(COLUMNS))  # mm of axial, coronal and sagittal slices
    with Image.open(trained / "pictures" / "epoch_0002.png") as image:
        pixels = np.asarray(image.convert("L"), dtype=float)

    def brightness(heading: str) -> float:
        left, top = layout.left(COLUMNS.index(heading)), layout.middle(0) - layout.row_heights[0] / 2
        right, bottom = left + layout.column_width, layout.middle(2) + layout.row_heights[2] / 2
        left, top, right, bottom = (round(DOTS_PER_INCH * inches) for inches in (left, top, right, bottom))
        return pixels[top:bottom, left:right].mean()

    # on a dark page what differs shines
    assert brightness("Difference before") > 1.2 * brightness("Difference after")


def test_predictions_of_another_network_train_the_fusion_alone(run, dataset, tmp_path):
    labels = str(dataset / "labelsTr")

    run(
        "train.json",
        kind="train",
        **{**TRAINING, "epochs": 1},
        dataset_dir=str(dataset),
        output_dir=str(tmp_path),
        predictions_dir=labels,
    )

    assert all(name.startswith("features.fusion.") for name in torch.load(tmp_path / "model.pt", weights_only=True))
    assert not (tmp_path / "semantic").exists()


def test_two_processes_train_together_and_one_of_them_writes(train_on_two_processes, dataset, tmp_path):
    train_on_two_processes(**TRAINING, tracking=TRACKING, dataset_dir=dataset, output_dir=tmp_path)

    # each process takes half of the pairs of an epoch
    checkpoint = torch.load(tmp_path / "checkpoints" / "checkpoint_epoch=2.pt", weights_only=False)
    assert checkpoint["trainer"]["iteration"] == 2
    assert (tmp_path / "model.pt").is_file()
    assert json.loads((tmp_path / "training.json").read_text())["processes"] == 2
    assert [path.name for path in sorted((tmp_path / "pictures").iterdir())] == ["epoch_0001.png", "epoch_0002.png"]
    assert len(list((tmp_path / "tensorboard").glob("*"))) == (find_spec("tensorboard") is not None)
    if MLFLOW:
        with sqlite3.connect(tmp_path / "mlruns.db") as database:
            names = [name for (name,) in database.execute("SELECT name FROM runs")]
        assert len(names) == len(set(names)) == 1 + 3  # the fusion, two folds, all cases


@pytest.mark.parametrize("settings", [(), ("search_only.json",), ("semantic.json",), ("concatenated.json",)])
def test_trained_weights_register_the_validation_pair(run, dataset, trained, tmp_path, settings):
    options = {"labels": [0, 1, 2], "weights": str(trained / "model.pt"), "segmentation_def#filters": [4, 6, 8, 8]}

    run(
        *("inference.json", *settings, "evaluate.json"),
        dataset_dir=str(dataset),
        output_dir=str(tmp_path),
        **options,
    )

    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert not row["error"]
    assert 0 < float(row["dice"]) <= 100


def test_predictions_from_files_take_the_place_of_the_segmentation_network(run, dataset, trained, tmp_path):
    run(
        *("inference.json", "predictions.json", "evaluate.json"),
        dataset_dir=str(dataset),
        output_dir=str(tmp_path),
        predictions_dir=str(dataset / "labelsTr"),
        weights=str(trained / "model.pt"),
    )

    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["dice"]) > float(row["dice_before"])


def test_the_uncertainty_is_a_map_of_mm_on_the_fixed_grid(run, dataset, trained, tmp_path):
    options = {"labels": [0, 1, 2], "weights": str(trained / "model.pt"), "segmentation_def#filters": [4, 6, 8, 8]}

    run(
        "inference.json",
        dataset_dir=str(dataset),
        output_dir=str(tmp_path),
        uncertainty=True,
        inverse="symmetric",
        **options,
    )

    (path,) = tmp_path.rglob("uncertainty.nii.gz")
    found, fixed = nib.load(path), nib.load(dataset / "imagesTr" / "Balls_0006_0000.nii.gz")
    assert found.shape == fixed.shape
    np.testing.assert_allclose(found.affine, fixed.affine)
    values = found.get_fdata()
    # where costs tell nothing two cells of two voxels to every side are left, and their neighbours narrow it
    assert 0 < values.min() <= values.max() < 4 * np.linalg.norm([1.5, 2.0, 1.0])


def test_configs_have_the_properties_that_monai_asks_for(workflow, dataset, trained):
    options = {**TRAINING, "dataset_dir": str(dataset), "output_dir": str(trained)}
    for kind, names in (("infer", ["inference.json"]), ("train", ["train.json"])):
        running = workflow(*names, kind=kind, **(options if kind == "train" else {}))
        running.initialize()
        assert running.check_properties() == []


def test_shipped_weights_are_small_and_fit_the_network(workflow, bundle):
    path = bundle / "models" / "model.pt"
    assert path.stat().st_size < 25e6

    network = workflow("inference.json").parser.get_parsed_content("network")

    weights = torch.load(path, weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def broken(dataset: Path, tmp_path: Path, **changes) -> Path:
    """A copy of the data whose JSON differs."""
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    json_path = copy / "Balls_dataset.json"
    content = {**json.loads(json_path.read_text()), **changes}
    json_path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return copy


def training_error(run: Callable, dataset: Path, tmp_path: Path, **options) -> str:
    with pytest.raises(SystemExit) as error:
        run(
            "train.json",
            kind="train",
            **{**TRAINING, "dataset_dir": str(dataset), "output_dir": str(tmp_path / "output"), **options},
        )
    message = str(error.value)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def test_a_training_json_without_labels_is_refused(run, dataset, tmp_path):
    assert "names no labels" in training_error(run, broken(dataset, tmp_path, labels=None), tmp_path)


def test_one_training_case_is_refused(run, dataset, tmp_path):
    one = json.loads((dataset / "Balls_dataset.json").read_text())["training"][:1]

    assert "got 1" in training_error(run, broken(dataset, tmp_path, training=one), tmp_path)


def test_a_class_that_the_network_does_not_know_is_refused_with_its_file(run, dataset, tmp_path):
    message = training_error(run, dataset, tmp_path, labels=[0, 1], semantic_options={**SEMANTIC, "labels": [0, 1]})

    assert "holds the classes [2]" in message
    assert "Balls_0" in message


def test_predictions_that_are_missing_are_named(run, dataset, tmp_path):
    message = training_error(run, dataset, tmp_path, predictions_dir="none")

    assert "6 of 6 predicted label maps are missing" in message


def test_label_bias_is_measured_with_a_class_that_training_has_not_seen(
    bundles_dir, dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(bundles_dir.parent / "benchmarks"))
    label_bias = pytest.importorskip("label_bias", reason="fire is not installed", exc_type=ImportError)
    options = {
        **TRAINING,
        "semantic_folds": 2,
        "semantic_options": {**SEMANTIC, "network_def#filters": [16, 32, 64, 96]},
    }

    label_bias.main("", str(dataset), str(tmp_path / "out"), unseen=[2], training=options)

    assert "1 classes seen, not seen: [2]" in capsys.readouterr().out
    weights = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    # MIND-SSC, background and one class
    assert weights["features.fusion.0.conv.weight"].shape[1] == 12 + 2


def test_a_drawn_half_is_the_same_for_a_seed_and_another_one_for_another(bundles_dir, monkeypatch):
    monkeypatch.syspath_prepend(str(bundles_dir.parent / "benchmarks"))
    label_bias = pytest.importorskip("label_bias", reason="fire is not installed", exc_type=ImportError)
    labels = list(range(21, 48))

    halves = [label_bias.drawn_half(labels, seed) for seed in (0, 0, 1)]

    assert halves[0] == halves[1] != halves[2]
    assert all(len(set(half)) == 13 and set(half) < set(labels) for half in halves)
