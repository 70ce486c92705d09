# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import nn

__all__ = ["keep_thin_convolutions_exact"]

_THIN = 2
_MARK = "_exact_where_thin"


def keep_thin_convolutions_exact(network: nn.Module) -> None:
    """Let a network's convolutions of volumes of two planes compute in float32, also where autocast is on.

    In bfloat16 on a CPU their kernels' gradient has memory in it that nobody has written to, at worst infinity (torch
    2.13 with oneDNN). U-Nets may have two planes where they are coarsest.

    Args:
        network: its ``Conv3d`` are watched from now on; what was watched before stays so.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and not hasattr(module, _MARK):
            contexts: list[torch.autocast] = []
            setattr(module, _MARK, contexts)
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave, always_call=True)


def _enter(convolution: nn.Conv3d, given: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
    (volume,) = given
    if volume.device.type != "cpu" or volume.shape[-3] != _THIN or not torch.is_autocast_enabled("cpu"):
        return None
    context = torch.autocast("cpu", enabled=False)
    context.__enter__()
    getattr(convolution, _MARK).append(context)
    return (volume.float(),)


def _leave(convolution: nn.Conv3d, given: tuple[torch.Tensor], output: torch.Tensor | None) -> None:
    contexts = getattr(convolution, _MARK)
    if contexts:
        contexts.pop().__exit__(None, None, None)
