# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["figures_block", "figures_line"]

# name in rows and summaries: unit, name of the same figure before registration
FIGURES = {
    "dice": ("%", "dice_before"),
    "hd95": ("voxels", ""),
    "tre_mm": ("mm", "tre_mm_before"),
    "sdlogj": ("", ""),
    "folding_percent": ("%", ""),
    "inverse_consistency_mm": ("mm", ""),
    "seconds_per_pair": ("s", ""),
}


def figures_block(summary: Mapping[str, Any]) -> str:
    """The main figures of a ``summary.json``, one per line; what does not apply is left out."""
    lines = []
    for name, (unit, before) in FIGURES.items():
        if summary.get(name) is None:
            continue
        earlier = f"   (before: {_number(summary[before])})" if summary.get(before) is not None else ""
        lines.append(f"  {name:24s}{_number(summary[name]):>9s} {unit}{earlier}".rstrip())
    return "\n".join(lines)


def figures_line(row: Mapping[str, Any]) -> str:
    """The main figures of a pair, or its error, in one line."""
    if row.get("error"):
        return f"failed: {row['error']}"
    values = {name: row.get(name) for name in (*FIGURES, "seconds")}
    given = {name: value for name, value in values.items() if value is not None and not math.isnan(value)}
    return ", ".join(f"{name} {_number(value)}" for name, value in given.items())


def _number(value: float) -> str:
    return f"{value:.4g}"
