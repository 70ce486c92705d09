# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["update_best"]

_POINTS_IN_CACHE = 1024


def update_best(
    cost: torch.Tensor,
    labels: torch.Tensor,
    coarse_ddf: torch.Tensor,
    coupling: float,
    tie_break: float,
    start: int,
    best_cost: torch.Tensor,
    best_label: torch.Tensor,
) -> None:
    """Twin of :py:func:`monai_reg_ext.networks.layers.coupled_convex.update_best`, in one pass over the costs."""
    weights = np.float32(coupling), np.float32(coupling + tie_break)
    for item in range(len(cost)):
        arrays = [tensor[item].flatten(1).numpy() for tensor in (cost, coarse_ddf)]
        best = [tensor[item].flatten().numpy() for tensor in (best_cost, best_label)]

        def update(first: int, last: int, arrays=arrays, best=best) -> None:  # type: ignore[no-untyped-def]
            _update_points(*arrays, labels.numpy(), *weights, np.int32(start), first, last, *best)

        in_threads(update, best_cost[item].numel(), _POINTS_IN_CACHE)


@njit(**JIT)
def _update_points(  # type: ignore[no-untyped-def]
    cost, ddf, labels, coupling, norm_weight, first_label, first, last, best_cost, best_label
):
    twice = np.float32(-2) * coupling
    for begin in range(first, last, _POINTS_IN_CACHE):
        end = min(begin + _POINTS_IN_CACHE, last)
        ddf_i, ddf_j, ddf_k = ddf[0, begin:end], ddf[1, begin:end], ddf[2, begin:end]
        lowest, best = best_cost[begin:end], best_label[begin:end]
        for label in range(len(labels)):
            d_i, d_j, d_k = labels[label]
            norm = norm_weight * (d_i * d_i + d_j * d_j + d_k * d_k)
            slope_i, slope_j, slope_k = twice * d_i, twice * d_j, twice * d_k
            number = np.int32(first_label + label)
            row = cost[label, begin:end]
            for x in range(end - begin):
                total = row[x] + (norm + slope_i * ddf_i[x] + slope_j * ddf_j[x] + slope_k * ddf_k[x])
                best[x] = number if total < lowest[x] else best[x]
                lowest[x] = min(total, lowest[x])
