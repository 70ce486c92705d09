# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""elastix as its Python package offers it: default parameter maps, original images, masks where there are any."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import itk
import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.itk_torch_bridge import metatensor_to_itk_image

from monai_reg_ext.transforms import SpatialDisplacement
from monai_reg_ext.transforms.itk_transform import itk_image_to_field

__all__ = ["register_with_elastix"]

STAGES = ("affine", "bspline")
START = {"AutomaticTransformInitialization": "true", "AutomaticTransformInitializationMethod": "GeometricalCenter"}
# elastix 5.3.1 crashes now and then where several threads sum a B-spline's gradient, with masks nearly always
EVERYWHERE = {"UseMultiThreadingForMetrics": "false"}
# it gives up where too few samples of the one mask meet the other
MASKED = {"RequiredRatioOfValidSamples": "0.05"}


def register_with_elastix(pair: Mapping[str, Any], stages: Sequence[str] = STAGES) -> SpatialDisplacement:
    """Affine from the centres of both volumes, then B-splines: mutual information, four resolutions each.

    Args:
        pair: ``fixed``, ``moving``, MetaTensors ``(1, I, J, K)`` as they were loaded, and where present
            ``fixed_mask``, ``moving_mask``.
        stages: names of elastix's default parameter maps.

    Returns:
        Field on the fixed grid.
    """
    masks = {key: _itk_image(pair[key], np.uint8) for key in ("fixed_mask", "moving_mask") if key in pair}
    moving = _itk_image(pair["moving"])
    _, found = itk.elastix_registration_method(
        _itk_image(pair["fixed"]),
        moving,
        parameter_object=_parameters(stages, bool(masks)),
        number_of_threads=torch.get_num_threads(),
        log_to_console=False,
        **masks,
    )
    with tempfile.TemporaryDirectory() as folder:  # transformix writes the field into a file too
        return itk_image_to_field(itk.transformix_deformation_field(moving, found, output_directory=folder))


def _parameters(stages: Sequence[str], masked: bool) -> itk.ParameterObject:
    parameters = itk.ParameterObject.New()
    for stage in stages:
        parameters.AddParameterMap(parameters.GetDefaultParameterMap(stage))
    for name, value in START.items():
        parameters.SetParameter(0, name, value)
    for name, value in (EVERYWHERE | MASKED if masked else EVERYWHERE).items():
        parameters.SetParameter(name, value)
    return parameters


def _itk_image(image: MetaTensor, dtype: type = np.float32) -> itk.Image:
    return metatensor_to_itk_image(image[0], channel_dim=None, dtype=dtype)
