# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.exponential import exp_below_zero
from monai_reg_ext.networks.kernels.rows import copy_row, scale_row
from monai_reg_ext.networks.kernels.runtime import JIT, in_threads

__all__ = ["logit_terms", "update_moments"]

_POINTS_IN_CACHE = 256
_LABELS_IN_CACHE = 32


def update_moments(
    cost: torch.Tensor,
    labels: torch.Tensor,
    coarse_ddf: torch.Tensor,
    coupling: float,
    sharpness: float,
    peak: torch.Tensor,
    moments: torch.Tensor,
    monomials: torch.Tensor,
) -> None:
    """Twin of :py:func:`monai_reg_ext.networks.layers.displacement_posterior.update_moments`.

    Its weights stay in the cache. ``monomials (10, l)`` are the factors of the weights in the ten sums.
    """
    terms = logit_terms(labels, coupling, sharpness)
    factors = np.ascontiguousarray(monomials.numpy())
    for item in range(len(cost)):
        arrays = [tensor[item].flatten(1).numpy() for tensor in (cost, coarse_ddf)]
        sums = peak[item].flatten().numpy(), moments[item].flatten(1).numpy()

        def update(first: int, last: int, arrays=arrays, sums=sums) -> None:  # type: ignore[no-untyped-def]
            _update_points(*arrays, terms, factors, np.float32(sharpness), first, last, *sums)

        in_threads(update, peak[item].numel(), _POINTS_IN_CACHE)


def logit_terms(labels: torch.Tensor, coupling: float, sharpness: float) -> np.ndarray:
    """What ``soft_logits`` adds to the costs of each label: factors of the field's components and a number, (l, 4)."""
    weight = sharpness * coupling
    return torch.cat([2 * weight * labels, -weight * labels.square().sum(1, keepdim=True)], 1).numpy()


@njit(**JIT)
def _update_points(  # type: ignore[no-untyped-def]
    cost, ddf, terms, monomials, sharpness, first, last, peak, moments
):
    weights = np.empty((_LABELS_IN_CACHE, _POINTS_IN_CACHE), np.float32)
    shrinkage = np.empty(_POINTS_IN_CACHE, np.float32)
    for begin in range(first, last, _POINTS_IN_CACHE):
        end = min(begin + _POINTS_IN_CACHE, last)
        field = ddf[0, begin:end], ddf[1, begin:end], ddf[2, begin:end]
        highest, factor = peak[begin:end], shrinkage[: end - begin]
        for label in range(0, len(cost), _LABELS_IN_CACHE):
            count = min(_LABELS_IN_CACHE, len(cost) - label)
            copy_row(highest, factor)
            for row in range(count):
                _write_logits(cost[label + row, begin:end], *field, terms[label + row], sharpness, weights[row])
                _raise(highest, weights[row])
            _exponentiate(factor, highest)
            for row in range(count):
                _exponentiate(weights[row, : end - begin], highest)
            for m in range(len(moments)):
                scale_row(moments[m, begin:end], factor)
                _add_weighted(weights, monomials[m, label : label + count], moments[m, begin:end])


@njit(**JIT)
def _write_logits(cost, u_i, u_j, u_k, terms, sharpness, out):  # type: ignore[no-untyped-def]
    t_i, t_j, t_k, constant = terms
    for x in range(len(cost)):
        out[x] = (constant + t_i * u_i[x] + t_j * u_j[x] + t_k * u_k[x]) - sharpness * cost[x]


@njit(**JIT)
def _raise(highest, row):  # type: ignore[no-untyped-def]
    for x in range(len(highest)):
        highest[x] = max(highest[x], row[x])


@njit(**JIT)
def _exponentiate(row, highest):  # type: ignore[no-untyped-def]
    for x in range(len(row)):
        row[x] = exp_below_zero(row[x] - highest[x])


@njit(**JIT)
def _add_weighted(weights, factors, total):  # type: ignore[no-untyped-def]
    """Eight labels at once, so that the sum is read and written rarely."""
    whole = len(factors) // 8 * 8
    for row in range(0, whole, 8):
        a, b, c, d = weights[row], weights[row + 1], weights[row + 2], weights[row + 3]
        e, f, g, h = weights[row + 4], weights[row + 5], weights[row + 6], weights[row + 7]
        f_a, f_b, f_c, f_d = factors[row], factors[row + 1], factors[row + 2], factors[row + 3]
        f_e, f_f, f_g, f_h = factors[row + 4], factors[row + 5], factors[row + 6], factors[row + 7]
        for x in range(len(total)):
            total[x] += (
                f_a * a[x] + f_b * b[x] + f_c * c[x] + f_d * d[x] + f_e * e[x] + f_f * f[x] + f_g * g[x] + f_h * h[x]
            )
    for row in range(whole, len(factors)):
        one, factor = weights[row], factors[row]
        for x in range(len(total)):
            total[x] += factor * one[x]
