# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.utils import CommonKeys

__all__ = ["prepare_pair_batch"]

_MASKS = ("moving_mask", "fixed_mask")


def prepare_pair_batch(
    batchdata: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[()], dict[str, torch.Tensor]]:
    """Hand a pair and its masks to a registration network: give it as ``prepare_batch`` to MONAI's engines.

    Args:
        batchdata: collated batch with ``image`` and, where there are masks, ``moving_mask_working`` and
            ``fixed_mask_working``; for training also ``label``, what the loss compares with.
        device: where the network is.
        non_blocking: see :py:meth:`torch.Tensor.to`.
        kwargs: further arguments of :py:meth:`torch.Tensor.to` for image and label.

    Returns:
        Input, target (or ``None``), no further positional arguments, and the masks as the keyword arguments
        ``moving_mask`` and ``fixed_mask``.

    Raises:
        KeyError: when the batch has no ``image``.
    """
    image = batchdata[CommonKeys.IMAGE].to(device=device, non_blocking=non_blocking, **kwargs)
    label = batchdata.get(CommonKeys.LABEL)
    if label is not None:
        label = label.to(device=device, non_blocking=non_blocking, **kwargs)
    masks = {
        mask: batchdata[f"{mask}_working"].to(device=device, non_blocking=non_blocking)
        for mask in _MASKS
        if f"{mask}_working" in batchdata
    }
    return image, label, (), masks
