# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from monai_reg_ext.data.error_line import error_line

__all__ = ["train_folds"]

LOGGER = logging.getLogger(__name__)
LAST_MODEL = "model.pt"


def train_folds(config_file: str | Path, output_dir: str | Path, folds: int, **options: Any) -> Path:
    """Train one network per fold without its cases, then one on all cases; what is finished already is left as it is.

    The label maps that the networks predict for cases they were not trained on are as good or bad as those of new
    cases, while predictions for training cases are over-confident.

    Args:
        config_file: a bundle's training config with the ids ``fold`` (``None`` for all cases), ``folds``,
            ``output_dir`` and ``predictions_dir``, which leaves ``model.pt`` in its ``output_dir`` when done.
        output_dir: gets ``fold0``, ``fold1``, ... and ``all``, and ``predictions``, one label map per case.
        folds: number of folds; 0 trains on all cases only.
        options: further ids of the config to replace.

    Returns:
        The weights of the network that was trained on all cases.

    Raises:
        SystemExit: with the message of what is wrong: a number of folds that leaves nothing to train on, cases that
            cannot be loaded, a config that leaves no ``model.pt``.
    """
    if folds < 0 or folds == 1:
        raise SystemExit(f"error: folds must be 0, or 2 at least so that cases are left to train on, got {folds}.")
    output_dir = Path(output_dir).expanduser()
    for fold in [*range(folds), None]:
        fold_dir = output_dir / ("all" if fold is None else f"fold{fold}")
        if (fold_dir / LAST_MODEL).is_file():
            LOGGER.info("%s is there, nothing to train", fold_dir / LAST_MODEL)
            continue
        LOGGER.info("training %s", fold_dir)
        places = {"output_dir": str(fold_dir), "predictions_dir": str(output_dir / "predictions")}
        _train(config_file, fold_dir / LAST_MODEL, {"fold": fold, "folds": folds, **places, **options})
    return output_dir / "all" / LAST_MODEL


def _train(config_file: str | Path, model: Path, ids: dict[str, Any]) -> None:
    """Run a training; the model is there afterwards if and only if nothing failed."""
    try:
        workflow = ConfigWorkflow(str(config_file), logging_file=False, workflow_type="train", **ids)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except BaseException as error:
        model.unlink(missing_ok=True)
        cause = _cause(error)
        if isinstance(cause, (ValueError, OSError)):
            raise SystemExit(f"error: {error_line(cause)}") from error
        raise
    if not model.is_file():
        raise SystemExit(f"error: {config_file} has left no {model}. Save the weights there as the last step of 'run'.")


def _cause(error: BaseException) -> BaseException:
    """What went wrong, without the layers that MONAI's configs wrap around it."""
    while isinstance(error, RuntimeError) and error.__cause__:
        error = error.__cause__
    return error
