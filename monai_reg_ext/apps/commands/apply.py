# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor

from monai_reg_ext.apps.file_list import file_list
from monai_reg_ext.apps.inverse_field import inverse_field
from monai_reg_ext.apps.transform_inputs import read_field, read_image
from monai_reg_ext.apps.usage_error import UsageError
from monai_reg_ext.apps.write_volume import VOLUME_SUFFIXES, write_volume
from monai_reg_ext.data import read_points, write_points
from monai_reg_ext.transforms.spatial_displacement import SpatialDisplacement

__all__ = ["apply"]

POINT_SUFFIXES = (".csv", ".fcsv", ".mrk.json", ".vtk", ".txt")
MODES = {"linear": "bilinear", "cubic": "cubic", "nearest": "nearest", "label": "label"}


def apply(
    field: Any,
    source: str,
    *,
    output: str,
    fixed: str | None = None,
    moving: str | None = None,
    inverse: bool = False,
    mode: str = "auto",
    points_space: str = "ras",
    allow_folding: bool = False,
) -> None:
    """Apply a transform to a scan, a label map or points.

    monai-reg apply FIELD INPUT --output OUT [options]

    FIELD: any transform file, or several in a row (A,B; see compose). INPUT, a moving image of any
    resolution, comes out on the grid of FIELD, which is that of the fixed scan. Points (.csv .fcsv
    .mrk.json .vtk .txt) go the other way: FIELD moves points of the fixed scan to where they are in the
    moving one.

      --inverse             images of fixed space into moving space; points of the moving scan to fixed
      --mode MODE           linear, cubic (images), nearest, label (label maps; label smooths borders),
                            points; by default points or linear, by the suffix
      --fixed IMAGE         grid of the result, and needed when FIELD has none
      --moving IMAGE        with --inverse: grid of the result; by default that of FIELD
      --points_space SPACE  of point files that do not tell: ras (default), lps, or voxel, which needs
                            --moving; those of fixed space are voxels of FIELD's grid
      --allow_folding       with --inverse: go on where the field folds

    Example: monai-reg apply output/a__b/field.nii.gz organs.nrrd --output warped.nrrd --mode nearest
    """
    if mode not in ("auto", "points", *MODES):
        raise UsageError(f"--mode must be one of {', '.join(MODES)} and points, got {mode!r}.")
    files, source, output = file_list(field), str(source), str(output)
    images = read_image(fixed, "--fixed"), read_image(moving, "--moving")
    if mode == "points" or (mode == "auto" and source.lower().endswith(POINT_SUFFIXES)):
        _apply_to_points(read_field(files, images[0]), source, output, images[1], bool(inverse), points_space)
        return
    if not output.lower().endswith(VOLUME_SUFFIXES):
        raise ValueError(f"{output}: the suffix of an image must be one of {', '.join(VOLUME_SUFFIXES)}.")
    image = read_image(source, "INPUT")
    if inverse:
        transform, residual = inverse_field(files, *images, allow_folding=bool(allow_folding))
        print(f"inverse with a mean residual of {residual:.4g} voxels")
    elif images[1] is not None:
        raise UsageError("--moving is the grid for --inverse and for points in voxels; the other way give --fixed.")
    else:
        transform = read_field(files, images[0])
    write_volume(_warp(transform, image, "linear" if mode == "auto" else mode), output)
    print(output)


def _warp(transform: SpatialDisplacement, image: MetaTensor, mode: str) -> MetaTensor:
    if mode in ("linear", "cubic"):
        return transform.warp(MetaTensor(image.as_tensor().float(), affine=image.affine), MODES[mode])
    labels = image.as_tensor().round().to(torch.int32)
    if (labels != image.as_tensor()).any():
        raise ValueError(f"--mode {mode} is for label maps, which hold whole numbers; use --mode linear.")
    return transform.warp(MetaTensor(labels, affine=image.affine), MODES[mode])


def _apply_to_points(
    transform: SpatialDisplacement, source: str, target: str, moving: MetaTensor | None, inverse: bool, space: str
) -> None:
    if not target.lower().endswith(POINT_SUFFIXES):
        raise ValueError(f"{target}: the suffix of a point file must be one of {', '.join(POINT_SUFFIXES)}.")
    affines = [transform.affine, None if moving is None else moving.affine]
    if space == "voxel" and moving is None:
        raise UsageError("--points_space voxel needs --moving, the scan whose voxels are counted.")
    if inverse:
        affines.reverse()
    points = read_points(source, space, affines[0])
    moved = transform.warp_points_back(points) if inverse else transform.warp_points(points)
    write_points(target, moved, space, affines[1])
    print(f"{target}: {len(moved)} points in {'fixed' if inverse else 'moving'} space")
