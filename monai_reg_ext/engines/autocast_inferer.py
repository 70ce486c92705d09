# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import nn

from monai_reg_ext.engines.keep_thin_convolutions_exact import keep_thin_convolutions_exact

__all__ = ["AutocastInferer"]


class AutocastInferer(SimpleInferer):
    """Runs a network in bfloat16 where that is safe and fast, on the GPU as on the CPU.

    MONAI's engines know mixed precision on CUDA only. bfloat16 has the range of float32, so that no gradient has to be
    scaled. Weights stay in float32, and so does all that follows the network, e.g. the loss; on a CPU also what
    bfloat16 gets wrong there, see :py:func:`keep_thin_convolutions_exact`.

    Args:
        enabled: whether to; else this is ``SimpleInferer``.

    Shape:
        - inputs: what ``network`` takes.
        - output: what ``network`` returns, one tensor or a distribution; float32 when ``enabled``.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self.enabled:
            return super().__call__(inputs, network, *args, **kwargs)
        if isinstance(network, nn.Module):
            keep_thin_convolutions_exact(network)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
            output = super().__call__(inputs, network, *args, **kwargs)
        return output.float()
