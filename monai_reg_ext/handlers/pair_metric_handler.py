# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler

from monai_reg_ext.metrics import PairMetric

__all__ = ["PairMetricHandler"]


class PairMetricHandler(IgniteMetricHandler):
    """Measures every registered pair as soon as its iteration is complete.

    Attach it like any MONAI metric, as ``key_val_metric`` or one of ``additional_metrics``. A pair is its batch item
    and its output item together. Its values go into the plain dictionary ``engine.state.output[i]["metrics"]``, where
    handlers that run later find them, and the mean of the value ``value_name`` over all pairs becomes the engine's
    metric under the name it was attached by.

    A pair that lacks one of the ``required`` keys, or whose value is NaN, has no value. A pair that cannot be measured
    has none either: the error is logged and kept as ``engine.state.output[i]["error"]``, unless an earlier one stands
    there.

    Args:
        metric_fn: collects the values of ``value_name``, one row per pair, with NaN for a pair without.

    Raises:
        TypeError: at the first iteration, when the engine does not decollate its batches (MONAI's default).
    """

    value_name: str
    required: tuple[str, ...]

    def __init__(self, metric_fn: PairMetric) -> None:
        super().__init__(metric_fn=metric_fn)

    @abstractmethod
    def measure(self, pair: Mapping[str, Any]) -> dict[str, float]:
        """Values of one pair by name, among them ``value_name``."""

    @torch.no_grad()
    def iteration_completed(self, engine: Engine) -> None:
        if not isinstance(engine.state.output, list):
            raise TypeError(
                f"{type(self).__name__} measures pairs one by one and needs the output as a list of dictionaries, got "
                f"{type(engine.state.output).__name__}. Leave decollate=True in the engine."
            )
        for item, output in zip(engine.state.batch, engine.state.output, strict=False):
            values = self._values({**item, **output}, output, engine)
            output.setdefault("metrics", {}).update(values)
            self.metric_fn.append(torch.tensor([values.get(self.value_name, math.nan)], dtype=torch.float64))

    def _values(self, pair: dict[str, Any], output: dict[str, Any], engine: Engine) -> dict[str, float]:
        if any(pair.get(key) is None for key in self.required):
            return {}
        try:
            values = self.measure(pair)
        except Exception as error:  # one pair must not stop the run
            message = f"{self.value_name} could not be measured: {error}"
            engine.logger.error(f"{pair.get('pair', 'a pair')}: {message}")
            engine.logger.debug("Traceback of the error above:", exc_info=True)
            output.setdefault("error", message)
            return {}
        return {name: float(value) for name, value in values.items() if not math.isnan(value)}
