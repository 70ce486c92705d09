# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai.handlers import MLFlowHandler

from monai_reg_ext.handlers.run_recorder import RunRecorder
from monai_reg_ext.handlers.training_log import TrainingLog
from monai_reg_ext.handlers.validation_picture import ValidationPicture

__all__ = ["share_mlflow_run"]


def share_mlflow_run(handlers: Iterable[object]) -> None:
    """Complete what ``--tracking mlflow`` of MONAI's bundles logs of an engine by the files that our handlers write.

    MONAI appends an :py:class:`~monai.handlers.MLFlowHandler` to an engine's handlers, which logs metrics, the loss of
    each step and the learning rate. Its run also gets the pictures of a :py:class:`ValidationPicture` as they are
    drawn, and in the end the files of a :py:class:`TrainingLog` or :py:class:`RunRecorder`. Without an
    ``MLFlowHandler`` nothing changes.

    Args:
        handlers: of one engine.
    """
    handlers = list(handlers)
    tracker = next((handler for handler in handlers if isinstance(handler, MLFlowHandler)), None)
    if tracker is None:
        return
    tracker.output_transform = _step_loss
    for handler in handlers:
        if isinstance(handler, ValidationPicture):
            handler.mlflow_handler = tracker
        if isinstance(handler, (TrainingLog, RunRecorder)):
            tracker.artifacts += tuple(str(path) for path in handler.files)


def _step_loss(output: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> Any:
    """Of a trainer that decollates, or does not; MONAI's own makes a tuple of the latter, which MLflow refuses."""
    return (output if isinstance(output, Mapping) else output[0])["loss"]
