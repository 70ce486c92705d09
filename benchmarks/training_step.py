# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""One training step of the fused search, measured in a process of its own that ``training.py`` starts.

    python benchmarks/training_step.py '{"search": "ours", "size": [20, 28, 20], ...}'

takes the arguments of ``main`` and prints a line of JSON: how many bytes it was allowed to ask for, and what
every repetition cost, or an empty list where the bytes were too few.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from speed_meter import Cost, Meter, release_memory
from torch import nn
from training_searches import SEARCHES

from monai_reg_ext.networks.blocks import FeatureFusion
from monai_reg_ext.networks.layers import warp

__all__ = ["TrainingStep", "measured_within"]

IN_CHANNELS, CLASSES = 26, 14
SHARPNESS = 20.0
WARM_UP_SIZE = (10, 11, 12)
SPARE_BYTES = 2 << 30  # for whatever else runs on the machine


class TrainingStep:
    """Gradients of the fusion network's weights from a pair of random inputs.

    Both images' pooled features are fused, the search gives a field, which warps a one-hot map of labels at that grid;
    the loss is its mean squared difference from the fixed image's.
    """

    def __init__(
        self,
        search: Callable[..., torch.Tensor],
        size: Sequence[int],
        half_width: int,
        couplings: Sequence[float],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(0)
        self.search = search
        self.settings = half_width, couplings, SHARPNESS
        self.fusion = FeatureFusion(nn.Identity(), IN_CHANNELS).to(dtype)
        self.features = torch.rand(2, 1, IN_CHANNELS, *size).to(dtype)
        labels = torch.randint(CLASSES, (2, 1, *size))
        self.labels = F.one_hot(labels, CLASSES).movedim(-1, 2).to(dtype, memory_format=torch.contiguous_format)

    def __call__(self) -> None:
        fixed, moving = (self.fusion(features) for features in self.features)
        coarse_ddf = self.search(fixed, moving, *self.settings)
        F.mse_loss(warp(self.labels[1], coarse_ddf), self.labels[0]).backward()

    def gradient(self) -> torch.Tensor:
        """Of all weights, one after the other."""
        self()
        return torch.cat([weight.grad.flatten() for weight in self.fusion.parameters()])


def main(
    search: str,
    size: Sequence[int],
    half_width: int,
    couplings: Sequence[float],
    repeats: int,
    threads: int,
    limit: int,
) -> None:
    torch.set_num_threads(threads)
    TrainingStep(SEARCHES[search], WARM_UP_SIZE, half_width, couplings)()
    step = TrainingStep(SEARCHES[search], size, half_width, couplings)
    print(json.dumps(measured_within(limit, step, repeats)))


def measured_within(limit: int, step: Callable[[], object], repeats: int) -> dict[str, int | list[Cost]]:
    """The ``limit`` in bytes that was kept, and the ``costs`` of each repetition, none where it was too low."""
    limit = limit_memory(limit)
    try:
        meter = Meter()
        for _ in range(repeats):
            with meter.stage("step"):
                step()
            release_memory()
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        return {"limit": limit, "costs": []}
    return {"limit": limit, "costs": meter.costs["step"]}


def limit_memory(limit: int) -> int:
    """Let this process ask for no more bytes than these, and for less where the machine cannot spare them."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit = min(limit, available - SPARE_BYTES)
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (address_space + limit,) * 2)
    return limit


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
