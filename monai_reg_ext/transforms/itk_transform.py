# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import itk
import numpy as np
import torch

from monai_reg_ext.transforms.conventions import (
    affine_to_itk,
    ddf_to_itk_field,
    itk_field_to_ddf,
    itk_to_affine,
    ras_to_lps_points,
    voxel_to_mm,
)
from monai_reg_ext.transforms.spatial_displacement import SpatialDisplacement

__all__ = [
    "field_to_itk_image",
    "itk_chain",
    "itk_composite",
    "itk_image_to_field",
    "itk_to_field",
    "itk_to_matrix",
    "to_itk_transform",
]

LPS = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
LATTICE = 16  # points per axis


def to_itk_transform(transform: SpatialDisplacement | torch.Tensor) -> itk.Transform:
    """ITK's displacement field transform of a field, or affine transform of a matrix; double precision, mm LPS.

    Args:
        transform: a field, or ``(4, 4)`` world to world, mm RAS.

    Raises:
        ValueError: when the axes of the field's grid are not at right angles, which ITK's images cannot say.
    """
    if isinstance(transform, SpatialDisplacement):
        itk_transform = itk.DisplacementFieldTransform[itk.D, 3].New()
        itk_transform.SetDisplacementField(field_to_itk_image(transform, itk.D))
        return itk_transform
    lps = LPS @ torch.as_tensor(transform, dtype=torch.float64) @ LPS
    itk_transform = itk.AffineTransform[itk.D, 3].New()
    itk_transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3].numpy())))
    itk_transform.SetTranslation(lps[:3, 3].tolist())
    return itk_transform


def field_to_itk_image(field: SpatialDisplacement, component: type = itk.F) -> itk.Image:
    """Vector image in mm LPS on the field's grid, as SimpleITK, ANTs and Slicer take it.

    Args:
        field: the field.
        component: ``itk.F`` or ``itk.D``.

    Raises:
        ValueError: when the axes of the grid are not at right angles, which ITK's images cannot say.
    """
    spacing, origin, direction = affine_to_itk(field.affine)
    turn = np.array(direction).reshape(3, 3)
    if np.abs(turn.T @ turn - np.eye(3)).max() > 1e-4:
        raise ValueError(
            "the axes of the field's grid are not at right angles, which ITK's formats cannot say. Resample the field "
            "onto an ordinary grid before."
        )
    image = itk.Image[itk.Vector[component, 3], 3].New()
    region = itk.ImageRegion[3]()
    region.SetSize(list(field.size))
    image.SetRegions(region)
    image.Allocate()
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(itk.matrix_from_array(turn))
    vectors = ddf_to_itk_field(field.ddf.double(), field.affine)
    itk.array_view_from_image(image)[:] = vectors.permute(2, 1, 0, 3).cpu().numpy()
    return image


def itk_image_to_field(image: itk.Image) -> SpatialDisplacement:
    """Field, float32, of a vector image in mm LPS, on the image's own grid."""
    direction = itk.array_from_matrix(image.GetDirection()).ravel()
    affine = itk_to_affine(list(image.GetSpacing()), list(image.GetOrigin()), direction)
    vectors = torch.from_numpy(itk.array_from_image(image)).permute(2, 1, 0, 3)
    return SpatialDisplacement(itk_field_to_ddf(vectors.double(), affine).float(), affine)


def itk_to_matrix(transform: itk.Transform) -> torch.Tensor:
    """``(4, 4)`` float64 world to world, mm RAS, of any linear ITK transform: from where it moves four points.

    Raises:
        ValueError: when the transform is not linear.
    """
    if not transform.IsLinear():
        raise ValueError(f"a {transform.GetNameOfClass()} is not linear and has no matrix.")
    moved = [list(transform.TransformPoint(point)) for point in np.eye(4, 3, k=-1).tolist()]
    origin, *corners = torch.tensor(moved, dtype=torch.float64)
    lps = torch.eye(4, dtype=torch.float64)
    lps[:3, :3] = (torch.stack(corners) - origin).T
    lps[:3, 3] = origin
    return LPS @ lps @ LPS


def itk_composite(transforms: Sequence[itk.Transform]) -> itk.Transform:
    """One ITK transform that moves points by the first given transform first, as ``antsApplyTransforms`` lists them."""
    if len(transforms) == 1:
        return transforms[0]
    composite = itk.CompositeTransform[itk.D, 3].New()
    for transform in reversed(transforms):  # ITK applies the one added last first
        composite.AddTransform(transform)
    return composite


def itk_chain(transform: itk.Transform) -> list[itk.Transform]:
    """The simple transforms in a transform, in the order in which a point meets them."""
    transform = itk.down_cast(transform)
    if transform.GetNameOfClass() != "CompositeTransform":
        return [transform]
    parts = [transform.GetNthTransform(n) for n in reversed(range(transform.GetNumberOfTransforms()))]
    return [simple for part in parts for simple in itk_chain(part)]


def itk_to_field(
    transform: itk.Transform, affine: torch.Tensor | None = None, size: Sequence[int] | None = None
) -> SpatialDisplacement:
    """Any ITK transform, B-splines and composites included, as one field; ITK itself evaluates it at every voxel.

    Args:
        transform: three-dimensional.
        affine: ``(4, 4)`` of the grid the field is wanted on; by default that of a displacement field itself.
        size: extent of that grid.

    Returns:
        float32 field. A displacement field within the transform is the identity beyond its own grid, as ITK has it.

    Raises:
        ValueError: when no grid is given or implied, or a displacement field covers none of it.
    """
    if affine is None or size is None:
        if transform.GetNameOfClass() != "DisplacementFieldTransform":
            raise ValueError(f"a {transform.GetNameOfClass()} has no grid of its own: give the fixed image.")
        return itk_image_to_field(transform.GetDisplacementField())
    _check_coverage(transform, affine, size)
    sampler = itk.TransformToDisplacementFieldFilter[itk.Image[itk.Vector[itk.F, 3], 3], itk.D].New()
    spacing, origin, direction = affine_to_itk(affine)
    sampler.SetTransform(transform)
    sampler.SetSize([int(extent) for extent in size])
    sampler.SetOutputSpacing(spacing)
    sampler.SetOutputOrigin(origin)
    sampler.SetOutputDirection(itk.matrix_from_array(np.array(direction).reshape(3, 3)))
    sampler.Update()
    vectors = torch.from_numpy(itk.array_from_image(sampler.GetOutput())).permute(2, 1, 0, 3)
    return SpatialDisplacement(itk_field_to_ddf(vectors.double(), affine).float(), affine)


def _check_coverage(transform: itk.Transform, affine: torch.Tensor, size: Sequence[int]) -> None:
    """Refuse displacement fields that lie where none of the image's voxels is when it meets them.

    A part is enough: ANTs' inverse lies on the fixed grid, and the moving image may be many times as large.
    """
    lattice = torch.cartesian_prod(*[torch.linspace(0, extent - 1, LATTICE, dtype=torch.float64) for extent in size])
    points = ras_to_lps_points(voxel_to_mm(lattice, affine)).tolist()
    for part in itk_chain(transform):
        if part.GetNameOfClass() == "DisplacementFieldTransform":
            field = part.GetDisplacementField()
            end = np.array(list(field.GetLargestPossibleRegion().GetSize())) - 0.5
            index = np.array([list(field.TransformPhysicalPointToContinuousIndex(point)) for point in points])
            if not ((index >= -0.5) & (index <= end)).all(axis=1).any():
                raise ValueError(
                    "the displacement field lies elsewhere in space than the fixed image. Is it the field of another "
                    "image, or of the other direction?"
                )
        points = [list(part.TransformPoint(point)) for point in points]
