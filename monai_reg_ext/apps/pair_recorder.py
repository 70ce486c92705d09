# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from pathlib import Path

from ignite.engine import Engine

from monai_reg_ext.data import whole_file
from monai_reg_ext.handlers import RunRecorder

__all__ = ["PAIR_ROW", "PairRecorder"]

PAIR_ROW = "metrics.json"


class PairRecorder(RunRecorder):
    """Keeps every pair's figures beside its results, in ``<output_dir>/<pair>/metrics.json``.

    The file is the last one written of a pair, and none is written of a pair that failed: where it is, the pair is
    finished. Tables over several pairs are left to whoever runs them. Attach it behind all other handlers.

    Args:
        output_dir: folder of the run.
        method: as for :py:class:`~monai_reg_ext.handlers.RunRecorder`.
    """

    def start_run(self, engine: Engine) -> None:
        self.rows.clear()

    def write_table(self) -> None:
        row = self.rows[-1]
        if row["error"]:
            return
        with whole_file(Path(self.output_dir) / row["pair"] / PAIR_ROW) as path:
            path.write_text(json.dumps(row, indent=4) + "\n")

    def finish_run(self, engine: Engine) -> None:
        """Nothing is left to write."""
