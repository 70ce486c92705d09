# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from monai_reg_ext.networks.blocks.mind_ssc import MindSSC
from monai_reg_ext.networks.layers.keypoint_search import graph_convex, keypoint_cost
from monai_reg_ext.networks.layers.neighbour_graph import NeighbourGraph
from monai_reg_ext.networks.layers.sample_points import sample_points
from monai_reg_ext.networks.layers.thin_plate_spline import ThinPlateSpline
from monai_reg_ext.transforms.check_pair import are_outside
from monai_reg_ext.transforms.conventions import mm_to_voxel, voxel_to_mm
from monai_reg_ext.transforms.foerstner_keypoints import FoerstnerKeypoints
from monai_reg_ext.transforms.registration_recipe import RegistrationRecipe
from monai_reg_ext.transforms.warp_points import WarpPoints

__all__ = [
    "FindCorrespondencesD",
    "FindCorrespondencesDict",
    "FindCorrespondencesd",
    "consistent_points",
    "smoothly_moved",
]

logger = logging.getLogger(__name__)

REACH, STEPS = 1.5, 7  # voxels to each side within which keypoints are placed anew, and places along each axis
NEIGHBOURS = 10
COUPLINGS = (0.1, 0.3, 1.0)
SHARPNESS = 5.0
LEAST = 10
SMOOTHING = 1.0
ROUNDS = 2
DEVIATIONS = 4.0


class FindCorrespondencesd(Transform):
    """Corresponding places of two scans without any by hand: keypoints of the fixed one, found again in the moving one.

    Both directions are registered, neither knowing of the other. Each keypoint is then placed anew, within one and a
    half voxels, where MIND-SSC matches best and its neighbours agree (unless the initial alignment is a field). It is
    kept when it comes back to where it started, lies inside both masks, and moves as those around it do. What is kept
    trains networks and judges registrations roughly; errors of the search that go unnoticed are in it.

    The item gets ``fixed_points`` and ``moving_points``, ``(N, 3)`` float64 in mm RAS, row by row the same places; what
    else it holds stays as it is.

    Args:
        number: of keypoints that are looked for; fewer come back.
        tolerance_mm: how far from its start a keypoint may come back.
        sigma: of the keypoints, see :py:class:`FoerstnerKeypoints`.
        method: name or folder of a bundle, or a :py:class:`RegistrationRecipe`, that finds both directions: its
            completion makes ``pred`` and ``pred_inverse``.
        settings: config files of the bundle. The default searches up to a quarter of the body's extent to each side.
        device: where to register; by default a GPU where there is one.
        overrides: ids of the bundle's config and their values.

    Raises:
        ValueError: when the method finds one direction only, or fewer than ten keypoints come back; as the method.

    Source: the role of corrField in Heinrich, Handels & Simpson, "Estimating large lung motion in COPD patients by
    symmetric regularised correspondence fields", MICCAI 2015.
    """

    def __init__(
        self,
        number: int = 2000,
        tolerance_mm: float = 2.0,
        sigma: float = 1.0,
        method: str | Path | RegistrationRecipe = "convex_adam",
        settings: Sequence[str | Path] | str | Path = "correspondences",
        device: torch.device | str | None = None,
        **overrides: Any,
    ) -> None:
        if not tolerance_mm > 0:
            raise ValueError(f"tolerance_mm must be > 0, got {tolerance_mm}.")
        self.finder = FoerstnerKeypoints(number, sigma)
        self.tolerance_mm = tolerance_mm
        if isinstance(method, (str, Path)):
            method = RegistrationRecipe.from_bundle(method, settings, device, **overrides)
        self.recipe = method

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        pair = {key: value for key, value in data.items() if key not in ("fixed_points", "moving_points")}
        found = self.recipe(pair)
        if "pred_inverse" not in found:
            raise ValueError("correspondences need both directions from the method: set inverse to 'symmetric'.")
        keypoints = self.finder(data["fixed"], data.get("fixed_mask"))
        moved = _placed_anew(keypoints, WarpPoints()(keypoints, found["pred"]), found)
        kept = consistent_points(keypoints, moved, found["pred_inverse"], self.tolerance_mm)
        if "moving_mask" in data:
            kept &= _inside(moved, data["moving_mask"])
        kept[kept.clone()] = smoothly_moved(keypoints[kept], moved[kept], self.tolerance_mm)
        if kept.sum() < LEAST:
            raise ValueError(
                f"only {int(kept.sum())} of {len(keypoints)} keypoints were found again. Do both scans show the same "
                "body? Give masks of what moves, an initial alignment, or a larger search window."
            )
        logger.info("%d of %d keypoints were found again", int(kept.sum()), len(keypoints))
        return {**data, "fixed_points": keypoints[kept], "moving_points": moved[kept]}


def consistent_points(
    points_mm: torch.Tensor, moved_mm: torch.Tensor, backward: MetaTensor, tolerance_mm: float
) -> torch.Tensor:
    """Which points come back to where they started, ``(N,)`` bool.

    Args:
        points_mm: ``(N, 3)`` in fixed space, mm RAS.
        moved_mm: ``(N, 3)`` in moving space. Those outside the moving image do not come back.
        backward: ``(3, I, J, K)`` on the moving grid, from there to fixed space.
        tolerance_mm: how far from the start they may end.
    """
    kept = ~are_outside(moved_mm, backward)
    back = WarpPoints()(moved_mm[kept], backward)
    kept[kept.clone()] = (back - points_mm[kept]).norm(dim=1) < tolerance_mm
    return kept


def smoothly_moved(points_mm: torch.Tensor, moved_mm: torch.Tensor, tolerance_mm: float) -> torch.Tensor:
    """Which points move as those around them do, ``(N,)`` bool.

    A stiff spline through all displacements is what is expected. Off it are points that miss it by more than four times
    the usual, or the tolerance where that is more; the spline is then fitted again without them.

    Args:
        points_mm: ``(N, 3)``.
        moved_mm: ``(N, 3)``.
        tolerance_mm: what may be missed in any case.
    """
    kept = torch.ones(len(points_mm), dtype=torch.bool)
    if len(points_mm) < LEAST:
        return kept
    centred = points_mm - points_mm.mean(0)
    position, displacement = (centred / centred.abs().max())[None], (moved_mm - points_mm)[None]
    for _ in range(ROUNDS):
        expected = ThinPlateSpline(position[:, kept], displacement[:, kept], SMOOTHING)(position)
        missed = (displacement - expected)[0].norm(dim=1)
        kept = missed <= max(tolerance_mm, DEVIATIONS * float(missed[kept].median()))
    return kept


def _placed_anew(keypoints_mm: torch.Tensor, moved_mm: torch.Tensor, found: Mapping[Hashable, Any]) -> torch.Tensor:
    """Where small patches match best, as far as neighbours agree: a dense field is blurred at single places."""
    initial = found.get("initial")
    if "fixed_working" not in found or initial is None or initial.ndim != 2 or len(keypoints_mm) < LEAST:
        return moved_mm
    initial = torch.as_tensor(initial, dtype=torch.float64).as_subclass(torch.Tensor).cpu()
    affine = found["fixed_working"].affine
    fixed, moving = (
        MindSSC()(found[f"{side}_working"].as_tensor()[None].float()).cpu() for side in ("fixed", "moving")
    )
    places, targets = mm_to_voxel(keypoints_mm, affine), mm_to_voxel(moved_mm, initial @ affine.double().cpu())
    labels = [torch.linspace(-REACH, REACH, STEPS)] * 3
    cost = keypoint_cost(fixed, moving, places.float(), labels, (targets - places).float())
    step = graph_convex(cost, labels, NeighbourGraph(keypoints_mm, NEIGHBOURS), COUPLINGS, SHARPNESS)
    return voxel_to_mm(targets + step, initial @ affine.double().cpu())


def _inside(points_mm: torch.Tensor, mask: MetaTensor) -> torch.Tensor:
    voxels = mm_to_voxel(points_mm, mask.affine)[None]
    return sample_points((mask.as_tensor()[None] != 0).float(), voxels, "nearest", "zeros").flatten() > 0


FindCorrespondencesD = FindCorrespondencesDict = FindCorrespondencesd
