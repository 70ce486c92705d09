# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import itertools
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, ConcatItemsd, Lambda, Lambdad

from monai_reg_ext.data import PairDataset
from monai_reg_ext.engines import record_failures
from monai_reg_ext.handlers import (
    FoldingHandler,
    InverseConsistencyHandler,
    Learn2RegDiceHandler,
    Learn2RegHD95Handler,
    PairMetricHandler,
    RunRecorder,
    SDlogJHandler,
    TREHandler,
)
from monai_reg_ext.metrics import SDlogJMetric
from monai_reg_ext.transforms import LoadPaird, WarpByDDFd

SIZE = (9, 8, 7)
AFFINE = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64))
COLUMNS = [
    *("pair", "dice", "dice_before", "hd95", "sdlogj", "folding_percent", "tre_mm", "tre_mm_before"),
    *("inverse_consistency_mm", "seconds", "error"),
]


class Clock:
    """Time that passes only when someone works."""

    def __init__(self) -> None:
        self.now = 0.0

    def work(self, seconds: float, value=None):
        self.now += seconds
        return value


class ShiftByImage(torch.nn.Module):
    """A network that takes 3 s; its displacement along axis 0 is the value of the fixed image, up to 7 voxels."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if (image > 7).any():
            raise ValueError("The search does not reach so far.")
        self.clock.work(3)
        return torch.cat([image[:, 1:], torch.zeros_like(image)], dim=1)


class RangeHandler(PairMetricHandler):
    """A metric that somebody else brings along."""

    value_name = "range"
    required = ("pred",)

    def __init__(self) -> None:
        super().__init__(SDlogJMetric())

    def measure(self, pair):
        return {"range": float(pair["pred"].max() - pair["pred"].min())}


def volume(values) -> MetaTensor:
    return MetaTensor(torch.as_tensor(values).expand(1, *SIZE).clone(), affine=AFFINE)


def block(first: int) -> MetaTensor:
    label = torch.zeros(1, *SIZE, dtype=torch.int32)
    label[:, first : first + 3, 2:6, 2:5] = 4
    return MetaTensor(label, affine=AFFINE)


def bare_pair(name: str, shift: float) -> dict:
    return {"pair": name, "fixed": volume(shift), "moving": volume(0.0)}


def pair(name: str, shift: float) -> dict:
    """The moving image shows everything one voxel (2 mm) further along axis 0; the network moves by ``shift``."""
    fixed_points = torch.rand(4, 3, dtype=torch.float64) * torch.tensor([16.0, 7, 18])
    moving_points = fixed_points + torch.tensor([2.0, 0, 0])
    labels = {"fixed_label": block(3), "moving_label": block(4)}
    return {**bare_pair(name, shift), **labels, "fixed_points": fixed_points, "moving_points": moving_points}


def good_and_bad_pairs() -> list[dict]:
    return [
        pair("right", 1.0),
        {**pair("unreadable", 1.0), "moving": "missing.nii.gz"},
        pair("too_far", 8.0),
        pair("not_finite", torch.nan),
        pair("nothing", 0.0),
    ]


def with_inverse(item):
    """The way back misses by a quarter of a voxel, 0.5 mm."""
    return {**item, "pred_inverse": 0.25 * torch.tensor([1.0, 0, 0]).reshape(3, 1, 1, 1) - item["pred"]}


def refuse_not_finite(pred):
    if not torch.isfinite(pred).all():
        raise ValueError("the displacement has NaN voxels.")
    return pred


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    replacement = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr("monai_reg_ext.handlers.run_recorder.time", replacement)
    return clock


@pytest.fixture
def evaluator_of(clock, tmp_path):
    """``evaluator_of(pairs)``: stock evaluator that writes to ``tmp_path / "new" / "run"``, and its recorder."""

    def build(pairs, batch_size=1, others=(), more_metrics=None):
        recorder = RunRecorder(tmp_path / "new" / "run", method="shift")
        loading = [LoadPaird(), ConcatItemsd(["moving", "fixed"], "image"), Lambda(lambda item: clock.work(100, item))]
        saving = [Lambdad("pred", refuse_not_finite), WarpByDDFd(), Lambda(with_inverse)]
        saving += [Lambda(lambda item: clock.work(1000, item))]
        metrics = {"hd95": Learn2RegHD95Handler(), "sdlogj": SDlogJHandler(), "folding": FoldingHandler()}
        metrics["inverse"] = InverseConsistencyHandler()
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(PairDataset(pairs, Compose(loading), on_error="record"), batch_size=batch_size),
            network=ShiftByImage(clock),
            iteration_update=record_failures,
            postprocessing=Compose(saving),
            key_val_metric={"dice": Learn2RegDiceHandler()},
            additional_metrics={**metrics, "tre": TREHandler(), **(more_metrics or {})},
            val_handlers=[recorder, *others],
        )
        return evaluator, recorder

    return build


def read_table(folder) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_summary(folder) -> dict:
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "summary.json").read_text(), parse_constant=refuse)


def test_every_pair_has_a_row_and_one_that_failed_its_reason(evaluator_of):
    evaluator, recorder = evaluator_of(good_and_bad_pairs())

    evaluator.run()

    rows = read_table(recorder.output_dir)
    assert list(rows[0]) == COLUMNS
    assert [row["pair"] for row in rows] == ["right", "unreadable", "too_far", "not_finite", "nothing"]
    errors = [row["error"] for row in rows]
    assert errors[0] == errors[4] == ""
    assert "missing.nii.gz" in errors[1]
    assert errors[2] == "The search does not reach so far."
    assert errors[3] == "the displacement has NaN voxels."
    # blocks of three planes: shifted by one, two are in common
    figures = [{name: float(row[name]) for name in COLUMNS[1:-1]} for row in (rows[0], rows[4])]
    before = {"dice_before": 200 / 3, "tre_mm_before": 2.0, "sdlogj": 0.0, "folding_percent": 0.0, "seconds": 3.0}
    before["inverse_consistency_mm"] = 0.5
    assert figures[0] == pytest.approx({"dice": 100, "hd95": 0, "tre_mm": 0, **before}, abs=1e-6)
    assert figures[1] == pytest.approx({"dice": 200 / 3, "hd95": 1, "tre_mm": 2, **before}, abs=1e-6)
    empty = {name for row in rows[1:4] for name in COLUMNS[1:-2] if row[name] == ""}
    assert empty == set(COLUMNS[1:-2])


def test_seconds_are_the_networks_alone_and_shared_by_a_batch(evaluator_of):
    evaluator, recorder = evaluator_of([pair("first", 1.0), pair("second", 0.0)], batch_size=2)

    evaluator.run()

    assert [float(row["seconds"]) for row in read_table(recorder.output_dir)] == [1.5, 1.5]


def test_a_pair_that_never_left_the_network_has_no_seconds(evaluator_of):
    evaluator, recorder = evaluator_of(good_and_bad_pairs())

    evaluator.run()

    assert [row["seconds"] for row in read_table(recorder.output_dir)] == ["3.0", "", "", "3.0", "3.0"]
    assert read_summary(recorder.output_dir)["seconds_per_pair"] == 3.0


def test_the_summary_holds_the_means_over_the_pairs_that_have_a_value(evaluator_of):
    evaluator, recorder = evaluator_of(good_and_bad_pairs())

    evaluator.run()

    summary = read_summary(recorder.output_dir)
    assert summary.pop("method") == "shift"
    means = {"dice": 250 / 3, "dice_before": 200 / 3, "hd95": 0.5, "tre_mm": 1, "tre_mm_before": 2}
    spreads = {"dice_std": 50 / 3, "dice_before_std": 0, "hd95_std": 0.5, "tre_mm_std": 1, "tre_mm_before_std": 0}
    smooth = dict.fromkeys(("sdlogj", "sdlogj_std", "sdlogj30", "folding_percent", "folding_percent_std"), 0)
    # quantiles between two values: 0.3 of the way for Dice and HD95, 0.7 for TRE
    quantiles = {"dice30": 200 / 3 + 10, "hd9530": 0.3, "tre30_mm": 1.4}
    counts = {"pairs": 5, "failed": 3, "seconds_per_pair": 3, "folding_cases": 0}
    inverse = {"inverse_consistency_mm": 0.5, "inverse_consistency_mm_std": 0}
    assert summary == pytest.approx({**counts, **means, **spreads, **smooth, **inverse, **quantiles}, abs=1e-6)


def test_what_does_not_apply_is_null(evaluator_of):
    evaluator, recorder = evaluator_of([bare_pair("bare", 1.0)])

    evaluator.run()

    summary = read_summary(recorder.output_dir)
    assert [summary[key] for key in ("dice", "dice30", "hd95", "hd95_std", "tre_mm", "tre30_mm")] == [None] * 6
    assert summary["failed"] == 0
    assert summary["sdlogj"] == pytest.approx(0, abs=1e-6)


def test_the_summary_counts_the_fields_that_fold_and_has_what_was_measured_on_demand(tmp_path):
    recorder = RunRecorder(tmp_path, method="any")
    recorder.rows = [{"pair": "a", "folding_percent": 0.0, "error": ""}, {"pair": "b", "error": "failed"}]
    assert recorder.summary()["folding_cases"] == 0
    assert "tre_mm_snapped" not in recorder.summary()

    recorder.rows += [{"pair": name, "folding_percent": 1e-4, "tre_mm_snapped": 3.0, "error": ""} for name in "cd"]

    summary = recorder.summary()
    assert [summary[name] for name in ("folding_cases", "tre_mm_snapped", "tre_mm_snapped_std")] == [2, 3, 0]


def test_a_run_without_a_single_success_has_a_summary_too(evaluator_of):
    evaluator, recorder = evaluator_of([pair("too_far", 8.0)])

    evaluator.run()

    summary = read_summary(recorder.output_dir)
    assert (summary["pairs"], summary["failed"]) == (1, 1)
    assert {value for key, value in summary.items() if key not in ("method", "pairs", "failed")} == {None}


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy, on the deviation of infinite values
def test_an_infinite_distance_stays_in_the_table_and_is_null_in_the_summary(evaluator_of):
    evaluator, recorder = evaluator_of([pair("out_of_view", 7.0)])

    evaluator.run()

    assert read_table(recorder.output_dir)[0]["hd95"] == "inf"
    summary = read_summary(recorder.output_dir)
    assert summary["hd95"] is None
    assert summary["dice"] == 0


def test_a_metric_that_failed_makes_its_pair_a_failed_one_and_leaves_the_other_values(evaluator_of):
    broken = pair("broken", 1.0)
    broken["fixed_points"] = broken["fixed_points"] + 1000
    evaluator, recorder = evaluator_of([broken])

    evaluator.run()

    (row,) = read_table(recorder.output_dir)
    assert row["error"].startswith("tre_mm could not be measured: ")
    assert row["tre_mm"] == ""
    assert float(row["dice"]) == pytest.approx(100)
    assert [row["pair"] for row in recorder.failed] == ["broken"]


def test_a_metric_that_somebody_else_brought_gets_a_column(evaluator_of):
    pairs = [pair("too_far", 8.0), pair("right", 1.0)]
    evaluator, recorder = evaluator_of(pairs, more_metrics={"range": RangeHandler()})

    evaluator.run()

    rows = read_table(recorder.output_dir)
    assert list(rows[0]) == [*COLUMNS, "range"]
    assert [row["range"] for row in rows] == ["", "1.0"]


class WatchFolder:
    """Looks at the folder of a run when it starts and after every pair."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.seen: list[dict] = []

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine) -> None:
        table = self.folder / "metrics.csv"
        names = sorted(path.name for path in self.folder.iterdir())
        pairs = [row["pair"] for row in read_table(self.folder)]
        self.seen.append({"names": names, "pairs": pairs, "file": table.stat().st_ino})


def test_the_table_is_replaced_as_a_whole_after_every_pair(evaluator_of, tmp_path):
    watch = WatchFolder(tmp_path / "new" / "run")
    evaluator, _ = evaluator_of([pair("right", 1.0), pair("too_far", 8.0), pair("nothing", 0.0)], others=[watch])

    evaluator.run()

    assert [seen["pairs"] for seen in watch.seen] == [
        [],
        ["right"],
        ["right", "too_far"],
        ["right", "too_far", "nothing"],
    ]
    files = [seen["file"] for seen in watch.seen]
    assert all(earlier != later for earlier, later in itertools.pairwise(files))
    assert all(seen["names"] == ["metrics.csv"] for seen in watch.seen)  # the summary comes at the end
    assert sorted(path.name for path in watch.folder.iterdir()) == ["metrics.csv", "summary.json"]


def test_a_second_run_starts_anew_without_the_first_ones_summary(evaluator_of, tmp_path):
    watch = WatchFolder(tmp_path / "new" / "run")
    evaluator, recorder = evaluator_of([pair("right", 1.0)], others=[watch])
    (recorder.output_dir / "right").mkdir(parents=True)

    evaluator.run()
    evaluator.run()

    assert [seen["pairs"] for seen in watch.seen] == [[], ["right"]] * 2
    assert watch.seen[2]["names"] == ["metrics.csv", "right"]  # results of pairs stay
    assert read_summary(recorder.output_dir)["pairs"] == 1


@pytest.fixture
def second_process(monkeypatch):
    """``second_process(rank, rows)``: this process is one of two, the other of which has the rows given."""

    def become(rank: int, rows: list[dict]) -> None:
        module = "monai_reg_ext.handlers.run_recorder.idist."
        monkeypatch.setattr(module + "get_rank", lambda: rank)
        monkeypatch.setattr(module + "get_world_size", lambda: 2)
        monkeypatch.setattr(module + "all_gather", lambda own: [rows, own] if rank else [own, rows])

    return become


def test_the_first_of_two_processes_writes_the_rows_of_both_in_the_order_of_the_pairs(second_process, tmp_path):
    second_process(0, [{"pair": "b", "dice": 50.0, "error": ""}])
    recorder = RunRecorder(tmp_path, method="any")
    recorder.start_run(None)
    recorder.rows = [{"pair": "a", "dice": 80.0, "error": ""}, {"pair": "c", "error": "lost"}]

    recorder.finish_run(None)

    assert [row["pair"] for row in read_table(tmp_path)] == ["a", "b", "c"]
    assert read_summary(tmp_path)["dice"] == 65
    with pytest.raises(SystemExit, match="1 of 3 pairs failed"):
        recorder.exit_on_failure()


def test_the_second_of_two_processes_writes_nothing_and_leaves_the_end_to_the_first(second_process, tmp_path):
    second_process(1, [{"pair": "a", "error": "lost"}])
    recorder = RunRecorder(tmp_path, method="any")

    recorder.start_run(None)
    recorder.rows = [{"pair": "b", "error": "lost"}]
    recorder.finish_run(None)
    recorder.exit_on_failure()

    assert not any(tmp_path.iterdir())


def test_failed_pairs_end_the_process_with_a_message_and_status_1(evaluator_of):
    evaluator, recorder = evaluator_of(good_and_bad_pairs())
    evaluator.run()

    with pytest.raises(SystemExit) as caught:
        recorder.exit_on_failure()

    # Python prints a message that is given as code, and exits with status 1
    assert caught.value.code == f"3 of 5 pairs failed, see {recorder.output_dir}/metrics.csv"


def test_without_failed_pairs_the_process_goes_on(evaluator_of):
    evaluator, recorder = evaluator_of([pair("right", 1.0)])
    evaluator.run()

    recorder.exit_on_failure()

    assert recorder.failed == []


def test_the_log_tells_every_pair_and_the_means(evaluator_of, caplog):
    evaluator, recorder = evaluator_of([pair("nothing", 0.0), pair("too_far", 8.0)])

    with caplog.at_level(logging.INFO, logger="monai_reg_ext.handlers.run_recorder"):
        evaluator.run()

    first, second, last = [record.getMessage() for record in caplog.records if "run_recorder" in record.name]
    assert first.startswith("nothing: dice 66.67, dice_before 66.67, hd95 1, ")
    assert second == "too_far: failed: The search does not reach so far."
    assert last.startswith("2 pairs, 1 failed, 3.00 s each: dice 66.67, ")
    assert last.endswith(f"results in {recorder.output_dir}")
