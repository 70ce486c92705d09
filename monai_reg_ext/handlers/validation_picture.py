# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler
from PIL import Image

from monai_reg_ext.data import whole_file
from monai_reg_ext.handlers.report_png import report_png

if TYPE_CHECKING:  # tensorboard need not be installed
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["ValidationPicture"]

COLUMNS = ("Fixed", "Moving (before)", "Warped (after)", "Difference before", "Difference after", "Warped grid")
DOTS_PER_INCH = 70


class ValidationPicture:
    """Draws one pair of every validation, before and after registration: ``<output_dir>/pictures/epoch_0003.png``.

    It is always the same pair, so that the pictures of a training can be compared. Attach it to the evaluator that a
    ``ValidationHandler`` runs, whose epoch is the trainer's, behind the metric handlers, whose values become the
    caption. See :py:func:`report_png` for what the pair needs; labels need not be there.

    A picture that cannot be drawn or handed on is logged as a warning, and the training goes on.

    Args:
        output_dir: folder of the training; made if need be.
        pair: name of the pair, or its position in the validation data.
        writer: TensorBoard's, if the picture is to be seen there, as ``validation_pair``.
        mlflow_handler: a handler of the same evaluator, in front of this one; its run gets the picture as an artifact
            under ``pictures``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        pair: str | int = 0,
        writer: SummaryWriter | None = None,
        mlflow_handler: MLFlowHandler | None = None,
    ) -> None:
        self.output_dir = Path(output_dir).expanduser()
        self.pair = pair
        self.writer = writer
        self.mlflow_handler = mlflow_handler
        self._position, self._found = 0, False

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def __call__(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=False):
            if self.pair in (self._position, item.get("pair")):
                self._found = True
                self._try_to_show({**item, **output}, engine)
            self._position += 1

    def _start(self, engine: Engine) -> None:
        self._position, self._found = 0, False

    def _finish(self, engine: Engine) -> None:
        if not self._found:
            engine.logger.warning("no picture: there is no pair %r among the %d.", self.pair, self._position)

    def _try_to_show(self, pair: Mapping[str, Any], engine: Engine) -> None:
        try:
            self._show(pair, engine.state.epoch)
        except Exception as error:  # no picture is worth a training
            engine.logger.warning("%s: no picture: %s", pair.get("pair", "a pair"), error)
            engine.logger.debug("Traceback of the error above:", exc_info=True)

    def _show(self, pair: Mapping[str, Any], epoch: int) -> None:
        title = f"{pair.get('pair')}, epoch {epoch}"
        content = report_png(pair, dots_per_inch=DOTS_PER_INCH, columns=COLUMNS, title=title)
        path = self.output_dir / "pictures" / f"epoch_{epoch:04d}.png"
        with whole_file(path) as unfinished:
            unfinished.write_bytes(content)
        if self.writer is not None:
            with Image.open(io.BytesIO(content)) as image:
                self.writer.add_image("validation_pair", np.array(image.convert("RGB")), epoch, dataformats="HWC")
            self.writer.flush()
        if self.mlflow_handler is not None:
            self._log_artifact(path)

    def _log_artifact(self, path: Path) -> None:
        run = self.mlflow_handler.cur_run
        if run is None:
            raise ValueError("the MLflow handler has no run. Attach it to the same engine, before this one.")
        self.mlflow_handler.client.log_artifact(run.info.run_id, str(path), "pictures")
