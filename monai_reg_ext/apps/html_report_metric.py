# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from dataclasses import dataclass

from monai_reg_ext.handlers.report_figure import CAPTION

__all__ = ["ReportMetric", "report_metric"]

# name in metrics.csv, label, digits, unit: as on the page of each pair, and what has no place there
KNOWN = (
    *CAPTION,
    ("inverse_consistency_mm", "inverse consistency", 3, " mm"),
    ("inverse_residual_voxel", "inverse residual", 3, " voxels"),
    ("seconds", "time", 1, " s"),
)
MEANINGS = {
    "dice": "Mean overlap of the labels.",
    "tre_mm": "Mean distance of corresponding landmarks.",
    "hd95": "95 % quantile of the distance between label surfaces.",
    "sdlogj": "Roughness of the field.",
    "folding_percent": "Voxels where the field is not invertible.",
    "inverse_consistency_mm": "What the way there and back misses.",
    "inverse_residual_voxel": "What the inversion alone missed.",
    "seconds": "Of the network, without files and metrics.",
}
HIGHER_IS_BETTER = ("dice",)
BEFORE = "_before"


@dataclass(frozen=True)
class ReportMetric:
    """A column of ``metrics.csv`` as it is shown to a reader.

    Args:
        name: name of the column.
        label: what the reader knows it by.
        unit: empty where there is none.
        digits: behind the decimal point; None for four significant ones.
        higher_is_better: None where it is not known.
        meaning: one sentence; empty where it is not known.
    """

    name: str
    label: str
    unit: str = ""
    digits: int | None = None
    higher_is_better: bool | None = None
    meaning: str = ""

    @property
    def rank(self) -> int:
        """Place among the columns: that in the caption of a pair's page; what is none of ours stands last."""
        names = [name for name, *_ in KNOWN]
        base = self.name.removesuffix(BEFORE)
        return names.index(base) if base in names else len(names)

    @property
    def before(self) -> str:
        """Name of the column with the same measure before registration."""
        return self.name + BEFORE

    @property
    def is_before(self) -> bool:
        """Whether this is the measure before registration."""
        return self.name.endswith(BEFORE)

    def text(self, value: float | None) -> str:
        """A value without its unit; a dash where there is none."""
        if value is None:
            return "–"
        if self.digits is None or not math.isfinite(value):
            return f"{value:.4g}"
        smallest = 10.0**-self.digits
        return f"< {smallest:g}" if 0 < value < smallest / 2 else f"{value:.{self.digits}f}"

    def is_worse(self, value: float, than: float) -> bool:
        """Whether a value is worse than another; never where nobody knows which is better."""
        if self.higher_is_better is None:
            return False
        return value < than if self.higher_is_better else value > than


def report_metric(name: str) -> ReportMetric:
    """The metric of a column; one that is none of ours keeps its name."""
    base, before = name.removesuffix(BEFORE), name.endswith(BEFORE)
    known = next((entry for entry in KNOWN if entry[0] == base), None)
    if known is None:
        return ReportMetric(name, base + " before" * before)
    _, word, digits, unit = known
    label = word[0].upper() + word[1:] + " before" * before
    return ReportMetric(name, label, unit.strip(), digits, base in HIGHER_IS_BETTER, MEANINGS[base])
