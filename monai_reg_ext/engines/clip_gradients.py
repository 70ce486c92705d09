# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import nn

__all__ = ["clip_gradients"]


def clip_gradients(network: nn.Module, max_norm: float) -> torch.Tensor:
    """Shorten a gradient that is too long, and take one that is not finite for zero.

    Where many normalised layers follow each other, or one network is applied again and again, one pair among thousands
    has a gradient beyond float32, and a single step along it would leave no weight. Call it between the backward pass
    and the optimiser's step.

    Args:
        network: of its weights.
        max_norm: how long the gradient of all weights together may be.

    Returns:
        Scalar, how long the gradient was.
    """
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    finite = torch.isfinite(norm)
    for weight in network.parameters():
        if weight.grad is not None:
            # decided on the device: nothing waits for it
            weight.grad = torch.where(finite, weight.grad, 0)
    return norm
