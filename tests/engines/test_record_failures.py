# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, Lambdad

from monai_reg_ext.data import PairDataset
from monai_reg_ext.engines import record_failures

LOGGER = "monai_reg_ext.engines.record_failures"


class AddUpToNine(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if (image > 9).any():
            raise RuntimeError(f"more than 9,\n  namely {image.max():g}")
        if (image == 0).any():
            raise ValueError("0 is no image.")
        return image + 1


def _positive(value: torch.Tensor) -> torch.Tensor:
    if value.min() < 0:
        raise ValueError("moving must be positive.")
    return value


def _without_five(pred: torch.Tensor) -> torch.Tensor:
    if (pred == 5).any():
        raise ValueError("pred must not be 5.")
    return pred


class Keep:
    """What the engine holds after each iteration, as a handler that writes a table would see it."""

    def __init__(self) -> None:
        self.batches: list[dict] = []
        self.outputs: list[dict] = []

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine) -> None:
        self.batches.extend(engine.state.batch)
        self.outputs.extend(engine.state.output)


def run(values: dict[str, float], batch_size: int = 1) -> Keep:
    """Evaluate one pair per value; the network sees the moving image, one voxel."""
    pairs = [{"pair": name, "fixed": torch.ones(1, 1), "moving": torch.full((1, 1), v)} for name, v in values.items()]
    loading = Compose([Lambdad("moving", _positive), lambda item: {**item, "image": item["moving"]}])
    kept = Keep()
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(PairDataset(pairs, loading, on_error="record"), batch_size=batch_size),
        network=AddUpToNine(),
        iteration_update=record_failures,
        postprocessing=Compose([Compose([Lambdad("pred", _without_five)])]),
        val_handlers=[kept],
    ).run()
    return kept


def test_a_pair_that_could_not_be_loaded_is_passed_on_with_its_reason():
    kept = run({"a": 1.0, "bad": -1.0, "b": 2.0})

    assert [item["pair"] for item in kept.batches] == ["a", "bad", "b"]
    assert kept.batches[1] == {"pair": "bad"}
    assert kept.outputs[1] == {"error": "moving must be positive."}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "0 is no image."),  # in the network
        (10.0, "RuntimeError: more than 9,   namely 10"),  # in the network, of another kind and with two lines
        (4.0, "pred must not be 5."),  # in the postprocessing, whose wrapping says nothing to users
    ],
)
def test_a_pair_that_fails_on_the_way_leaves_one_line_and_the_others_go_on(value, message, caplog):
    with caplog.at_level(logging.DEBUG, logger=LOGGER):
        kept = run({"a": 1.0, "bad": value, "b": 2.0})

    assert kept.batches[1] == {"pair": "bad"}
    assert kept.outputs[1] == {"error": message}
    assert [float(kept.outputs[index]["pred"]) for index in (0, 2)] == [2, 3]
    assert all("error" not in kept.outputs[index] for index in (0, 2))
    ours = [record for record in caplog.records if record.name == LOGGER]
    assert [record.getMessage() for record in ours if record.levelno == logging.ERROR] == [
        f"pair bad failed: {message}"
    ]
    assert [record.levelno for record in ours if record.exc_info] == [logging.DEBUG]  # for those who look for it


def test_of_a_batch_that_fails_every_pair_is_recorded():
    kept = run({"a": 1.0, "b": 0.0, "c": 2.0, "d": 3.0}, batch_size=2)

    assert kept.batches[:2] == [{"pair": "a"}, {"pair": "b"}]
    assert kept.outputs[:2] == [{"error": "0 is no image."}] * 2
    assert [float(output["pred"]) for output in kept.outputs[2:]] == [3, 4]


def test_a_failed_last_pair_leaves_nothing_of_the_one_before():
    kept = run({"a": 1.0, "bad": 0.0})

    assert set(kept.outputs[1]) == {"error"}
    assert set(kept.batches[1]) == {"pair"}


def test_someone_who_interrupts_the_run_is_obeyed(monkeypatch):
    def interrupt(self, image):
        raise KeyboardInterrupt

    monkeypatch.setattr(AddUpToNine, "forward", interrupt)

    with pytest.raises(KeyboardInterrupt):
        run({"a": 1.0})
