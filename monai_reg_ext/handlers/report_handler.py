# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from pathlib import Path

from ignite.engine import Engine, Events

from monai_reg_ext.data import whole_file
from monai_reg_ext.handlers.report_png import report_png

__all__ = ["ReportHandler"]


class ReportHandler:
    """Writes ``<output_dir>/<pair>/report.png`` for every registered pair, whole or not at all.

    A pair is its batch item and its output item together: ``pair``, ``fixed``, ``moving``, ``warped`` and ``pred``, and
    ``fixed_label`` and ``warped_label`` where there are any; see :py:func:`report_figure` for what is drawn. Attach it
    behind the metric handlers, whose values ``engine.state.output[i]["metrics"]`` become the caption.

    A pair with an ``error``, or without ``pred``, has no report. When a report cannot be made, the error is logged and
    kept as ``engine.state.output[i]["error"]``, and the run goes on.

    Args:
        output_dir: folder of the run; made if need be.
    """

    def __init__(self, output_dir: str | os.PathLike) -> None:
        self.output_dir = Path(output_dir).expanduser()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=False):
            pair = {**item, **output}
            if "error" in pair or pair.get("pred") is None:
                continue
            try:
                content = report_png(pair)
                with whole_file(self.output_dir / pair["pair"] / "report.png") as path:
                    path.write_bytes(content)
            except Exception as error:  # one pair must not stop the run
                message = f"report.png could not be made: {error}"
                engine.logger.error(f"{pair.get('pair', 'a pair')}: {message}")
                engine.logger.debug("Traceback of the error above:", exc_info=True)
                output["error"] = message
