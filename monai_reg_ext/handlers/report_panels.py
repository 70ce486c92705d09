# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""The panels of the report: each function draws one slice into axes that count mm from the upper left corner."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.image import AxesImage
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from monai_reg_ext.handlers.report_slices import ReportSlice

__all__ = [
    "DIFFERENCE_MAP",
    "FIXED_COLOUR",
    "FOLDED_COLOUR",
    "JACOBIAN_ALPHA",
    "JACOBIAN_MAP",
    "WARPED_COLOUR",
    "draw_checkerboard",
    "draw_difference",
    "draw_fixed",
    "draw_grid",
    "draw_jacobian",
    "draw_moving",
    "draw_warped",
]

FIXED_COLOUR, WARPED_COLOUR = "#39c5ff", "#ffb224"  # told apart with any colour vision
GRID_COLOUR = "#ffe27a"
FOLDED_COLOUR = "#ff19d8"
# dark in the middle: on a dark page only what differs shines
DIFFERENCE_MAP = LinearSegmentedColormap.from_list(
    "difference", ["#c6e8ff", "#3d9be0", "#124a7a", "#101010", "#7f2b10", "#e8703a", "#ffe0c2"]
)
JACOBIAN_MAP = LinearSegmentedColormap.from_list(
    "jacobian", ["#e3d4ff", "#9a6fe0", "#472c86", "#181818", "#17633c", "#3db36c", "#d0ffd8"]
)
JACOBIAN_ALPHA = 0.8  # lets the anatomy shine through


def draw_fixed(axes: Axes, item: ReportSlice) -> None:
    """The fixed image."""
    _draw_image(axes, item, item.fixed)
    _draw_directions(axes, item)


def draw_moving(axes: Axes, item: ReportSlice) -> None:
    """The moving image before registration."""
    _draw_image(axes, item, item.moving)
    _draw_directions(axes, item)
    if item.moving.min() == item.moving.max():
        text = axes.text(0.5, 0.5, "outside the\nmoving image", ha="center", va="center", transform=axes.transAxes)
        text.set(color="white", fontsize=9)


def draw_warped(axes: Axes, item: ReportSlice) -> None:
    """The moving image after registration, with outlines of the labels."""
    _draw_image(axes, item, item.warped)
    _draw_directions(axes, item)
    for label_map, colour in ((item.fixed_label, FIXED_COLOUR), (item.warped_label, WARPED_COLOUR)):
        if label_map is not None:
            _draw_outlines(axes, item, label_map, colour)


def draw_difference(axes: Axes, item: ReportSlice, image: np.ndarray, norm: Normalize) -> None:
    """Fixed minus another image."""
    _draw_image(axes, item, item.fixed - image, DIFFERENCE_MAP, norm)


def draw_checkerboard(axes: Axes, item: ReportSlice, tile_mm: float) -> None:
    """Fixed and warped image in alternate tiles."""
    _draw_image(axes, item, item.fixed)
    height, width = item.extent_mm
    corners = [
        (tile_mm * column, tile_mm * row)
        for row in range(int(height / tile_mm) + 1)
        for column in range((row + 1) % 2, int(width / tile_mm) + 1, 2)
    ]
    unit = Path.unit_rectangle()
    tiles = Path.make_compound_path(*(Path(unit.vertices * tile_mm + corner, unit.codes) for corner in corners))
    _draw_image(axes, item, item.warped).set_clip_path(tiles, transform=axes.transData)


def draw_grid(axes: Axes, item: ReportSlice, spacing_mm: float) -> None:
    """A regular grid painted onto the moving image and warped with it, over the fixed image."""
    _draw_image(axes, item, 0.7 * item.fixed)
    across, down = item.centres_mm()
    for position in item.position_mm:
        levels = spacing_mm * np.arange(np.ceil(position.min() / spacing_mm), position.max() / spacing_mm)
        if levels.size:
            axes.contour(across, down, position, levels=levels, colors=GRID_COLOUR, linewidths=0.5, linestyles="solid")


def draw_jacobian(axes: Axes, item: ReportSlice, norm: LogNorm) -> None:
    """Jacobian determinant, folded voxels marked."""
    _draw_image(axes, item, 0.5 * item.fixed)
    _draw_image(axes, item, item.jacobian, JACOBIAN_MAP, norm).set_alpha(JACOBIAN_ALPHA)
    down, across = np.nonzero(item.jacobian <= 0)
    corners = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
    voxels = (np.stack([across, down], axis=1)[:, None] + corners) * item.view.spacing[::-1]
    # the edge keeps a single voxel visible where voxels are smaller than the page's dots
    axes.add_collection(PolyCollection(voxels, facecolors=FOLDED_COLOUR, edgecolors=FOLDED_COLOUR, linewidths=1.2))


def _draw_image(
    axes: Axes, item: ReportSlice, values: np.ndarray, colours: Colormap | str = "gray", norm: Normalize | None = None
) -> AxesImage:
    """Values ``(down, across)``, as grey levels from 0 to 1 unless told otherwise."""
    height, width = item.extent_mm
    norm = Normalize(0, 1) if norm is None else norm
    return axes.imshow(values, cmap=colours, norm=norm, extent=(0, width, height, 0), interpolation="bilinear")


def _draw_directions(axes: Axes, item: ReportSlice) -> None:
    """Letters of the patient's directions at the edges."""
    places = ((0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"))
    places += ((0.015, 0.5, "left", "center"), (0.985, 0.5, "right", "center"))
    outline = [withStroke(linewidth=1.5, foreground="black")]
    for letter, (x, y, horizontal, vertical) in zip(item.view.letters, places, strict=True):
        text = axes.text(x, y, letter, ha=horizontal, va=vertical, transform=axes.transAxes)
        text.set(color="white", fontsize=8, fontweight="bold", path_effects=outline)


def _draw_outlines(axes: Axes, item: ReportSlice, label_map: np.ndarray, colour: str) -> None:
    across, down = item.centres_mm(padding=1)
    padded = np.pad(label_map, 1)  # closes outlines at the edge of the image
    for label in np.unique(label_map[label_map != 0]):
        axes.contour(across, down, padded == label, levels=[0.5], colors=colour, linewidths=0.8)
