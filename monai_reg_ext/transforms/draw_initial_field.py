# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Randomizable, Transform

from monai_reg_ext.networks.blocks.pre_registration import PRE_REGISTRATION_MODES, PreRegistrationAugmentation

__all__ = ["DrawInitialFieldD", "DrawInitialFieldDict", "DrawInitialFieldd"]


class DrawInitialFieldd(Randomizable, Transform):
    """A random field to start from, good or bad, for a network that improves fields; see
    :py:class:`monai_reg_ext.networks.blocks.PreRegistrationAugmentation`.

    The item's ``keypoints``, as :py:class:`DrawKeypointsd` makes them, say what is true. There is no first method's
    prediction: displacements are shares of the true ones, with noise, or none. The result goes to
    :py:class:`monai_reg_ext.networks.nets.KeypointTraining` by
    :py:func:`monai_reg_ext.engines.prepare_keypoint_batch`.

    Args:
        modes: what the fields are like; ``(prediction, truth, noise, smoothing)`` each, all equally likely.
        spacing: at most so many voxels between evaluations of the spline through the points.
        fixed_key: image on whose grid the field lies.
        keypoints_key: ``(2, N, 3)``, moving, then fixed, in voxels of that grid; rows that are not finite do not count.
        output_key: where the field goes, ``(3, I, J, K)`` float32 in voxels.

    Raises:
        ValueError: without modes.
    """

    def __init__(
        self,
        modes: Sequence[Sequence[float]] = PRE_REGISTRATION_MODES,
        spacing: int = 4,
        fixed_key: str = "fixed_working",
        keypoints_key: str = "keypoints",
        output_key: str = "initial_ddf",
    ) -> None:
        self.augmentation = PreRegistrationAugmentation(modes, spacing)
        self.fixed_key = fixed_key
        self.keypoints_key = keypoints_key
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        moving, fixed = torch.as_tensor(data[self.keypoints_key]).as_subclass(torch.Tensor).split(1)
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31)))
        size = tuple(data[self.fixed_key].shape[1:])
        (field,) = self.augmentation(fixed, moving - fixed, size, generator)
        return {**data, self.output_key: field}


DrawInitialFieldD = DrawInitialFieldDict = DrawInitialFieldd
