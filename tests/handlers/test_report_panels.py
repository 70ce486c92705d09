# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize, same_color
from matplotlib.figure import Figure
from monai.data import MetaTensor

from monai_reg_ext.handlers import report_panels as panels
from monai_reg_ext.handlers.report_slices import ReportSlice, report_slices

SIZE = (20, 30, 10)
AFFINE = torch.diag(torch.tensor([2.0, -1.0, 3.0, 1.0], dtype=torch.float64))  # flipped across, not down


def axial_slice(ddf=None, **options) -> ReportSlice:
    """``(30, 20)`` pixels, anterior first (array order) and right first (against it); 1 mm down, 2 mm across."""
    fixed = MetaTensor(torch.rand(1, *SIZE), affine=AFFINE)
    ddf = torch.zeros(3, *SIZE) if ddf is None else ddf
    return report_slices(fixed, options.pop("moving", fixed), options.pop("warped", fixed), ddf, AFFINE, **options)[0]


def axes_of(item: ReportSlice, dots_per_mm: int = 5) -> Axes:
    """Axes that fill a page of a whole number of dots per mm."""
    height, width = item.extent_mm
    figure = Figure((width * dots_per_mm / 100, height * dots_per_mm / 100), dpi=100)
    FigureCanvasAgg(figure)
    return figure.add_axes((0, 0, 1, 1))


def pixels(axes: Axes, item: ReportSlice) -> np.ndarray:
    """Colour 0 to 1 at the centre of every voxel of the slice."""
    axes.figure.canvas.draw()
    page = np.asarray(axes.figure.canvas.buffer_rgba())[..., :3] / 255
    across, down = item.centres_mm()
    per_mm = page.shape[1] / item.extent_mm[1]
    return page[np.ix_((down * per_mm).astype(int), (across * per_mm).astype(int))]


def lines_mm(axes: Axes) -> list[np.ndarray]:
    """Every line of every contour, as points (across, down)."""
    return [
        line
        for contours in axes.collections
        for path in contours.get_paths()
        for line in path.to_polygons(closed_only=False)
    ]


def test_the_patients_right_and_front_are_drawn_at_the_upper_left():
    fixed = torch.zeros(1, *SIZE)
    fixed[:, 13:, :8] = 1  # R and A by the affine
    item = report_slices(*[MetaTensor(fixed, affine=AFFINE)] * 3, torch.zeros(3, *SIZE), AFFINE)[0]
    axes = axes_of(item)

    panels.draw_fixed(axes, item)

    shown = pixels(axes, item)[..., 0]
    assert shown[1:6, 2:6].min() > 0.95
    assert shown[20:27, 1:6].max() < 0.05
    assert shown[1:6, 11:18].max() < 0.05


def test_letters_stand_at_the_edges_they_name():
    item = axial_slice()
    axes = axes_of(item)

    panels.draw_fixed(axes, item)

    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert places["R"][0] < 0.1 < 0.9 < places["L"][0]
    assert places["P"][1] < 0.1 < 0.9 < places["A"][1]


def test_outlines_enclose_the_labels_in_their_colours():
    fixed_label, warped_label = torch.zeros(2, 1, *SIZE, dtype=torch.int32)
    fixed_label[:, 4:9, 10:20, 2:7] = 3
    warped_label[:, 0:9, 12:20, 2:7] = 3
    item = axial_slice(fixed_label=fixed_label, warped_label=warped_label)
    axes = axes_of(item)

    panels.draw_warped(axes, item)

    boxes = {}
    for contours in axes.collections:
        (line,) = (line for path in contours.get_paths() for line in path.to_polygons())
        boxes[panels.FIXED_COLOUR if same_color(contours.get_edgecolor()[0], panels.FIXED_COLOUR) else "other"] = line
    # first axis to the right, displayed from the right: voxels 4 to 8 of 20 end at 32 mm across
    np.testing.assert_allclose(boxes[panels.FIXED_COLOUR].min(0), [22, 10])
    np.testing.assert_allclose(boxes[panels.FIXED_COLOUR].max(0), [32, 20])
    np.testing.assert_allclose(boxes["other"].max(0), [40, 20])  # closed at the edge of the image


def test_a_moving_image_that_lies_elsewhere_is_said_to_be_outside():
    far = AFFINE.clone()
    far[0, 3] = 500
    item = axial_slice(moving=MetaTensor(torch.rand(1, *SIZE), affine=far))
    axes = axes_of(item)

    panels.draw_moving(axes, item)

    assert axes.texts[-1].get_text() == "outside the\nmoving image"


def test_tiles_alternate_between_fixed_and_warped():
    white, black = torch.ones(1, *SIZE), torch.zeros(1, *SIZE)
    white[..., 0], black[..., 9] = 0, 1  # gives both a contrast
    white, black = (MetaTensor(image, affine=AFFINE) for image in (white, black))
    item = report_slices(white, black, black, torch.zeros(3, *SIZE), AFFINE)[0]
    axes = axes_of(item)

    panels.draw_checkerboard(axes, item, tile_mm=10)

    shown = pixels(axes, item)[..., 0]
    row, column = np.indices((30, 20))
    fixed_tile = (row // 10 + column // 5) % 2 == 0  # 1 mm down, 2 mm across
    np.testing.assert_array_equal(shown > 0.5, fixed_tile)


def test_the_difference_is_fixed_minus_the_other_in_common_colours():
    item = axial_slice()
    axes = axes_of(item)
    norm = Normalize(-0.5, 0.5)

    panels.draw_difference(axes, item, item.fixed - 0.25, norm)

    expected = panels.DIFFERENCE_MAP(norm(0.25))[:3]
    np.testing.assert_allclose(pixels(axes, item), np.broadcast_to(expected, (30, 20, 3)), atol=0.01)


@pytest.mark.parametrize("shift_mm", [0.0, 3.0])
def test_without_deformation_the_grid_is_regular_and_moves_against_the_displacement(shift_mm):
    ddf = torch.zeros(3, *SIZE)
    ddf[1] = shift_mm  # voxels of 1 mm towards posterior, which is down
    item = axial_slice(ddf)
    axes = axes_of(item)

    panels.draw_grid(axes, item, spacing_mm=8)

    horizontal = sorted(line[0, 1] for line in lines_mm(axes) if np.ptp(line[:, 1]) < 1e-4)
    vertical = sorted(line[0, 0] for line in lines_mm(axes) if np.ptp(line[:, 0]) < 1e-4)
    assert len(horizontal) + len(vertical) == len(lines_mm(axes))
    # lines at whole multiples of 8 mm from the centre of voxel 0, which is 0.5 mm from the top and 39 mm from the left
    assert horizontal == pytest.approx([line - shift_mm + 0.5 for line in (0, 8, 16, 24) if line >= shift_mm])
    assert vertical == pytest.approx([39 - line for line in (32, 24, 16, 8, 0)], abs=1e-3)


def test_folded_voxels_and_only_they_are_marked():
    ddf = torch.zeros(3, *SIZE)
    for column, step in ((3, -1.9), (7, -2), (15, -3)):  # determinants before and after the step: 1 + step / 2
        ddf[1, column, 12:] = step
    item = axial_slice(ddf)
    axes = axes_of(item)

    panels.draw_jacobian(axes, item, LogNorm(0.5, 2))

    (marks,) = axes.collections
    centres = sorted(path.vertices[:4].mean(0).tolist() for path in marks.get_paths())
    # 2 mm voxels counted from the right, so that number 7 of 20 has its centre at 2 * (19 - 7) + 1 mm
    np.testing.assert_allclose(centres, [(9, 11.5), (9, 12.5), (25, 11.5), (25, 12.5)])
    assert same_color(marks.get_facecolor()[0], panels.FOLDED_COLOUR)
    assert pixels(axes, item)[11, 12] == pytest.approx((1.0, 0.1, 0.85), abs=0.01)
