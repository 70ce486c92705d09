# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from monai_reg_ext.metrics import (
    compute_learn2reg_dice,
    compute_learn2reg_hd95,
    compute_sdlogj,
    compute_tre,
)

__all__ = ["TrialEvaluation"]

HARD_FRACTION = 0.3


class TrialEvaluation:
    """Measures a way to register on a set of pairs, with the metrics that Learn2Reg ranks by.

    With label maps: ``dice`` and ``dice_hard`` (percent), ``hd95`` (voxels) and ``sdlogj``; with points: ``tre_mm``,
    ``tre_hard_mm`` and ``sdlogj``. "Hard" are the 30 % of labels, or of points, that lie worst before registration,
    over all pairs together.

    Args:
        pairs: prepared pairs with ``image`` and either label maps or points on both sides.
        postprocessing: turns ``pred`` into the total field on the fixed grid and, with labels, adds ``warped_label``.

    Raises:
        ValueError: when there are no pairs, or a pair has neither labels in common nor points.
    """

    def __init__(self, pairs: Iterable[Mapping[str, Any]], postprocessing: Callable) -> None:
        self.pairs = list(pairs)
        self.postprocessing = postprocessing
        if not self.pairs:
            raise ValueError("no pairs to measure on. Give training pairs with labels or points.")
        kinds = {_kind(pair) for pair in self.pairs}
        if len(kinds) > 1:
            raise ValueError("some pairs have label maps, others only points. Give pairs of one kind.")
        self.has_labels = kinds == {"labels"}
        self.before = [self._errors(self._finished(pair, _no_motion(pair["image"]))) for pair in self.pairs]
        for pair, errors in zip(self.pairs, self.before, strict=True):
            if errors.size == 0:
                raise ValueError(f"pair {pair.get('pair')}: there is no label in common, or no point, to measure by.")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What is measured, in the order of the values."""
        return ("dice", "dice_hard", "hd95", "sdlogj") if self.has_labels else ("tre_mm", "tre_hard_mm", "sdlogj")

    @torch.no_grad()
    def __call__(self, register: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Means over the pairs; ``register`` takes ``(1, 2C, I, J, K)`` and gives a ddf ``(1, 3, I, J, K)``."""
        finished = [self._finished(pair, register(pair["image"][None])[0].cpu()) for pair in self.pairs]
        errors = [self._errors(pair) for pair in finished]
        means = float(np.mean([values.mean() for values in errors]))
        hardest = self._mean_of_hardest(np.concatenate(errors))
        sdlogj = float(np.mean([compute_sdlogj(pair["pred"][None].as_tensor()).item() for pair in finished]))
        if not self.has_labels:
            return {"tre_mm": means, "tre_hard_mm": hardest, "sdlogj": sdlogj}
        hd95 = float(np.mean([_measure(compute_learn2reg_hd95, pair).mean() for pair in finished]))
        return {"dice": 100 * (1 - means), "dice_hard": 100 * (1 - hardest), "hd95": hd95, "sdlogj": sdlogj}

    def _finished(self, pair: Mapping[str, Any], ddf: torch.Tensor) -> dict[str, Any]:
        return self.postprocessing({**pair, "pred": ddf})

    def _errors(self, pair: Mapping[str, Any]) -> np.ndarray:
        """One minus Dice of every label, or the distance of every point."""
        if self.has_labels:
            return 1 - _measure(compute_learn2reg_dice, pair)
        pred = pair["pred"]
        return compute_tre(pred.as_tensor(), pred.affine, pair["fixed_points"], pair["moving_points"]).numpy()

    def _mean_of_hardest(self, errors: np.ndarray) -> float:
        before = np.concatenate(self.before)
        count = max(1, round(HARD_FRACTION * len(before)))
        return float(errors[np.argsort(-before, kind="stable")[:count]].mean())


def _kind(pair: Mapping[str, Any]) -> str:
    for kind, keys in (("labels", ("fixed_label", "moving_label")), ("points", ("fixed_points", "moving_points"))):
        if all(pair.get(key) is not None for key in keys):
            return kind
    raise ValueError(f"pair {pair.get('pair')} has neither label maps nor points of both images to measure by.")


def _no_motion(image: torch.Tensor) -> torch.Tensor:
    return torch.zeros(3, *image.shape[1:])


def _measure(metric: Callable, pair: Mapping[str, Any]) -> np.ndarray:
    return metric(pair["warped_label"], pair["fixed_label"], pair["moving_label"]).numpy()
