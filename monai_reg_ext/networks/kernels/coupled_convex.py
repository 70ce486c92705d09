# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["update_best"]

_POINTS_IN_CACHE = 8192


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
    terms = torch.cat(
        [-2 * coupling * labels, (coupling + tie_break) * labels.square().sum(1, keepdim=True)], 1
    ).numpy()
    for item in range(len(cost)):
        arrays = [tensor[item].flatten(1).numpy() for tensor in (cost, coarse_ddf)]
        best = [tensor[item].flatten().numpy() for tensor in (best_cost, best_label)]

        def update(first: int, last: int, arrays=arrays, best=best) -> None:  # type: ignore[no-untyped-def]
            _update_points(*arrays, terms, np.int32(start), first, last, *best)

        in_threads(update, best_cost[item].numel(), _POINTS_IN_CACHE)


@njit(**JIT)
def _update_points(cost, ddf, terms, first_label, first, last, best_cost, best_label):  # type: ignore[no-untyped-def]
    for begin in range(first, last, _POINTS_IN_CACHE):
        end = min(begin + _POINTS_IN_CACHE, last)
        field = ddf[0, begin:end], ddf[1, begin:end], ddf[2, begin:end]
        best = best_cost[begin:end], best_label[begin:end]
        for label in range(0, len(terms), 2):
            # an odd last one competes twice
            other = min(label + 1, len(terms) - 1)
            numbers = np.int32(first_label + label), np.int32(first_label + other)
            _compete(
                cost[label, begin:end], cost[other, begin:end], *field, terms[label], terms[other], *numbers, *best
            )


@njit(**JIT)
def _compete(  # type: ignore[no-untyped-def]
    cost_a, cost_b, u_i, u_j, u_k, terms_a, terms_b, label_a, label_b, best_cost, best_label
):
    """Two displacements at once, so that the field and the best so far are read half as often."""
    a_i, a_j, a_k, a_norm = terms_a
    b_i, b_j, b_k, b_norm = terms_b
    for x in range(len(best_cost)):
        total_a = cost_a[x] + (a_norm + a_i * u_i[x] + a_j * u_j[x] + a_k * u_k[x])
        total_b = cost_b[x] + (b_norm + b_i * u_i[x] + b_j * u_j[x] + b_k * u_k[x])
        better_a = total_a < best_cost[x]
        lowest = total_a if better_a else best_cost[x]
        best = label_a if better_a else best_label[x]
        better_b = total_b < lowest
        best_cost[x] = total_b if better_b else lowest
        best_label[x] = label_b if better_b else best
