# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import math

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointSaver, MetricsSaver

from monai_reg_ext.handlers import (
    FoldingHandler,
    Learn2RegDiceHandler,
    Learn2RegHD95Handler,
    PairMetricHandler,
    SDlogJHandler,
    TREHandler,
)
from monai_reg_ext.metrics import compute_sdlogj
from monai_reg_ext.networks.layers.warp import warp

SIZE = (9, 8, 7)
AFFINE = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64))


class ShiftByImage(torch.nn.Module):
    """A network whose displacement along axis 0 is the value of its image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.weight * image, torch.zeros_like(image), torch.zeros_like(image)], dim=1)


def warp_label(data: dict) -> dict:
    """Postprocessing: the moving label on the fixed grid."""
    if "moving_label" in data:
        label, pred = data["moving_label"].as_tensor(), data["pred"].as_tensor()
        data["warped_label"] = MetaTensor(warp(label[None], pred[None], "nearest", "zeros")[0], affine=AFFINE)
    return data


def image(values: torch.Tensor | float) -> MetaTensor:
    return MetaTensor(torch.as_tensor(values).expand(1, *SIZE).clone(), affine=AFFINE)


def block(first: int) -> MetaTensor:
    label = torch.zeros(1, *SIZE, dtype=torch.int32)
    label[:, first : first + 3, 2:6, 2:5] = 4
    return MetaTensor(label, affine=AFFINE)


def pair(name: str, shift: float) -> dict:
    """The moving image shows everything one voxel (2 mm) further along axis 0; the network moves by ``shift``."""
    fixed_points = torch.rand(4, 3, dtype=torch.float64) * torch.tensor([16.0, 7, 18])
    return {
        "pair": name,
        "image": image(shift),
        "fixed_label": block(3),
        "moving_label": block(4),
        "fixed_points": fixed_points,
        "moving_points": fixed_points + torch.tensor([2.0, 0, 0]),
    }


def without(data: dict, *names: str) -> dict:
    return {key: value for key, value in data.items() if not any(name in key for name in names)}


class KeepPairs:
    """A handler that runs after the metrics, as one that writes a table would."""

    def __init__(self) -> None:
        self.outputs: list[dict] = []

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: self.outputs.extend(engine.state.output))


def evaluate(pairs, batch_size=1, metrics=None, handlers=(), **options):
    kept = KeepPairs()
    key, *others = (metrics or {"dice": Learn2RegDiceHandler()}).items()
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(pairs), batch_size=batch_size),
        network=ShiftByImage(),
        postprocessing=warp_label,
        key_val_metric=dict([key]),
        additional_metrics=dict(others),
        val_handlers=[kept, *handlers],
        **options,
    )
    evaluator.run()
    return evaluator, kept.outputs


def all_handlers() -> dict[str, PairMetricHandler]:
    return {
        "val_dice": Learn2RegDiceHandler(),
        "val_hd95": Learn2RegHD95Handler(),
        "val_sdlogj": SDlogJHandler(),
        "val_folding": FoldingHandler(),
        "val_tre": TREHandler(),
    }


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_pair_gets_its_values_and_the_engine_their_means(batch_size):
    pairs = [pair("right", 1.0), pair("nothing", 0.0), pair("too_far", 2.0), pair("right_again", 1.0)]

    evaluator, outputs = evaluate(pairs, batch_size, all_handlers())

    # blocks of three planes: shifted by one, two are in common
    of_right = {"dice": 100.0, "hd95": 0.0, "sdlogj": 0.0, "folding_percent": 0.0, "tre_mm": 0.0}
    of_wrong = {"dice": 200 / 3, "hd95": 1.0, "sdlogj": 0.0, "folding_percent": 0.0, "tre_mm": 2.0}
    before = {"dice_before": 200 / 3, "tre_mm_before": 2.0}
    assert [type(output["metrics"]) for output in outputs] == [dict] * 4
    for output, expected in zip(outputs, [of_right, of_wrong, of_wrong, of_right], strict=True):
        assert output["metrics"] == pytest.approx({**expected, **before}, abs=1e-6)
        assert "error" not in output
    assert evaluator.state.metrics == pytest.approx(
        {"val_dice": 250 / 3, "val_hd95": 0.5, "val_sdlogj": 0, "val_folding": 0, "val_tre": 1}, abs=1e-6
    )
    assert evaluator.state.best_metric == pytest.approx(250 / 3)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_pair_without_labels_or_points_has_no_value_and_does_not_count(batch_size):
    bare = [without(pair("bare", 1.0), "label", "points") for _ in range(2)]
    pairs = [pair("right", 1.0), pair("nothing", 0.0), *bare]

    evaluator, outputs = evaluate(pairs, batch_size, all_handlers())

    assert [set(output["metrics"]) for output in outputs[2:]] == [{"sdlogj", "folding_percent"}] * 2
    assert all("error" not in output for output in outputs)
    assert evaluator.state.metrics["val_dice"] == pytest.approx(250 / 3)
    assert evaluator.state.metrics["val_tre"] == pytest.approx(1.0)
    details = evaluator.state.metric_details["val_dice"]
    assert details.shape == (4, 1)  # a row for every pair, so that tables stay aligned
    assert details.isnan().flatten().tolist() == [False, False, True, True]


def test_labels_without_a_common_one_have_no_value():
    strangers = pair("strangers", 1.0)
    strangers["moving_label"] = 2 * strangers["moving_label"]

    _, outputs = evaluate([strangers])

    assert outputs[0]["metrics"] == {}


def test_a_set_without_any_label_has_the_mean_nan_and_not_zero():
    evaluator, _ = evaluate([without(pair("bare", 1.0), "label")])

    assert math.isnan(evaluator.state.metrics["dice"])


def test_a_metric_that_fails_is_recorded_for_its_pair_and_the_run_goes_on(caplog):
    broken = pair("broken", 1.0)
    broken["fixed_points"][1] = 1000.0
    broken["fixed_label"] = broken["fixed_label"][:, :5]
    metrics = {"tre": TREHandler(), "dice": Learn2RegDiceHandler(), "sdlogj": SDlogJHandler()}

    with caplog.at_level(logging.ERROR):
        evaluator, outputs = evaluate([broken, pair("right", 1.0)], metrics=metrics)

    assert outputs[0]["error"].startswith("tre_mm could not be measured: 1 of 4 fixed points lie outside")
    assert set(outputs[0]["metrics"]) == {"sdlogj"}
    assert "error" not in outputs[1]
    assert evaluator.state.metrics == pytest.approx({"tre": 0.0, "dice": 100.0, "sdlogj": 0.0}, abs=1e-6)
    assert "broken: tre_mm could not" in caplog.text
    assert "broken: dice could not" in caplog.text


def test_an_iteration_without_output_is_passed_over():
    def skip_failed(engine, batch):
        return [] if batch["pair"] == ["failed"] else engine._iteration(engine, batch)

    pairs = [pair("failed", 1.0), pair("nothing", 0.0)]
    evaluator, outputs = evaluate(pairs, metrics=all_handlers(), iteration_update=skip_failed)

    assert len(outputs) == 1
    assert evaluator.state.metrics["val_dice"] == pytest.approx(200 / 3)


def test_a_second_run_starts_anew():
    evaluator, _ = evaluate([pair("right", 1.0)])
    evaluator.data_loader = DataLoader(Dataset([pair("nothing", 0.0)]), batch_size=1)

    evaluator.run()

    assert evaluator.state.metrics["dice"] == pytest.approx(200 / 3)


def test_the_mask_of_the_fixed_image_limits_sdlogj_and_folding():
    ramp = image(0.0)
    ramp[0, 5:] = -3.0  # planes 4 and 5 fold
    mask = torch.zeros(1, *SIZE, dtype=torch.uint8)
    mask[:, 3:5] = 1
    masked = {**without(pair("masked", 0.0), "label", "points"), "image": ramp, "fixed_mask": MetaTensor(mask)}

    _, outputs = evaluate([masked], metrics={"sdlogj": SDlogJHandler(), "folding": FoldingHandler()})

    assert outputs[0]["metrics"]["folding_percent"] == pytest.approx(50.0)
    ddf = torch.cat([ramp, image(0.0), image(0.0)]).as_tensor()[None]
    assert outputs[0]["metrics"]["sdlogj"] == pytest.approx(compute_sdlogj(ddf, mask[None]).item())


def test_a_checkpoint_saver_keeps_the_best_network_and_a_metrics_saver_the_table(tmp_path):
    network = ShiftByImage()
    checkpoint = CheckpointSaver(
        save_dir=str(tmp_path), save_dict={"net": network}, save_key_metric=True, key_metric_filename="model.pt"
    )
    rows_by = {"batch_transform": lambda batch: [item["image"].meta for item in batch]}
    table = MetricsSaver(str(tmp_path), metric_details="*", **rows_by)

    evaluate([pair("right", 1.0), pair("nothing", 0.0)], handlers=[checkpoint, table])

    assert (tmp_path / "model.pt").is_file()
    rows = (tmp_path / "dice_raw.csv").read_text().splitlines()
    assert [float(row.split(",")[1]) for row in rows[1:]] == pytest.approx([100.0, 200 / 3], abs=1e-3)


def test_an_engine_that_keeps_batches_whole_is_refused():
    with pytest.raises(TypeError, match="Leave decollate=True"):
        evaluate([pair("right", 1.0)], metrics={"sdlogj": SDlogJHandler()}, decollate=False)
