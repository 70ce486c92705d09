# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor

from monai_reg_ext.handlers import FoldingHandler, Learn2RegDiceHandler, Learn2RegHD95Handler, SDlogJHandler, TREHandler
from monai_reg_ext.transforms import LoadPaird, SpatialDisplacement
from monai_reg_ext.transforms.check_pair import check_correspondence, check_points, check_same_grid

__all__ = ["evaluate_field", "load_for_evaluation"]


def load_for_evaluation(files: Mapping[str, Any], grid: MetaTensor) -> dict[str, Any]:
    """Load what a field is measured with; images are needed for their grids alone.

    Args:
        files: paths ``fixed moving fixed_label moving_label fixed_mask fixed_points moving_points`` as far as there
            are any, and ``points_space``. A label map stands in for its image.
        grid: stands in for the fixed image, ``(C, I, J, K)``, and for the moving one.

    Returns:
        The loaded pair, see :py:class:`~monai_reg_ext.transforms.LoadPaird`.

    Raises:
        FileNotFoundError: when a file does not exist.
        ValueError: when labels or masks do not lie on their image's grid, or points not in it.
    """
    given = {key: value for key, value in files.items() if value is not None}
    known = {side: given.get(side, given.get(f"{side}_label")) for side in ("fixed", "moving")}
    stand_in = MetaTensor(torch.zeros(1, *grid.shape[1:]), affine=grid.affine)
    pair = LoadPaird()({**given, **{side: stand_in if image is None else image for side, image in known.items()}})
    for side in ("fixed", "moving"):
        for key in (f"{side}_label", f"{side}_mask"):
            if key in pair:
                check_same_grid(key, pair[key], pair[side], side)
        if f"{side}_points" in pair and (side == "fixed" or known[side] is not None):
            check_points(f"{side}_points", pair[f"{side}_points"], pair[side], pair.get(f"{side}_mask"))
    check_correspondence(pair)
    return pair


def evaluate_field(
    field: SpatialDisplacement, pair: Mapping[str, Any], interpolation: str = "linear"
) -> dict[str, float]:
    """What a run measures, of any field: smoothness always, Dice and HD95 with labels, TRE with points.

    Args:
        field: on the grid of the fixed image.
        pair: loaded ``fixed_label moving_label fixed_mask fixed_points moving_points``, as far as there are any.
        interpolation: of the field at points, see :py:class:`~monai_reg_ext.handlers.TREHandler`.

    Returns:
        Figures by the names they have in ``metrics.csv``.
    """
    measured = {**pair, "pred": field.to_metatensor()}
    if "fixed_label" in pair and "moving_label" in pair:
        measured["warped_label"] = field.warp(pair["moving_label"], "nearest")
    handlers = [SDlogJHandler(), FoldingHandler(), Learn2RegDiceHandler(), Learn2RegHD95Handler()]
    figures: dict[str, float] = {}
    for handler in (*handlers, TREHandler(interpolation)):
        if all(key in measured for key in handler.required):
            figures |= handler.measure(measured)
    return figures
