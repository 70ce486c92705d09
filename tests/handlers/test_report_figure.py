# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_reg_ext.handlers import report_figure
from monai_reg_ext.transforms import LoadPaird, WarpByDDFd

SIZE = (16, 20, 12)
AFFINE = torch.diag(torch.tensor([-1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
HEADINGS = [
    "Fixed",
    "Moving (before)",
    "Warped (after)",
    "Difference before",
    "Difference after",
    "Checkerboard",
    "Warped grid",
    "Jacobian determinant",
]


def volume() -> MetaTensor:
    return MetaTensor(torch.rand(1, *SIZE), affine=AFFINE)


def figure_of(**changes):
    pair = {"fixed": volume(), "moving": volume(), "warped": volume(), "ddf": torch.zeros(3, *SIZE), "affine": AFFINE}
    return report_figure(**{**pair, **changes})


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def columns(figure) -> dict[str, list]:
    """Panels of each column, from the top, by the heading above them."""
    centres = {text.get_text(): text.get_position()[0] for text in figure.texts if text.get_text() in HEADINGS}
    panels = [axes for axes in figure.axes if len(axes.images)]
    of = {heading: [] for heading in centres}
    for axes in panels:
        box = axes.get_position()
        of[min(centres, key=lambda heading: abs(centres[heading] - (box.x0 + box.x1) / 2))].append(axes)
    return {heading: sorted(column, key=lambda axes: -axes.get_position().y0) for heading, column in of.items()}


def test_three_planes_by_eight_columns_stand_under_their_headings():
    label = torch.zeros(1, *SIZE, dtype=torch.int32)
    label[:, 3, 4, 5] = 1

    figure = figure_of(fixed_label=label)

    assert list(columns(figure)) == HEADINGS
    assert [len(column) for column in columns(figure).values()] == [3] * 8
    rows = sorted(
        (text for text in figure.texts if text.get_rotation() == 90), key=lambda text: -text.get_position()[1]
    )
    assert [text.get_text() for text in rows] == ["axial\n6 / 12", "coronal\n5 / 20", "sagittal\n4 / 16"]
    for column in columns(figure).values():
        boxes = [axes.get_position() for axes in column]
        assert [(box.y0 + box.y1) / 2 for box in boxes] == pytest.approx([text.get_position()[1] for text in rows])


def test_all_panels_have_the_true_aspect_and_one_scale():
    figure = figure_of()

    width, height = figure.get_size_inches()
    sizes_mm = {"axial": (40, 16), "coronal": (36, 16), "sagittal": (36, 40)}  # down, across
    for column in columns(figure).values():
        boxes = [axes.get_position() for axes in column]
        shown = np.array([(box.height * height, box.width * width) for box in boxes])
        ratio = shown / np.array(list(sizes_mm.values()))
        assert ratio == pytest.approx(ratio[0, 0])
    (scale_bar,) = figure.artists
    length_mm = np.ptp(scale_bar.get_xdata()) * width / ratio[0, 0]
    assert f"{length_mm:.3g} mm" in texts(figure)


def test_both_differences_have_the_same_symmetric_limits():
    fixed = volume()
    figure = figure_of(fixed=fixed, warped=fixed + 0.02 * torch.rand(1, *SIZE))

    norms = [axes.images[0].norm for name in HEADINGS[3:5] for axes in columns(figure)[name]]
    assert len({(norm.vmin, norm.vmax) for norm in norms}) == 1
    assert norms[0].vmin == -norms[0].vmax
    before, after = (columns(figure)[name][0].images[0].get_array() for name in HEADINGS[3:5])
    assert np.abs(after).mean() < 0.1 * np.abs(before).mean()


def test_differences_of_nearly_equal_images_are_not_blown_up():
    fixed = volume()

    figure = figure_of(fixed=fixed, moving=fixed, warped=fixed + 1e-4 * torch.rand(1, *SIZE))

    assert columns(figure)["Difference after"][0].images[0].norm.vmax == 0.1  # of the intensity window


@pytest.mark.parametrize(("stretch", "limit"), [(0.0, 1.25), (0.4, 1.5), (-0.4, 2.0), (9.0, 5.0)])
def test_the_jacobian_has_round_limits_around_one(stretch, limit):
    ddf = torch.zeros(3, *SIZE)
    ddf[0] = stretch * torch.arange(16.0)[:, None, None]

    norm = columns(figure_of(ddf=ddf))["Jacobian determinant"][0].images[-1].norm

    assert norm.vmax == limit  # the smallest that holds 1 + stretch, and 5 at most
    assert norm.vmin * norm.vmax == pytest.approx(1)


@pytest.mark.parametrize(
    ("metrics", "caption"),
    [
        (
            {
                "dice": 75.52, "dice_before": 59.41, "tre_mm": 1.76, "tre_mm_before": 12.38, "hd95": 2.838,
                "sdlogj": 0.0514, "folding_percent": 0.1249,
            },
            "Dice 59.4 → 75.5 %   ·   TRE 12.4 → 1.8 mm   ·   HD95 2.84 voxels   ·   SDlogJ 0.051   ·   folding 0.12 %",
        ),
        ({"sdlogj": 0.0, "folding_percent": 0.0003}, "SDlogJ 0.000   ·   folding < 0.01 %"),
        ({"dice_before": 59.4, "folding_percent": 0.0}, "folding 0.00 %"),
        (None, ""),
    ],
)  # fmt: skip
def test_the_caption_reads_metrics_before_and_after(metrics, caption):
    assert texts(figure_of(metrics=metrics, title="A__B"))[:2] == ["A__B", caption]


def test_chosen_columns_stand_in_the_order_of_the_report_with_their_own_legends():
    label = torch.zeros(1, *SIZE, dtype=torch.int32)
    label[:, 3, 4, 5] = 1

    figure = figure_of(warped_label=label, columns=["Warped grid", "Difference after", "Fixed"])

    assert list(columns(figure)) == ["Fixed", "Difference after", "Warped grid"]
    assert [len(column) for column in columns(figure).values()] == [3] * 3
    (bar,) = (axes for axes in figure.axes if axes.get_xticklabels())
    assert [text.get_text() for text in bar.get_xticklabels()] == ["moving brighter", "0", "fixed brighter"]
    box, panel = bar.get_position(), columns(figure)["Difference after"][0].get_position()
    assert box.x0 <= panel.x0 < panel.x1 <= box.x1 < columns(figure)["Warped grid"][0].get_position().x0
    assert any("grid on moving" in text for text in texts(figure))
    assert not any(word in text for text in texts(figure) for word in ("labels", "tiles", "folded"))


def test_a_column_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"columns must be among Fixed, .*; got 'Before'"):
        figure_of(columns=["Fixed", "Before"])


def test_legends_name_the_labels_that_are_there():
    label = torch.zeros(1, *SIZE, dtype=torch.int32)
    label[:, 4:9, 4:9, 4:9] = 1

    assert not any("labels" in text for text in texts(figure_of()))
    one, both = figure_of(fixed_label=label), figure_of(fixed_label=label, warped_label=label)
    assert [text for text in texts(one) if "labels" in text] == ["━ fixed labels"]
    assert [text for text in texts(both) if "labels" in text] == ["━ fixed labels", "━ warped labels"]


def test_a_title_with_dollars_is_no_formula():
    figure_of(title="cost $\\x$").savefig(io.BytesIO(), format="png")


def test_pyplot_is_left_alone():
    figure_of()

    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_a_moving_image_without_a_place_in_space_is_refused():
    with pytest.raises(TypeError, match="moving must be a MetaTensor"):
        figure_of(moving=torch.rand(1, *SIZE))


@pytest.mark.parametrize("name", ["warped", "ddf", "fixed_label", "warped_label"])
def test_what_is_not_on_the_fixed_grid_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be on the grid of fixed, \(16, 20, 12\), got \(16, 20, 11\)"):
        figure_of(**{name: torch.zeros(3 if name == "ddf" else 1, 16, 20, 11)})


def test_the_report_of_a_real_pair_is_a_page_of_moderate_size(data_dir):
    folder = data_dir / "BrainPair"
    names = ("fixed", "moving", "fixed_label", "moving_label")
    pair = LoadPaird()({name: folder / f"{name}.nii.gz" for name in names})
    pair["pred"] = torch.nn.functional.interpolate(
        torch.randn(1, 3, 9, 9, 9), pair["fixed"].shape[1:], mode="trilinear"
    )[0]
    pair = WarpByDDFd()(pair)
    page = io.BytesIO()

    report_figure(
        *(pair[name] for name in ("fixed", "moving", "warped", "pred")),
        affine=pair["fixed"].affine,
        title="fixed__moving",
        fixed_label=pair["fixed_label"],
        warped_label=pair["warped_label"],
    ).savefig(page, format="png")

    assert len(page.getvalue()) < 1.5e6
    with Image.open(page) as image:
        assert 1500 < image.width < 2200
        assert 600 < image.height < 1400
