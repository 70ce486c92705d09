# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""What the report shows of one slice, as arrays ready to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor

from monai_reg_ext.handlers.slice_view import SliceView, radiological_views
from monai_reg_ext.transforms.warp_by_ddf import WarpByDDF

__all__ = ["ReportSlice", "report_slices"]

SAMPLES = 200_000  # voxels that the percentiles of an intensity window are taken from


@dataclass(frozen=True)
class ReportSlice:
    """One slice of a registered pair; every array is ``(down, across)`` of the same size.

    Args:
        view: where the slice lies.
        fixed: intensities, 0 to 1 within the fixed image's window.
        moving: before registration, by the headers alone, 0 to 1 within the moving image's window.
        warped: after registration, same window as ``moving``.
        position_mm: ``(2, down, across)``, see :py:meth:`SliceView.position_mm`.
        jacobian: Jacobian determinant, NaN along the edges.
        fixed_label: label map, or ``None``.
        warped_label: label map, or ``None``.
    """

    view: SliceView
    fixed: np.ndarray
    moving: np.ndarray
    warped: np.ndarray
    position_mm: np.ndarray
    jacobian: np.ndarray
    fixed_label: np.ndarray | None
    warped_label: np.ndarray | None

    @property
    def extent_mm(self) -> tuple[float, float]:
        """Height and width."""
        return tuple(voxels * spacing for voxels, spacing in zip(self.fixed.shape, self.view.spacing, strict=True))

    def centres_mm(self, padding: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Centres of the columns and of the rows, from the upper left corner, with voxels added on every side."""
        down, across = (
            (np.arange(-padding, voxels + padding) + 0.5) * spacing
            for voxels, spacing in zip(self.fixed.shape, self.view.spacing, strict=True)
        )
        return across, down


def report_slices(
    fixed: torch.Tensor,
    moving: MetaTensor,
    warped: torch.Tensor,
    ddf: torch.Tensor,
    affine: torch.Tensor,
    fixed_label: torch.Tensor | None = None,
    warped_label: torch.Tensor | None = None,
) -> list[ReportSlice]:
    """An axial, a coronal and a sagittal slice of a pair; arguments as of :py:func:`report_figure`."""
    fixed, warped, ddf, fixed_label, warped_label = map(_plain, (fixed, warped, ddf, fixed_label, warped_label))
    affine = torch.as_tensor(affine, dtype=torch.float64, device="cpu")
    fixed_window, moving_window = _window(fixed), _window(_plain(moving))
    if fixed_label is not None and fixed_label.any():
        index = _fullest_slices(fixed_label[0] != 0)
    else:
        index = _centre(_body(fixed[0], fixed_window))
    return [
        ReportSlice(
            view=view,
            fixed=_windowed(view.cut(fixed[0]), fixed_window),
            moving=_windowed(_by_headers(moving, view, affine, fixed.shape[1:]), moving_window),
            warped=_windowed(view.cut(warped[0]), moving_window),
            position_mm=view.position_mm(ddf).cpu().numpy(),
            jacobian=view.jacobian(ddf).cpu().numpy(),
            fixed_label=None if fixed_label is None else view.cut(fixed_label[0]).cpu().numpy(),
            warped_label=None if warped_label is None else view.cut(warped_label[0]).cpu().numpy(),
        )
        for view in radiological_views(affine, index)
    ]


def _by_headers(moving: MetaTensor, view: SliceView, affine: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The slice of the moving image on the fixed grid, without any displacement."""
    slice_size, slice_affine = view.grid(affine, size)
    resampled = WarpByDDF()(moving, torch.zeros(3, *slice_size, device=moving.device), slice_affine)
    return view.turn(_plain(resampled)[0].squeeze(view.normal))


def _fullest_slices(labelled: torch.Tensor) -> list[int]:
    """Along each axis the slice with most labelled voxels; of slices nearly alike, the one nearest to the middle."""
    index = []
    for count in _counts(labelled):
        off_centre = torch.linspace(-1, 1, len(count), dtype=count.dtype)
        index.append(int((count * (1 - 0.25 * off_centre.square())).argmax()))
    return index


def _centre(body: torch.Tensor) -> list[int]:
    """Along each axis the slice with half of the body's voxels on either side; the middle where there is no body."""
    return [int(torch.searchsorted(count.cumsum(0), count.sum() / 2)) for count in _counts(body)]


def _body(image: torch.Tensor, window: tuple[float, float]) -> torch.Tensor:
    """Voxels clearly brighter than the darkest, which are air or padding."""
    darkest = image.min()
    return image > darkest + 0.25 * (window[1] - darkest)


def _counts(mask: torch.Tensor) -> list[torch.Tensor]:
    """Number of voxels in each slice along each axis, never quite 0."""
    return [mask.sum([other for other in range(3) if other != axis]).double().cpu() + 1e-6 for axis in range(3)]


def _window(image: torch.Tensor) -> tuple[float, float]:
    """Intensities shown as black and white: robust, and without the padding or air at the image's minimum."""
    values = image.flatten()
    values = values[:: values.numel() // SAMPLES + 1].float().cpu().numpy()
    minimum, maximum = float(values.min()), float(values.max())
    if minimum == maximum:
        return minimum, minimum + 1
    low, high = np.percentile(values[values > minimum], (0.5, 99.5)).tolist()
    return (low, high) if low < high else (minimum, maximum)  # a binary image has nothing between


def _windowed(slice_: torch.Tensor, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    return ((slice_.float() - low) / (high - low)).clamp(0, 1).cpu().numpy()


def _plain(volume: torch.Tensor | None) -> torch.Tensor | None:
    return None if volume is None else volume.detach().as_subclass(torch.Tensor)
