# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if "PYTEST_XDIST_WORKER" in os.environ:
    # workers share the cores, and so do the processes that their tests start
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable, REPOSITORY.parent / "shared" / default))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real scans; tests that need it skip where it does not exist."""
    folder = _folder("MONAI_REG_DATA", "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: set MONAI_REG_DATA (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of reference outputs; tests that need it skip where it does not exist."""
    folder = _folder("MONAI_REG_GOLDEN", "golden")
    if not folder.is_dir():
        pytest.skip(f"no golden files: set MONAI_REG_GOLDEN (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def bundles_dir() -> Path:
    return REPOSITORY / "bundles"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class _LargestTensor(TorchDispatchMode):
    """Largest number of values in memory under any one tensor that an operation gives."""

    values = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, torch.Tensor):
                self.values = max(self.values, result.untyped_storage().nbytes() // result.element_size())
        return results


@pytest.fixture
def largest_tensor():
    """``with largest_tensor() as largest: ...``, then ``largest.values``: size of the largest result."""
    return _LargestTensor
