# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch

from monai_reg_ext.networks.kernels.runtime import compiled_twin, in_threads


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2, 3, 16])
@pytest.mark.parametrize(("extent", "step"), [(0, 1), (1, 1), (7, 1), (7, 3), (12, 5), (100, 7)])
def test_parts_cover_the_range_once_and_begin_at_multiples_of_the_step(threads, number, extent, step):
    threads(number)
    visits, starts = np.zeros(extent, int), []

    def visit(start, stop):
        starts.append(start)
        visits[start:stop] += 1

    in_threads(visit, extent, step)

    assert (visits == 1).all()
    assert all(start % step == 0 for start in starts)
    assert len(starts) <= max(number, 1)


def test_an_error_in_a_part_is_raised(threads):
    threads(2)

    def fail(start, stop):
        raise ArithmeticError(f"part {start} to {stop}")

    with pytest.raises(ArithmeticError, match="part 0 to"):
        in_threads(fail, 4)


def _sum_in_threads(_):
    parts = []
    in_threads(lambda start, stop: parts.append(stop - start), 10)
    return sum(parts)


def test_a_forked_process_has_threads_of_its_own(threads):
    threads(2)
    _sum_in_threads(0)

    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map_async(_sum_in_threads, [0]).get(timeout=30) == [10]


def test_gradients_other_types_and_the_switch_go_to_torch(monkeypatch):
    pytest.importorskip("numba", reason="numba is not installed: there are no compiled kernels")
    tensor = torch.zeros(3)
    name = "banded_filter"

    assert compiled_twin(name, tensor) is not None
    assert compiled_twin(name, tensor.double()) is None
    assert compiled_twin(name, tensor, torch.zeros(3, requires_grad=True)) is None
    with torch.no_grad():
        assert compiled_twin(name, torch.zeros(3, requires_grad=True)) is not None
    assert compiled_twin(name, tensor.to("meta")) is None
    monkeypatch.setenv("MONAI_REG_NUMBA", "0")
    assert compiled_twin(name, tensor) is None
