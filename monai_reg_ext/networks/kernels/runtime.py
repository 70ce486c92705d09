# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from types import ModuleType

import torch

__all__ = ["JIT", "compiled_twin", "in_threads"]

# Sums may be reordered, so that they use vector registers; NaN and infinity keep their meaning.
JIT = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"reassoc", "nsz", "contract", "arcp"}}


def compiled_twin(name: str, *tensors: torch.Tensor) -> ModuleType | None:
    """The compiled form of a layer, where it may take the torch form's place.

    Args:
        name: module of this package, called like the layer.
        tensors: what the layer works on.

    Returns:
        The module for float32 tensors on the CPU that need no gradient, if numba is installed and the environment
        variable ``MONAI_REG_NUMBA`` is not 0. Otherwise ``None``: use torch.
    """
    wanted = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    if not wanted or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return None
    if os.environ.get("MONAI_REG_NUMBA", "1") == "0" or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return None
    return _load(name)


@cache
def _load(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"{__package__}.{name}")
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            warnings.warn(
                f"numba cannot be used ({error}); registration runs on torch alone, several times slower.", stacklevel=2
            )
        return None


def in_threads(function: Callable[[int, int], None], extent: int, step: int = 1) -> None:
    """Split ``range(extent)`` among torch's number of threads and call ``function(start, stop)`` for every part.

    Args:
        function: releases the GIL; parts must not write to the same memory.
        extent: number of items.
        step: parts begin at multiples of it.
    """
    steps = -(-extent // step)
    parts = min(torch.get_num_threads(), steps)
    bounds = [min(extent, step * (steps * part // max(parts, 1))) for part in range(parts + 1)]
    if parts == 1:
        function(0, extent)
    elif parts > 1:
        list(_pool(os.getpid(), parts).map(function, bounds[:-1], bounds[1:]))


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # a forked process has no threads yet, hence its number in the key
    return ThreadPoolExecutor(threads, thread_name_prefix="monai_reg_ext")
