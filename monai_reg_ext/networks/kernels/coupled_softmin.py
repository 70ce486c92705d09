# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.displacement_posterior import logit_terms
from monai_reg_ext.networks.kernels.exponential import exp_below_zero
from monai_reg_ext.networks.kernels.rows import fill_row
from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["write_softmin_gradient"]

_POINTS_IN_CACHE = 512


def write_softmin_gradient(
    cost: torch.Tensor,
    labels: torch.Tensor,
    couplings: Sequence[float],
    sharpness: float,
    passes: torch.Tensor,
    gradient: torch.Tensor,
) -> None:
    """Twin of :py:func:`monai_reg_ext.networks.layers.coupled_softmin.write_softmin_gradient`, one sweep for all."""
    terms = np.stack([logit_terms(labels, coupling, sharpness) for coupling in couplings])
    for item in range(len(cost)):
        arrays = cost[item].flatten(1).numpy(), passes[item].flatten(2).numpy()
        out = gradient[item].flatten(1).numpy()

        def write(first: int, last: int, arrays=arrays, out=out) -> None:  # type: ignore[no-untyped-def]
            _write_points(*arrays, labels.numpy(), terms, np.float32(sharpness), first, last, out)

        in_threads(write, out.shape[1], _POINTS_IN_CACHE)


@njit(**JIT)
def _write_points(cost, passes, labels, terms, sharpness, first, last, out):  # type: ignore[no-untyped-def]
    for begin in range(first, last, _POINTS_IN_CACHE):
        end = min(begin + _POINTS_IN_CACHE, last)
        for label in range(len(cost)):
            fill_row(out[label, begin:end], 0)
            for p in range(len(passes)):
                field = passes[p, 0, begin:end], passes[p, 1, begin:end], passes[p, 2, begin:end]
                slope = passes[p, 3, begin:end], passes[p, 4, begin:end], passes[p, 5, begin:end]
                rest = passes[p, 6, begin:end], passes[p, 7, begin:end], out[label, begin:end]
                _add_pass(cost[label, begin:end], field, slope, terms[p, label], labels[label], sharpness, *rest)


@njit(**JIT)
def _add_pass(cost, field, slope, terms, displacement, sharpness, log_sum, shared, out):  # type: ignore[no-untyped-def]
    (u_i, u_j, u_k), (g_i, g_j, g_k) = field, slope
    t_i, t_j, t_k, constant = terms
    d_i, d_j, d_k = displacement
    for x in range(len(out)):
        logit = (constant + t_i * u_i[x] + t_j * u_j[x] + t_k * u_k[x]) - sharpness * cost[x] - log_sum[x]
        along = d_i * g_i[x] + d_j * g_j[x] + d_k * g_k[x]
        out[x] += sharpness * exp_below_zero(logit) * (shared[x] - along)
