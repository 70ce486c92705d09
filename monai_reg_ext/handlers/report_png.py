# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from monai_reg_ext.handlers.report_figure import report_figure

__all__ = ["report_png"]


def report_png(pair: Mapping[str, Any], dots_per_inch: float | None = None, **options: Any) -> bytes:
    """The figure of a registered pair, as the content of a PNG file.

    Args:
        pair: batch item and output item together: ``pair``, ``fixed``, ``moving``, ``warped``, ``pred`` and, where they
            exist, ``metrics``, ``fixed_label`` and ``warped_label``.
        dots_per_inch: resolution; by default the figure's own.
        options: further arguments of :py:func:`report_figure`.

    Raises:
        ValueError: when something that the figure needs is not there, or as :py:func:`report_figure` does.
    """
    missing = [key for key in ("pair", "fixed", "moving", "warped", "pred") if pair.get(key) is None]
    if missing:
        raise ValueError(f"it needs {', '.join(missing)}. Warp with WarpByDDFd in the postprocessing.")
    named = {key: pair.get(key) for key in ("metrics", "fixed_label", "warped_label")}
    figure = report_figure(
        *(pair[key] for key in ("fixed", "moving", "warped", "pred")),
        **{"affine": pair["fixed"].affine, "title": pair["pair"], **named, **options},
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch or "figure")
    return buffer.getvalue()
