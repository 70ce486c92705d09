# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from unittest.mock import MagicMock

import pytest
import torch
from monai.handlers import MLFlowHandler, StatsHandler

from monai_reg_ext.handlers import RunRecorder, TrainingLog, ValidationPicture, share_mlflow_run


@pytest.fixture
def tracker(monkeypatch) -> MLFlowHandler:
    """As MONAI appends it to the handlers of a trainer; its server is not there."""
    monkeypatch.setattr("monai.handlers.mlflow_handler.mlflow", MagicMock())
    return MLFlowHandler("http://nowhere", artifacts="config.json", output_transform=None)


def test_files_are_logged_at_the_end_beside_those_that_were_asked_for(tracker, tmp_path):
    share_mlflow_run([TrainingLog(tmp_path / "one"), RunRecorder(tmp_path / "two", "adam"), StatsHandler(), tracker])

    names = ("one/training.csv", "one/training.json", "two/metrics.csv", "two/summary.json")
    assert tracker.artifacts == ("config.json", *(str(tmp_path / name) for name in names))


def test_pictures_go_to_the_run_of_the_same_engine(tracker, tmp_path):
    picture, other = ValidationPicture(tmp_path), ValidationPicture(tmp_path)

    share_mlflow_run([picture, tracker])
    share_mlflow_run([other])

    assert picture.mlflow_handler is tracker
    assert other.mlflow_handler is None


@pytest.mark.parametrize("taken_apart", [True, False])
def test_the_loss_of_a_step_is_found_whether_outputs_are_taken_apart_or_not(tracker, taken_apart):
    loss = torch.tensor(2.5)
    output = [{"loss": loss}, {"loss": loss}] if taken_apart else {"loss": loss}

    share_mlflow_run([tracker])

    assert tracker.output_transform(output) is loss


def test_nothing_changes_without_mlflow(tmp_path):
    log = TrainingLog(tmp_path)

    share_mlflow_run(handler for handler in (log,))

    assert not any(tmp_path.iterdir())
