# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from typing import Any

from monai.engines import Evaluator

from monai_reg_ext.data.error_line import error_line

__all__ = ["record_failures"]

logger = logging.getLogger(__name__)


def record_failures(engine: Evaluator, batchdata: dict[str, Any]) -> list[dict[str, Any]]:
    """Iteration of an evaluator that outlives a pair that fails: give it as ``iteration_update``.

    A pair that :py:class:`~monai_reg_ext.data.PairDataset` could not prepare, or that fails in the network or the
    postprocessing, leaves ``[{"error": message}]`` as output and ``[{"pair": name}]`` as batch, and the run goes on.

    Args:
        engine: a MONAI evaluator that decollates its batches.
        batchdata: collated batch; a pair that could not be prepared comes alone (batch size 1).

    Returns:
        The output items, one per pair.
    """
    names = list(batchdata["pair"])
    if "error" in batchdata:
        return _failed(engine, names, batchdata["error"])
    try:
        return engine._iteration(engine, batchdata)
    except Exception as error:
        message = error_line(error)
        logger.error("pair %s failed: %s", ", ".join(names), message)
        logger.debug("traceback:", exc_info=True)
        return _failed(engine, names, [message] * len(names))


def _failed(engine: Evaluator, names: list[str], errors: list[str]) -> list[dict[str, Any]]:
    engine.state.batch = [{"pair": name} for name in names]
    engine.state.output = [{"error": error} for error in errors]
    return engine.state.output
