# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

__all__ = ["ReportLayout"]

# inches
COLUMN_WIDTH, NARROWEST_COLUMN = 2.25, 1.95
LOWEST_ROW, TALLEST_ROWS = 0.75, 7.8
GAP = 0.07
MARGIN_TOP, MARGIN_BOTTOM, MARGIN_LEFT, MARGIN_RIGHT = 1.0, 0.92, 0.5, 0.15
DOTS_PER_INCH = 100

PAGE_COLOUR, TEXT_COLOUR, FRAME_COLOUR = "#0a0a0a", "#e6e6e6", "#484848"
FONT = "DejaVu Sans"


class ReportLayout:
    """A dark page with rows of panels, all at one scale in mm, between a caption and a line of legends.

    Args:
        extents_mm: height and width of the panels of each row.
        columns: number of panels per row.
    """

    def __init__(self, extents_mm: Sequence[tuple[float, float]], columns: int) -> None:
        heights, widths = zip(*extents_mm, strict=True)
        self.mm_per_inch = max(max(widths) / COLUMN_WIDTH, sum(heights) / TALLEST_ROWS)
        self.column_width = max(max(widths) / self.mm_per_inch, NARROWEST_COLUMN)
        self.row_heights = [max(height / self.mm_per_inch, LOWEST_ROW) for height in heights]
        self.width = MARGIN_LEFT + columns * (self.column_width + GAP) - GAP + MARGIN_RIGHT
        self.height = MARGIN_TOP + sum(self.row_heights) + GAP * (len(heights) - 1) + MARGIN_BOTTOM
        self.figure = Figure((self.width, self.height), dpi=DOTS_PER_INCH, facecolor=PAGE_COLOUR)
        FigureCanvasAgg(self.figure)

    def left(self, column: int) -> float:
        """Inches from the left edge of the page to a column."""
        return MARGIN_LEFT + column * (self.column_width + GAP)

    def middle(self, row: int) -> float:
        """Inches from the top of the page to the middle of a row."""
        return MARGIN_TOP + sum(self.row_heights[:row]) + GAP * row + self.row_heights[row] / 2

    def panel(self, row: int, column: int, extent_mm: tuple[float, float]) -> Axes:
        """Axes that count mm from their upper left corner, centred in their cell."""
        height, width = (length / self.mm_per_inch for length in extent_mm)
        left = self.left(column) + (self.column_width - width) / 2
        axes = self._axes(left, self.middle(row) - height / 2, width, height)
        axes.set(xlim=(0, extent_mm[1]), ylim=(extent_mm[0], 0), xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=FRAME_COLOUR, linewidth=0.7)
        return axes

    def legend_bar(self, column: int, columns: int) -> Axes:
        """Axes for a colour bar below the panels of some columns; it takes the first two lines of the legend."""
        width = columns * (self.column_width + GAP) - GAP
        axes = self._axes(self.left(column), self.height - MARGIN_BOTTOM + 0.14, width, 0.11)
        axes.tick_params(colors=TEXT_COLOUR, labelsize=8, labelfontfamily=FONT, length=2, pad=2)
        return axes

    def legend(self, column: int, line: int, text: str, **options) -> Text:
        """One of four lines (0 to 3) of text below the panels of a column."""
        return self._text(self.left(column), self.height - MARGIN_BOTTOM + 0.19 + 0.19 * line, text, 8.5, **options)

    def heading(self, column: int, text: str) -> Text:
        centre = self.left(column) + self.column_width / 2
        return self._text(centre, MARGIN_TOP - 0.13, text, 10.5, ha="center", fontweight="bold")

    def row_name(self, row: int, text: str) -> Text:
        return self._text(MARGIN_LEFT / 2, self.middle(row), text, 9.5, ha="center", rotation=90, ma="center")

    def caption(self, title: str, text: str) -> None:
        self._text(MARGIN_LEFT, 0.27, title, 13, fontweight="bold")
        self._text(MARGIN_LEFT, 0.56, text, 11.5)

    def scale_bar(self, length_mm: float) -> None:
        left, y = self.left(0), 1 - (self.height - MARGIN_BOTTOM + 0.19) / self.height
        ends = left / self.width, (left + length_mm / self.mm_per_inch) / self.width
        self.figure.add_artist(Line2D(ends, (y, y), color=TEXT_COLOUR, linewidth=2.5, solid_capstyle="butt"))
        self.legend(0, 1, f"{length_mm:g} mm")

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        page = (self.width, self.height, self.width, self.height)
        return self.figure.add_axes([i / p for i, p in zip((left, bottom, width, height), page, strict=True)], fc="k")

    def _text(self, left: float, top: float, text: str, size: float, **options) -> Text:
        options = {
            "ha": "left",
            "va": "center",
            "color": TEXT_COLOUR,
            "fontfamily": FONT,
            "parse_math": False,
            **options,
        }
        return self.figure.text(left / self.width, 1 - top / self.height, text, fontsize=size, **options)
