# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from monai_reg_ext.engines.prepare_pair_batch import prepare_pair_batch

__all__ = ["prepare_keypoint_batch"]


def prepare_keypoint_batch(
    batchdata: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[()], dict[str, torch.Tensor]]:
    """Hand a pair, its masks and its keypoints to a network that learns at keypoints.

    For :py:class:`monai_reg_ext.networks.nets.KeypointTraining`: give it as ``prepare_batch`` to MONAI's engines.

    Args:
        batchdata: as :py:func:`prepare_pair_batch` takes it, with keypoints ``(B, 2, N, 3)``, moving, then fixed, in
            voxels of the image, as ``keypoints``, and with ``initial_ddf`` where the network shall start from one. A
            ``label`` is what the loss compares with; without it the keypoints are.
        device: where the network is.
        non_blocking: see :py:meth:`torch.Tensor.to`.
        kwargs: further arguments of :py:meth:`torch.Tensor.to` for image and label.

    Returns:
        Input, target, no further positional arguments, and masks, ``fixed_points`` and ``initial_ddf`` as keyword
        arguments.

    Raises:
        KeyError: when the batch has no ``image`` or no ``keypoints``.
    """
    image, label, positional, named = prepare_pair_batch(batchdata, device, non_blocking, **kwargs)
    keypoints = batchdata["keypoints"].to(device=device, non_blocking=non_blocking)
    named["fixed_points"] = keypoints[:, 1]
    if "initial_ddf" in batchdata:
        named["initial_ddf"] = batchdata["initial_ddf"].to(device=device, non_blocking=non_blocking)
    return image, keypoints if label is None else label, positional, named
