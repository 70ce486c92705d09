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


def network(compat: bool) -> RegistrationNet:
    return RegistrationNet(
        MindSSC(compat=compat),
        CoupledConvexEstimator(grid_spacing=4, half_width=3, compat=compat),
        AdamRefiner(compat=compat),
        compat=compat,
    )


if __name__ == "__main__":
    main()
