# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""A process of a batch: ``python -m monai_reg_ext.apps.batch_worker`` reads lines of JSON and answers each with one.

The first line says how to register, every further one is a pair; the answer is the pair's row.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any

from monai_reg_ext.apps.bundle_run import BundleRun
from monai_reg_ext.apps.run_folder import RunFolder
from monai_reg_ext.data.error_line import error_line

__all__ = ["main", "pair_row"]

RECORDER = "monai_reg_ext.apps.pair_recorder.PairRecorder"


def main() -> None:
    """Work until the parent closes its end, also by dying; then end at once, in the midst of a pair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's affair
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever libraries print goes to the log
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(requests,), daemon=True).start()
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        warnings.filterwarnings("ignore")
        job = requests.get()
        while True:
            row = pair_row(job, requests.get())
            print(json.dumps(row), file=answers, flush=True)


def _listen(requests: queue.SimpleQueue[Any]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def pair_row(job: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Any]:
    """Register a pair and write its results, unless it is finished already: a worker may die before it could say so.

    Args:
        job: ``run``, arguments of :py:class:`~monai_reg_ext.apps.bundle_run.BundleRun`, and ``output_dir``.
        pair: as for :py:meth:`monai_reg_ext.apps.bundle_run.BundleRun.run`.

    Returns:
        The pair's row; one with an ``error`` when it fails.
    """
    try:
        finished = RunFolder(job["output_dir"]).finished(pair["pair"])
        return finished or BundleRun(**job["run"]).run([pair], job["output_dir"], RECORDER)[0]
    except Exception as error:
        logging.getLogger(__name__).exception("pair %s", pair["pair"])
        return {"pair": pair["pair"], "error": error_line(error)}
    finally:
        gc.collect()  # a workflow's objects know each other, and hold the volumes of several pairs until Python looks


if __name__ == "__main__":
    main()
