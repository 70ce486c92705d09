# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey

from monai_reg_ext.networks.layers.warp import sample
from monai_reg_ext.transforms.conventions import moving_voxels

__all__ = ["warp_label_smoothly"]


def warp_label_smoothly(moving: MetaTensor, ddf: torch.Tensor, fixed_affine: torch.Tensor) -> MetaTensor:
    """Label map on the fixed grid by linear interpolation of every label's mask; the largest share wins.

    Borders come out smooth where nearest neighbour leaves steps. Beyond the moving image lies label 0; of labels with
    equal shares the smallest is taken.

    Args:
        moving: ``(C, ...)`` whole numbers on its own grid, with its own affine.
        ddf: ``(3, I, J, K)``, total displacement in voxels of the fixed grid.
        fixed_affine: ``(4, 4)`` of that grid.

    Returns:
        ``(C, I, J, K)`` in the dtype of ``moving``, on the device of the ddf. Memory: five float32 volumes, however
        many labels there are.
    """
    labels = moving.as_tensor().to(ddf.device)
    coordinates = moving_voxels(ddf, fixed_affine, moving.affine)[None]
    warped = labels.new_zeros((labels.shape[0], *ddf.shape[1:]))
    largest = 1 + sample((labels == 0).float()[None] - 1, coordinates, padding="zeros")[0]
    for label in labels.unique():
        if label == 0:
            continue
        share = sample((labels == label).float()[None], coordinates, padding="zeros")[0]
        warped[share > largest] = label
        torch.maximum(largest, share, out=largest)
    meta = {ImageMetaKey.FILENAME_OR_OBJ: moving.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")}
    return MetaTensor(warped, affine=fixed_affine, meta=meta)
