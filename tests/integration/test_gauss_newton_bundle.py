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
from monai.engines import IterationEvents

SEMANTIC = {
    "network_def#filters": [4, 6, 8, 8],
    "patch": [24, 24, 24],
    "epochs": 1,
    "steps_per_epoch": 3,
    "val_interval": 1,
    "amp": False,
}
TRAINING = {
    "semantic_folds": 2,
    "semantic_options": SEMANTIC,
    "epochs": 2,
    "pairs_per_epoch": 2,
    "val_interval": 1,
    "val_cases": 2,
    "first_iterations": 2,
    "network_def#estimator#iterations": 4,
}
SMALL = {"segmentation_def#filters": [4, 6, 8, 8]}
METRICS = ["smooth_dice", "dice", "hd95", "sdlogj", "folding_percent"]


@pytest.fixture(scope="module")
def bundle(bundles_dir) -> Path:
    return bundles_dir / "gauss_newton"


@pytest.fixture(scope="module")
def trained(run, dataset, tmp_path_factory) -> Path:
    """Output of one whole training."""
    output = tmp_path_factory.mktemp("training")
    options = {**TRAINING, "dataset_dir": str(dataset), "output_dir": str(output)}
    run("train.json", kind="train", pictures=True, **options)
    return output


@pytest.fixture
def on_labels(dataset, tmp_path) -> dict:
    """Options of a training that takes the true labels for predictions, so that no segmentation is trained."""
    labels = {"dataset_dir": str(dataset), "predictions_dir": str(dataset / "labelsTr"), "output_dir": str(tmp_path)}
    return {**TRAINING, **labels, "epochs": 1, "tensorboard": False, "pictures": False}


def content(running: ConfigWorkflow, name: str):
    return running.parser.get_parsed_content(name)


@pytest.mark.parametrize(
    ("configs", "options"),
    [
        ((), {}),
        (("search_first.json",), {"network_def#estimator#half_width": 2}),
        (("labels.json",), {}),
        (("labels.json",), {"network_def#features#merged": False}),
        (("semantic.json", "predictions.json"), {}),
    ],
)
def test_kernels_that_are_given_bring_a_pair_closer(run, read_table, dataset, tmp_path, configs, options):
    if "predictions.json" in configs:
        options = {**options, "predictions_dir": str(dataset / "labelsTr")}

    run(
        *("inference.json", *configs, "evaluate.json"),
        dataset_dir=str(dataset),
        output_dir=str(tmp_path),
        **options,
    )

    (row,) = read_table(tmp_path / "metrics.csv")
    assert not row["error"]
    assert float(row["dice"]) > float(row["dice_before"]) + 5
    assert float(row["folding_percent"]) == 0
    (path,) = tmp_path.rglob("ddf.nii.gz")
    fixed = nib.load(dataset / "imagesTr" / "Balls_0006_0000.nii.gz")
    assert nib.load(path).shape == (*fixed.shape, 3)
    np.testing.assert_allclose(nib.load(path).affine, fixed.affine)


def test_both_directions_are_each_others_inverse(run, read_table, dataset, tmp_path):
    run("inference.json", dataset_dir=str(dataset), output_dir=str(tmp_path), inverse="symmetric")

    (row,) = read_table(tmp_path / "metrics.csv")
    assert float(row["inverse_consistency_mm"]) < 0.1


def test_the_search_in_front_knows_how_far_the_field_may_be_off_and_gauss_newton_alone_does_not(workflow, dataset):
    options = {"dataset_dir": str(dataset), "uncertainty": True}

    network = content(workflow("inference.json", "search_first.json", **options), "network")
    with pytest.raises(RuntimeError) as error:
        content(workflow("inference.json", **options), "network")

    assert network(torch.rand(1, 2, 12, 14, 16)).shape == (1, 9, 12, 14, 16)
    assert "knows no uncertainty" in str(error.value.__cause__)


def test_one_command_trains_segmentation_by_folds_then_kernels_and_joins_their_weights(trained):
    weights = torch.load(trained / "model.pt", weights_only=True)
    segmentation = torch.load(trained / "semantic" / "all" / "model.pt", weights_only=True)
    kernels = torch.load(trained / "best.pt", weights_only=True)

    # cases 6 and 7 are validation
    predictions = sorted(path.name for path in (trained / "semantic" / "predictions").iterdir())
    assert predictions == [f"Balls_{case:04d}_0000.nii.gz" for case in range(6)]
    parts = {f"preparation.network.{name}": value for name, value in segmentation.items()} | kernels
    assert weights.keys() == parts.keys()
    assert all(torch.equal(weights[name], value) for name, value in parts.items())
    # three slopes and the difference, two convolutions each, and the smoothness
    assert len(kernels) == 9


def test_the_log_has_a_row_per_epoch_with_official_metrics(read_table, trained):
    rows = read_table(trained / "training.csv")

    assert list(rows[0]) == ["epoch", "loss", "learning_rate", "seconds", *METRICS]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-3, 8e-4])
    summary = json.loads((trained / "training.json").read_text())
    assert summary["best"]["smooth_dice"] == max(float(row["smooth_dice"]) for row in rows)
    assert [path.name for path in sorted((trained / "pictures").iterdir())] == ["epoch_0001.png", "epoch_0002.png"]
    assert (trained / "tensorboard").exists() == (find_spec("tensorboard") is not None)


def test_a_training_goes_on_where_it_stopped_with_one_more_step_per_epoch(run, read_table, dataset, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "again")
    options = {**TRAINING, "epochs": 3, "dataset_dir": str(dataset), "output_dir": str(tmp_path / "again")}

    resumed = run("train.json", kind="train", **options)

    assert content(resumed, "train#trainer").state.iteration == 3 * 2
    # two in the first epoch, all four from the third on
    assert content(resumed, "network_def").estimator.training_iterations == 2 + 2
    rows = read_table(tmp_path / "again" / "training.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[:2] == read_table(trained / "training.csv")


def test_every_kernel_and_the_smoothness_are_trained(trained):
    checkpoint = torch.load(next((trained / "checkpoints").iterdir()), weights_only=False)

    moments = checkpoint["optimizer"]["state"]
    assert len(moments) == 9
    assert all(moment["exp_avg_sq"].min() > 0 for moment in moments.values())


def test_a_large_gradient_is_cut_to_the_norm_asked_for(workflow, on_labels):
    training = workflow("train.json", kind="train", **on_labels, gradient_norm=0.25)
    training.initialize()
    kernels = list(content(training, "network").parameters())
    for kernel in kernels:
        kernel.grad = torch.ones_like(kernel)

    content(training, "train#trainer").fire_event(IterationEvents.BACKWARD_COMPLETED)

    gradient = torch.cat([kernel.grad.flatten() for kernel in kernels])
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.25 / len(gradient) ** 0.5))


def test_training_pairs_are_deformed_together(workflow, dataset, on_labels):
    training = workflow("train.json", kind="train", **on_labels)
    subject = content(training, "subjects")[0]
    pair = {f"{side}{name}": path for side in ("fixed", "moving") for name, path in _keys(subject).items()}

    changed = content(training, "train#preprocessing")(pair)
    plain = content(training, "validate#preprocessing")(pair)

    for key in ("image", "label"):
        assert torch.equal(changed[key][0], changed[key][1])
        # labels stand for predictions here
        assert torch.equal(changed[key], changed["label"])
    assert changed["label"].shape != plain["label"].shape or not torch.equal(changed["label"], plain["label"])


def _keys(subject: dict[str, str]) -> dict[str, str]:
    return {"": subject["image"], "_label": subject["label"], "_prediction": subject["prediction"]}


@pytest.mark.parametrize("error", ["squared", "cross_entropy"])
def test_predictions_of_another_network_train_the_kernels_alone(run, read_table, dataset, on_labels, tmp_path, error):
    run("train.json", kind="train", **on_labels, **{"loss#error": error})

    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(name.startswith("estimator.") for name in weights)
    assert not (tmp_path / "semantic").exists()
    run(
        *("inference.json", "semantic.json", "learned.json", "predictions.json", "evaluate.json"),
        **{name: on_labels[name] for name in ("dataset_dir", "predictions_dir", "output_dir")},
        weights=str(tmp_path / "model.pt"),
    )
    (row,) = read_table(tmp_path / "metrics.csv")
    assert float(row["dice"]) > float(row["dice_before"]) + 5


@pytest.mark.parametrize("configs", [("semantic.json",), ("semantic.json", "learned.json")])
def test_trained_weights_register_the_validation_pair(run, read_table, dataset, trained, tmp_path, configs):
    run(
        *("inference.json", *configs, "evaluate.json"),
        dataset_dir=str(dataset),
        output_dir=str(tmp_path),
        weights=str(trained / "model.pt"),
        **SMALL,
    )

    (row,) = read_table(tmp_path / "metrics.csv")
    assert not row["error"]
    assert 0 < float(row["dice"]) <= 100


def test_learned_inference_is_the_network_that_was_trained(workflow, dataset, trained):
    training = workflow("train.json", kind="train", dataset_dir=str(dataset))
    options = {"weights": str(trained / "model.pt"), **SMALL}
    inference = workflow("inference.json", "semantic.json", "learned.json", "predictions.json", **options)
    one, other = content(training, "network_def"), content(inference, "network")
    one.load_state_dict(torch.load(trained / "best.pt", weights_only=True))
    predictions = torch.randint(0, 3, (1, 2, 12, 14, 16)).float()

    with torch.no_grad():
        fields = one.eval()(predictions), other.eval()(predictions)

    assert fields[0].abs().max() > 0.1
    torch.testing.assert_close(*fields)


@pytest.mark.parametrize("further", [("semantic.json",), ("semantic.json", "learned.json", "predictions.json")])
def test_weights_that_lack_a_part_are_refused_with_one_line(workflow, trained, tmp_path, further):
    weights = torch.load(trained / "model.pt", weights_only=True)
    lacking = "preparation" if further == ("semantic.json",) else "estimator"
    torch.save({name: value for name, value in weights.items() if not name.startswith(lacking)}, tmp_path / "part.pt")

    with pytest.raises(SystemExit, match="Give the weights that were trained with this config"):
        content(workflow("inference.json", *further, weights=str(tmp_path / "part.pt"), **SMALL), "network")


def test_two_processes_train_together_and_one_of_them_writes(train_on_two_processes, on_labels, tmp_path):
    train_on_two_processes(**on_labels)

    # each process takes half of the pairs of an epoch
    checkpoint = torch.load(tmp_path / "checkpoints" / "checkpoint_epoch=1.pt", weights_only=False)
    assert checkpoint["trainer"]["iteration"] == 1
    assert len(torch.load(tmp_path / "model.pt", weights_only=True)) == 9
    assert json.loads((tmp_path / "training.json").read_text())["processes"] == 2


def test_configs_have_the_properties_that_monai_asks_for(workflow, on_labels):
    for kind, name, options in (("infer", "inference.json", {}), ("train", "train.json", on_labels)):
        running = workflow(name, kind=kind, **options)
        running.initialize()
        assert running.check_properties() == []


def test_shipped_weights_are_small_and_fit_the_segmentation_network_and_the_learned_kernels(workflow, bundle):
    path = bundle / "models" / "model.pt"
    assert path.stat().st_size < 25e6

    network = content(workflow("inference.json", "semantic.json", "learned.json"), "network")

    weights = torch.load(path, weights_only=True)
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
