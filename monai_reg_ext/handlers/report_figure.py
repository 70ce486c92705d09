# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from monai.data import MetaTensor

from monai_reg_ext.handlers import report_panels as panels
from monai_reg_ext.handlers.report_layout import ReportLayout
from monai_reg_ext.handlers.report_slices import ReportSlice, report_slices

__all__ = ["report_figure"]

# name among the metrics, name in the caption, digits, unit
CAPTION = (
    ("dice", "Dice", 1, " %"),
    ("tre_mm", "TRE", 1, " mm"),
    ("hd95", "HD95", 2, " voxels"),
    ("sdlogj", "SDlogJ", 3, ""),
    ("folding_percent", "folding", 2, " %"),
)
JACOBIAN_LIMITS = (1.25, 1.5, 2, 3, 5)
ROUND_LENGTHS_MM = [digit * 10.0**power for power in range(-3, 3) for digit in (1, 2, 5)]


def report_figure(
    fixed: torch.Tensor,
    moving: MetaTensor,
    warped: torch.Tensor,
    ddf: torch.Tensor,
    affine: torch.Tensor,
    metrics: Mapping[str, float] | None = None,
    title: str = "",
    fixed_label: torch.Tensor | None = None,
    warped_label: torch.Tensor | None = None,
    columns: Sequence[str] | None = None,
) -> Figure:
    """One page on a registered pair, for a reader of scans.

    Three planes in radiological convention through the labels, or where there are none through the body: fixed image,
    moving image before and after, what differs before and after, a checkerboard of fixed and warped, a regular grid
    warped with the moving image, and the Jacobian determinant with folded voxels marked. All panels have one scale.

    Each image is shown between robust percentiles of its own; what differs, differs after that normalization.

    Args:
        fixed: ``(1, I, J, K)``.
        moving: ``(1, ...)`` on its own grid, with its own affine.
        warped: ``(1, I, J, K)``, moving after registration.
        ddf: ``(3, I, J, K)``, total displacement in voxels of the fixed grid.
        affine: ``(4, 4)`` of the fixed grid, voxel to mm RAS.
        metrics: values for the caption, by the names that the metric handlers give them.
        title: first line of the caption, such as the name of the pair.
        fixed_label: ``(1, I, J, K)``; its outlines are drawn over the warped image.
        warped_label: ``(1, I, J, K)``; likewise.
        columns: headings of the columns to draw, all by default; their order is always the same.

    Returns:
        A figure of its own, unknown to pyplot; ``figure.savefig(path)`` writes it.

    Raises:
        TypeError: when ``moving`` has no affine.
        ValueError: when something is not on the grid of ``fixed``, or that is thinner than 3 voxels; for an unknown
            heading.
    """
    _check(fixed, moving, {"warped": warped, "ddf": ddf, "fixed_label": fixed_label, "warped_label": warped_label})
    slices = report_slices(fixed, moving, warped, ddf, affine, fixed_label, warped_label)
    longest_mm = max(max(item.extent_mm) for item in slices)
    scales = _Scales(
        difference=_difference_norm(slices),
        jacobian=_jacobian_norm(slices),
        grid_mm=_round_length(longest_mm / 24),
        tile_mm=_round_length(longest_mm / 14),
    )
    drawers = _columns(scales, columns)
    layout = ReportLayout([item.extent_mm for item in slices], len(drawers))
    layout.caption(title, _caption(metrics or {}))
    for column, heading in enumerate(drawers):
        layout.heading(column, heading)
    for row, item in enumerate(slices):
        layout.row_name(row, f"{item.view.plane}\n{item.view.index + 1} / {fixed.shape[1 + item.view.normal]}")
        for column, draw in enumerate(drawers.values()):
            draw(layout.panel(row, column, item.extent_mm), item)
    layout.scale_bar(_round_length(slices[0].extent_mm[1] / 3))
    _draw_legends(layout, list(drawers), scales, slices[0])
    return layout.figure


def _check(fixed: torch.Tensor, moving: MetaTensor, on_fixed_grid: Mapping[str, torch.Tensor | None]) -> None:
    if not isinstance(moving, MetaTensor):
        raise TypeError(
            f"moving must be a MetaTensor, whose affine places it beside fixed; got {type(moving).__name__}."
        )
    for name, volume in on_fixed_grid.items():
        if volume is not None and volume.shape[1:] != fixed.shape[1:]:
            raise ValueError(
                f"{name} must be on the grid of fixed, {tuple(fixed.shape[1:])}, got {tuple(volume.shape[1:])}."
            )


@dataclass(frozen=True)
class _Scales:
    """What colours and lines mean, common to the three planes."""

    difference: Normalize
    jacobian: LogNorm
    grid_mm: float
    tile_mm: float


def _columns(scales: _Scales, chosen: Sequence[str] | None) -> dict[str, Callable[[Axes, ReportSlice], None]]:
    """What draws the panels of each column, by its heading."""
    drawers = {
        "Fixed": panels.draw_fixed,
        "Moving (before)": panels.draw_moving,
        "Warped (after)": panels.draw_warped,
        "Difference before": lambda axes, item: panels.draw_difference(axes, item, item.moving, scales.difference),
        "Difference after": lambda axes, item: panels.draw_difference(axes, item, item.warped, scales.difference),
        "Checkerboard": lambda axes, item: panels.draw_checkerboard(axes, item, scales.tile_mm),
        "Warped grid": lambda axes, item: panels.draw_grid(axes, item, scales.grid_mm),
        "Jacobian determinant": lambda axes, item: panels.draw_jacobian(axes, item, scales.jacobian),
    }
    chosen = list(drawers if chosen is None else chosen)
    if unknown := [heading for heading in chosen if heading not in drawers]:
        raise ValueError(f"columns must be among {', '.join(drawers)}; got {unknown[0]!r}.")
    return {heading: draw for heading, draw in drawers.items() if heading in chosen}


def _draw_legends(layout: ReportLayout, headings: Sequence[str], scales: _Scales, item: ReportSlice) -> None:
    column_of = {heading: column for column, heading in enumerate(headings)}
    if "Warped (after)" in column_of:
        _draw_label_legend(layout, column_of["Warped (after)"], item)
    if differences := [column for heading, column in column_of.items() if heading.startswith("Difference")]:
        _draw_difference_legend(layout.legend_bar(differences[0], columns=len(differences)), scales.difference)
    if "Checkerboard" in column_of:
        layout.legend(column_of["Checkerboard"], 0, f"{scales.tile_mm:g} mm tiles, upper left: fixed")
    if "Warped grid" in column_of:
        layout.legend(column_of["Warped grid"], 0, f"{scales.grid_mm:g} mm grid on moving")
    if "Jacobian determinant" in column_of:
        _draw_jacobian_legend(layout, column_of["Jacobian determinant"], scales.jacobian)


def _draw_label_legend(layout: ReportLayout, column: int, item: ReportSlice) -> None:
    if item.fixed_label is not None:
        layout.legend(column, 0, "━ fixed labels", color=panels.FIXED_COLOUR)
    if item.warped_label is not None:
        layout.legend(column, 1, "━ warped labels", color=panels.WARPED_COLOUR)


def _draw_difference_legend(bar: Axes, norm: Normalize) -> None:
    ticks = {norm.vmin: "moving brighter", 0: "0", norm.vmax: "fixed brighter"}
    _draw_bar(bar, ScalarMappable(norm, panels.DIFFERENCE_MAP), ticks)


def _draw_jacobian_legend(layout: ReportLayout, column: int, norm: LogNorm) -> None:
    ticks = {norm.vmin: f"1/{norm.vmax:g}", 1: "1", norm.vmax: f"{norm.vmax:g}"}
    colours = ScalarMappable(norm, panels.JACOBIAN_MAP)
    _draw_bar(layout.legend_bar(column, columns=1), colours, ticks, alpha=panels.JACOBIAN_ALPHA)
    layout.legend(column, 2, "above 1: larger in moving")
    layout.legend(column, 3, "■ folded (0 and below)", color=panels.FOLDED_COLOUR)


def _draw_bar(axes: Axes, colours: ScalarMappable, ticks: Mapping[float, str], alpha: float = 1.0) -> None:
    bar = axes.figure.colorbar(colours, cax=axes, orientation="horizontal", alpha=alpha)
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.minorticks_off()
    bar.outline.set_visible(False)
    first, *_, last = axes.get_xticklabels()
    first.set_ha("left")
    last.set_ha("right")


def _difference_norm(slices: Sequence[ReportSlice]) -> Normalize:
    """Symmetric limits, common to before and after."""
    differences = [item.fixed - image for item in slices for image in (item.moving, item.warped)]
    limit = np.percentile(np.abs(np.concatenate(differences, axis=None)), 99)
    return Normalize(-max(limit, 0.1), max(limit, 0.1))


def _jacobian_norm(slices: Sequence[ReportSlice]) -> LogNorm:
    """From 1 / limit to limit, so that 1 is in the middle."""
    determinants = np.concatenate([item.jacobian for item in slices], axis=None)
    changes = np.abs(np.log(determinants[determinants > 0]))
    largest = np.exp(np.percentile(changes, 99)) if changes.size else 1.0
    limit = next((limit for limit in JACOBIAN_LIMITS if limit >= largest), JACOBIAN_LIMITS[-1])
    return LogNorm(1 / limit, limit)


def _round_length(length_mm: float) -> float:
    """Nearest round length, by ratio."""
    return min(ROUND_LENGTHS_MM, key=lambda length: abs(math.log(length / length_mm)))


def _caption(metrics: Mapping[str, float]) -> str:
    """Metrics before → after: ``Dice 59.4 → 75.5 %   ·   TRE 12.4 → 1.8 mm``."""
    parts = []
    for name, word, digits, unit in CAPTION:
        if name in metrics:
            values = [metrics[key] for key in (f"{name}_before", name) if key in metrics]
            parts.append(f"{word} {' → '.join(_number(value, digits) for value in values)}{unit}")
    return "   ·   ".join(parts)


def _number(value: float, digits: int) -> str:
    smallest = 10.0**-digits
    return f"< {smallest:g}" if 0 < value < smallest / 2 else f"{value:.{digits}f}"
