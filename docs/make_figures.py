# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Draw the figures of these pages: ``python docs/make_figures.py``, about a minute on one processor core.

Everything shown is generated: the phantom, registered by the bundle as it stands, and a random texture.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import monai
import nibabel as nib
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image

from monai_reg_ext.data import phantom_pair
from monai_reg_ext.networks.blocks import AdamRefiner, CoupledConvexEstimator, MindSSC
from monai_reg_ext.networks.layers import box_filter
from monai_reg_ext.networks.nets import RegistrationNet

DOCS = Path(__file__).resolve().parent
FIGURES = DOCS / "_static"
BUNDLE = DOCS.parent / "bundles" / "convex_adam"
CORONAL = 44  # a slice of the phantom through liver, stomach and colon
WINDOW_HU = (-150, 250)
SHIFT = 6  # voxels
REPORT_WIDTH = 1500  # pixels; keeps the committed file small, as do 256 colours


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as output_dir:
        pair_dir = register_phantom(Path(output_dir))
        draw_pair(pair_dir, FIGURES / "phantom.png")
        shrink_report(pair_dir / "report.png", FIGURES / "report.png")
    draw_borders(FIGURES / "borders.png")
    draw_direction(FIGURES / "direction.png")


def register_phantom(output_dir: Path) -> Path:
    """Run the bundle on its phantom and return the pair's folder."""
    configs = BUNDLE / "configs"
    monai.bundle.run(
        bundle_root=str(BUNDLE),
        config_file=[str(configs / "inference.json"), str(configs / "evaluate.json")],
        output_dir=str(output_dir),
    )
    return next(path for path in output_dir.iterdir() if path.is_dir())


def draw_pair(pair_dir: Path, path: Path) -> None:
    """Fixed, moving and warped phantom, each under the outlines of the fixed organs, and both differences."""
    pair = phantom_pair()
    fixed, moving = (pair[key][0].numpy() for key in ("fixed", "moving"))
    warped = nib.load(pair_dir / "warped.nii.gz").get_fdata()
    labels = pair["fixed_label"][0].numpy()
    figure, axes = plt.subplots(1, 5, figsize=(12.5, 3.1), layout="constrained")
    for panel, volume, title in zip(axes, (fixed, moving, warped), ("fixed", "moving", "warped"), strict=False):
        show_coronal(panel, volume, title, "gray", WINDOW_HU)
        for label in range(1, labels.max() + 1):
            outline = np.equal(labels[:, CORONAL].T, label)
            if outline.any():
                panel.contour(outline, levels=[0.5], colors="#39c5ff", linewidths=0.9)
    show_coronal(axes[3], fixed - moving, "fixed − moving", "RdBu", (-300, 300))
    show_coronal(axes[4], fixed - warped, "fixed − warped", "RdBu", (-300, 300))
    figure.savefig(path, dpi=90)


def show_coronal(axes: Axes, volume: np.ndarray, title: str, colours: str, window: tuple[float, float]) -> None:
    """A coronal slice with the patient's right on the left: the phantom's first axis leads to the left."""
    axes.imshow(volume[:, CORONAL].T, cmap=colours, vmin=window[0], vmax=window[1], origin="lower", aspect=1.5)
    axes.set_title(title, fontsize=11)
    axes.set_axis_off()


def shrink_report(source: Path, path: Path) -> None:
    report = Image.open(source).convert("RGB")
    size = (REPORT_WIDTH, round(report.height * REPORT_WIDTH / report.width))
    small = report.resize(size, Image.Resampling.LANCZOS)
    # the octree keeps rare colours, which are what matters here
    small.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_borders(path: Path) -> None:
    """What a constant shift of a texture is measured as, by the reference's borders and sampling and by ours."""
    generator = torch.Generator().manual_seed(0)
    texture = box_filter(torch.randn(1, 1, 72 + SHIFT, 72, 60, generator=generator), (3, 3, 3))
    fixed, moving = texture[:, :, SHIFT:], texture[:, :, :-SHIFT]  # fixed(x) = moving(x + shift)
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.3), layout="constrained")
    for panel, compat in zip(axes, (True, False), strict=False):
        found = network(compat).register(moving, fixed)[0, 0]
        title = f"compat={compat}"
        image = panel.imshow(found[:, :, 30].T, vmin=0, vmax=8, origin="lower", cmap="viridis")
        panel.set(title=title, xlabel="axis 0 (voxels)", ylabel="axis 1 (voxels)")
        axes[2].plot(found[36, :, 30], label=title)
    figure.colorbar(image, ax=axes[1], label="displacement along axis 0 (voxels)")
    axes[2].axhline(SHIFT, color="black", linewidth=0.8, linestyle="dotted", label="true shift")
    axes[2].set(title="along the middle", xlabel="axis 1 (voxels)", ylim=(4, 7))
    axes[2].legend(fontsize=9)
    figure.savefig(path, dpi=90)


def draw_direction(path: Path) -> None:
    """The direction rule on a drawn organ: the field lies on the fixed grid and leads points into the moving scan."""
    turns = np.linspace(0, 2 * np.pi, 200)
    organ = np.stack([5 + 2.2 * np.cos(turns), 5 + (1.5 + 0.5 * np.cos(turns)) * np.sin(turns)])
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 4.2), layout="constrained", sharey=True)
    titles = ("fixed scan", "moving scan", "warped(p) = moving(p + field(p))")
    contents = ("p", "p + field(p)", "p")
    for panel, title, content in zip(axes, titles, contents, strict=True):
        found = content != "p"
        panel.fill(*(moved(organ) if found else organ), color="#c8dcec", ec="#2b6ca3", linewidth=1.5)
        panel.set(title=title, xlim=(0, 12), ylim=(0, 10), xticks=range(13), yticks=range(11), aspect="equal")
        panel.tick_params(labelbottom=False, labelleft=False, length=0)
        panel.grid(color="#00000018")
    for at in ((4, 5), (6, 4), (7, 5.5)):
        point = np.array(at)
        end = moved(point)
        axes[0].plot(*point, "o", color="#b3261e")
        axes[1].plot(*point, "o", color="#b3261e55")
        axes[1].annotate("", end, point, arrowprops={"arrowstyle": "-|>", "color": "#b3261e", "shrinkA": 3})
        axes[1].plot(*end, "s", color="#1b5e20")
        axes[2].plot(*point, "s", color="#1b5e20")
    axes[0].annotate("p", (6, 4), (6.2, 3.2), fontsize=12)
    axes[1].annotate("p + field(p)", moved(np.array((6, 4))), (7.4, 3.4), fontsize=12)
    axes[0].set_xlabel("the field is stored here:\na vector for every voxel p")
    axes[1].set_xlabel("it says where to look:\npoints move along the arrows, fixed → moving")
    axes[2].set_xlabel("every voxel p takes the value found there:\nimages move against the arrows, moving → fixed")
    figure.savefig(path, dpi=90)


def moved(points: np.ndarray) -> np.ndarray:
    """Where points ``(2, ...)`` of the drawn organ lie in the moving scan."""
    i, j = points
    return np.stack([i + 2.0 + 0.15 * (j - 5), j + 1.2 - 0.2 * (i - 5)])


def network(compat: bool) -> RegistrationNet:
    return RegistrationNet(
        MindSSC(compat=compat),
        CoupledConvexEstimator(grid_spacing=4, half_width=3, compat=compat),
        AdamRefiner(compat=compat),
        compat=compat,
    )


if __name__ == "__main__":
    main()
