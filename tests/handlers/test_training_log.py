# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import json
import math
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler, from_engine

from monai_reg_ext.handlers import TrainingLog

LOSSES = [1.0, 2.0, 6.0]  # of the steps of every epoch


def batches(values: list[float]) -> list[dict]:
    return [{"image": torch.zeros(1, 1), "label": torch.tensor([[value]])} for value in values]


def validator(scores: dict[int, float], **options) -> SupervisedEvaluator:
    """An evaluator whose key metric has a given value at every epoch."""
    engine = SupervisedEvaluator(
        device="cpu",
        val_data_loader=batches([0.0]),
        network=torch.nn.Linear(1, 1),
        key_val_metric={"score": Average(lambda _: scores[engine.state.epoch])},
        **options,
    )
    return engine


def train(output_dir, epochs: int = 4, start: int = 0, evaluator=None, interval: int = 2, more=(), **options):
    """Train, from after epoch ``start``; the loss of a step is its label, the learning rate halves with every epoch."""
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5**start)
    validation = [] if evaluator is None else [ValidationHandler(interval, evaluator)]
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=batches(LOSSES),
        network=network,
        optimizer=optimizer,
        loss_function=lambda pred, label: label.mean() + 0 * pred.sum(),
        key_train_metric={"loss": Average(from_engine(["loss"], first=True))},
        train_handlers=[
            LrScheduleHandler(torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5), print_lr=False),
            *validation,
            TrainingLog(output_dir, evaluator, **options),
        ],
    )
    trainer.state.epoch, trainer.state.iteration = start, start * len(LOSSES)
    for event, handler in more:
        trainer.add_event_handler(event, handler)
    trainer.run()


def rows(folder) -> list[dict[str, str]]:
    with (folder / "training.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def summary(folder) -> dict:
    return json.loads((folder / "training.json").read_text())


def test_a_row_has_the_mean_loss_the_rate_of_its_own_epoch_and_the_validation_where_there_was_one(tmp_path):
    train(tmp_path / "new" / "run", evaluator=validator({2: 7.5, 4: 5.25}))

    table = rows(tmp_path / "new" / "run")
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4"]
    assert [float(row["loss"]) for row in table] == [3.0] * 4
    assert [float(row["learning_rate"]) for row in table] == [1.0, 0.5, 0.25, 0.125]
    assert [row["score"] for row in table] == ["", "7.5", "", "5.25"]


def test_seconds_are_those_of_an_epoch_with_its_validation(tmp_path, monkeypatch):
    clock = iter([100.0, 107.0, 200.0, 230.0])
    read = []

    def now() -> float:
        read.append(evaluator.state.epoch)
        return next(clock)

    evaluator = validator({1: 1.0, 2: 1.0})
    monkeypatch.setattr("monai_reg_ext.handlers.training_log.time", SimpleNamespace(perf_counter=now))

    train(tmp_path, epochs=2, evaluator=evaluator, interval=1)

    assert [float(row["seconds"]) for row in rows(tmp_path)] == [7.0, 30.0]
    assert read == [0, 1, 1, 2]  # the validation lies between the two looks at the clock
    assert summary(tmp_path)["hours"] == pytest.approx(37 / 3600)


@pytest.mark.parametrize(("better", "best"), [(lambda new, old: new > old, 2), (lambda new, old: new < old, 4)])
def test_the_summary_has_the_best_epoch_in_the_sense_of_the_evaluator(tmp_path, better, best):
    scores = {1: math.nan, 2: 8.0, 3: 6.0, 4: 5.0, 5: 7.0}

    train(tmp_path, 5, evaluator=validator(scores, metric_cmp_fn=better), interval=1, facts={"seed": 3})

    written = summary(tmp_path)
    assert written["best"]["epoch"] == best
    assert written["best"]["score"] == scores[best]
    assert written["best"]["learning_rate"] == 0.5 ** (best - 1)
    assert written["epochs"] == 5
    assert written["seed"] == 3
    assert written["processes"] == 1
    assert written["hardware"] == f"CPU, {torch.get_num_threads()} threads"


def test_without_validation_no_epoch_is_the_best(tmp_path):
    train(tmp_path)

    assert summary(tmp_path)["best"] is None
    assert "score" not in rows(tmp_path)[0]


def test_the_summary_is_json_where_a_metric_is_not_a_number(tmp_path):
    evaluator = validator({2: 1.0, 4: math.nan})
    Average(lambda _: math.nan).attach(evaluator, "undefined")

    train(tmp_path, evaluator=evaluator)

    assert summary(tmp_path)["best"]["undefined"] is None
    assert rows(tmp_path)[1]["undefined"] == "nan"


@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_training_that_goes_on_continues_the_table_from_its_checkpoint(tmp_path, start):
    train(tmp_path, epochs=2, evaluator=validator({1: 9.0, 2: 3.0}), interval=1)
    before = rows(tmp_path)

    train(tmp_path, epochs=4, start=start, evaluator=validator({1: 1.0, 2: 1.5, 3: 2.0, 4: 2.5}), interval=1)

    table = rows(tmp_path)
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4"]
    assert table[:start] == before[:start]
    assert [float(row["score"]) for row in table[start:]] == [1.0, 1.5, 2.0, 2.5][start:]
    assert summary(tmp_path)["best"]["epoch"] == (4 if start == 0 else 1)
    assert summary(tmp_path)["hours"] == pytest.approx(sum(float(row["seconds"]) for row in table) / 3600)


def test_a_training_that_is_complete_already_keeps_its_log(tmp_path):
    train(tmp_path, epochs=2, evaluator=validator({1: 9.0, 2: 3.0}), interval=1)
    before = rows(tmp_path), summary(tmp_path)

    # a checkpoint of the last epoch is loaded when the training starts
    def load(engine):
        engine.state.epoch, engine.state.iteration = 2, 2 * len(LOSSES)

    train(tmp_path, epochs=2, evaluator=validator({}), more=[(Events.STARTED, load)])

    assert (rows(tmp_path), summary(tmp_path)) == before


def test_a_training_that_was_interrupted_has_its_table_but_no_summary(tmp_path):
    train(tmp_path, epochs=1)

    def interrupt(engine):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, more=[(Events.EPOCH_STARTED(once=3), interrupt)])

    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2"]
    assert [path.name for path in tmp_path.iterdir()] == ["training.csv"]


def test_a_training_that_stops_early_has_its_summary(tmp_path):
    evaluator = validator({2: 1.0})
    trainers = []
    evaluator.add_event_handler(Events.COMPLETED, lambda: trainers[0].terminate())

    train(tmp_path, evaluator=evaluator, more=[(Events.STARTED, trainers.append)])

    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2"]
    assert summary(tmp_path)["epochs"] == 2
    assert summary(tmp_path)["best"]["epoch"] == 2


def test_tensorboard_gets_the_summary_as_a_text(tmp_path):
    texts = []
    writer = SimpleNamespace(add_text=lambda *text: texts.append(text), flush=lambda: texts.append("flushed"))

    train(tmp_path, writer=writer)

    ((tag, text, epoch), flushed) = texts
    assert (tag, epoch, flushed) == ("summary", 4, "flushed")
    assert json.loads(text.strip("`")) == summary(tmp_path)
