# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""ANTs as its Python package offers it: default settings, original images, masks where there are any."""

from __future__ import annotations

import os
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor

from monai_reg_ext.transforms import SpatialDisplacement, affine_to_itk, read_transform

if TYPE_CHECKING:
    from ants import ANTsImage

__all__ = ["register_with_ants"]

MASKS = {"mask": "fixed_mask", "moving_mask": "moving_mask"}


def register_with_ants(pair: Mapping[str, Any], kind: str = "SyN") -> SpatialDisplacement:
    """Affine from the centres of mass, then SyN.

    Args:
        pair: ``fixed``, ``moving``, MetaTensors ``(1, I, J, K)`` as they were loaded, and where present
            ``fixed_mask``, ``moving_mask``.
        kind: ``"SyN"``, the default of ``ants.registration``: mutual information, not at full resolution; or
            ``"antsRegistrationSyN[s]"``, the developers' script: rigid, affine, SyN by cross-correlation up to full
            resolution, many times as slow.

    Returns:
        Field on the fixed grid.
    """
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(torch.get_num_threads())  # read when ANTs is loaded
    import ants

    masks = {name: _ants_image(pair[key]) for name, key in MASKS.items() if key in pair}
    images = [_ants_image(pair[side]) for side in ("fixed", "moving")]
    with TemporaryDirectory() as folder:
        found = ants.registration(*images, kind, outprefix=f"{folder}/", **masks)
        return read_transform(found["fwdtransforms"], pair["fixed"])


def _ants_image(image: MetaTensor) -> ANTsImage:
    import ants

    spacing, origin, direction = affine_to_itk(image.affine)
    values = image[0].as_tensor().numpy().astype(np.float32)
    return ants.from_numpy(values, origin, spacing, np.reshape(direction, (3, 3)))
