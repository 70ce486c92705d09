# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numba import njit

from monai_reg_ext.networks.kernels.banded_filter import Band, filter_planes
from monai_reg_ext.networks.kernels.paired_points import block_length, memory_offsets, row_inside
from monai_reg_ext.networks.kernels.rows import add_row, copy_row, fill_row
from monai_reg_ext.networks.kernels.runtime import JIT, in_threads
from monai_reg_ext.networks.kernels.volume_factors import scale_volume, volume_factors

__all__ = ["add_ssd_gradient"]

_POINTS_IN_CACHE = 256
_POINTS_PER_LINE = 16


def add_ssd_gradient(
    gradient: torch.Tensor,
    fixed: torch.Tensor,
    moving: torch.Tensor,
    displacements: torch.Tensor,
    bands: Sequence[Band],
    fixed_gradient: torch.Tensor,
    moving_gradient: torch.Tensor,
    mask: torch.Tensor | None,
    normalizer: torch.Tensor | None,
) -> None:
    """Twin of :py:func:`monai_reg_ext.networks.layers.ssd_gradient.add_ssd_gradient`, without other large memory.

    Every point collects from all labels what is added to it, so that points can be shared out among threads.
    """
    items, size = len(fixed), fixed.shape[2:]
    directions, plane = len(gradient) // items, size[1] * size[2]
    shifts = displacements.numpy()
    offsets = memory_offsets(shifts, tuple(size))
    mask_factors, normalizer_factors = (volume_factors(weights, directions) for weights in (mask, normalizer))
    for item in range(items):
        sides = [gradient[one].numpy() for one in range(item, len(gradient), items)]
        sums = np.zeros((2, *size), np.float32)
        for direction, side in enumerate(sides):
            factors = [weights[item % len(weights), direction] for weights in (normalizer_factors, mask_factors)]
            in_threads(partial(_filter_labels, side, *bands, *factors), len(shifts))
            in_threads(partial(_move_outside, side, (1 - 2 * direction) * shifts, sums[direction]), size[0])
        flat = [side.reshape(len(side), -1) for side in sides]
        if directions > 1:
            in_threads(partial(_join, *flat, offsets), len(offsets))
        arrays = [tensor[item].flatten(1).numpy() for tensor in (fixed, moving, fixed_gradient, moving_gradient)]
        collect = partial(_collect, flat[0], offsets, plane, sums.reshape(2, -1), *arrays)
        in_threads(collect, plane, _POINTS_PER_LINE)


@njit(**JIT)
def _filter_labels(gradient, band_i, band_j, band_k, before, after, start, stop):  # type: ignore[no-untyped-def]
    """In place, times factors before and after."""
    volume = np.empty(gradient.shape[1:], np.float32)
    for label in range(start, stop):
        copy_row(gradient[label].reshape(-1), volume.reshape(-1))
        scale_volume(volume, before)
        filter_planes(volume, band_i, band_j, band_k, 0, len(volume), gradient[label])
        scale_volume(gradient[label], after)


@njit(**JIT)
def _move_outside(gradient, shifts, total, start, stop):  # type: ignore[no-untyped-def]
    """Points of some planes whose target lies outside the grid: add their gradient to the total and make it 0."""
    for label in range(len(shifts)):
        for i in range(start, stop):
            for j in range(total.shape[1]):
                begin, end = row_inside(i, j, shifts[label, 0], shifts[label, 1], shifts[label, 2], total.shape)
                _move_row(gradient[label, i, j, :begin], total[i, j, :begin])
                _move_row(gradient[label, i, j, end:], total[i, j, end:])


@njit(**JIT)
def _move_row(source, target):  # type: ignore[no-untyped-def]
    for k in range(len(source)):
        target[k] += source[k]
        source[k] = 0


@njit(**JIT)
def _join(forward, backward, offsets, start, stop):  # type: ignore[no-untyped-def]
    """Add the gradient of the opposite direction to that of the same two points."""
    for label in range(start, stop):
        here, there = max(0, -offsets[label]), max(0, offsets[label])
        length = max(0, forward.shape[1] - abs(offsets[label]))
        add_row(forward[label, here : here + length], backward[label, there : there + length])


@njit(**JIT)
def _collect(  # type: ignore[no-untyped-def]
    gradient, offsets, plane, sums, fixed, moving, fixed_gradient, moving_gradient, first, last
):
    """For a part of all planes, in the order of ``ssd_cost_volume._write_squared_distances``."""
    products = np.empty((len(fixed), _POINTS_IN_CACHE), np.float32)
    length = block_length(last - first, _POINTS_IN_CACHE)
    for start in range(first, last, length):
        for begin in range(start, gradient.shape[1], plane):
            end = min(begin + length, begin - start + last)
            _collect_side(gradient, offsets, 0, moving, sums[0], products, begin, end)
            _add_differences(sums[0], fixed, products, fixed_gradient, begin, end)
            _collect_side(gradient, -offsets, 1, fixed, sums[1], products, begin, end)
            _add_differences(sums[1], moving, products, moving_gradient, begin, end)


@njit(**JIT)
def _collect_side(gradient, offsets, far, source, total, products, begin, end):  # type: ignore[no-untyped-def]
    """Sum of the weights, and of the weighted features at the other end of every pair.

    The weight stands at this end, or at the far one. Four labels at once, so that sums are read and written rarely.
    """
    points = gradient.shape[1]
    fill_row(products.reshape(-1), 0)
    for first in range(0, len(offsets), 4):
        some = offsets[first : first + 4]
        if len(some) == 4 and begin + some.min() >= 0 and end + some.max() <= points:
            _add_four(gradient[first : first + 4], some, far, source, total, products, begin, end)
            continue
        for label in range(first, first + len(some)):
            offset = offsets[label]
            here, there = max(begin, -offset), min(end, points - offset)
            if here < there:
                weights = gradient[label, here + far * offset : there + far * offset]
                add_row(total[here:there], weights)
                for c in range(len(source)):
                    _add_product(weights, source[c, here + offset : there + offset], products[c, here - begin :])


@njit(**JIT)
def _add_four(gradient, offsets, far, source, total, products, begin, end):  # type: ignore[no-untyped-def]
    (o_a, o_b, o_c, o_d), (shift_a, shift_b, shift_c, shift_d) = far * offsets, offsets
    a, b = gradient[0, begin + o_a : end + o_a], gradient[1, begin + o_b : end + o_b]
    c, d = gradient[2, begin + o_c : end + o_c], gradient[3, begin + o_d : end + o_d]
    of_block = total[begin:end]
    for x in range(len(of_block)):
        of_block[x] += a[x] + b[x] + c[x] + d[x]
    for channel in range(len(source)):
        values, out = source[channel], products[channel, : end - begin]
        v_a, v_b = values[begin + shift_a : end + shift_a], values[begin + shift_b : end + shift_b]
        v_c, v_d = values[begin + shift_c : end + shift_c], values[begin + shift_d : end + shift_d]
        for x in range(len(out)):
            out[x] += a[x] * v_a[x] + b[x] * v_b[x] + c[x] * v_c[x] + d[x] * v_d[x]


@njit(**JIT)
def _add_product(weights, values, out):  # type: ignore[no-untyped-def]
    for x in range(len(weights)):
        out[x] += weights[x] * values[x]


@njit(**JIT)
def _add_differences(total, features, products, out, begin, end):  # type: ignore[no-untyped-def]
    """Twice the sum of weighted differences from the features here."""
    for c in range(len(features)):
        weights, values, product, target = total[begin:end], features[c, begin:end], products[c], out[c, begin:end]
        for x in range(len(target)):
            target[x] += np.float32(2) * (weights[x] * values[x] - product[x])
