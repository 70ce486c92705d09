# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_reg_ext.metrics import InverseConsistencyMetric, compute_inverse_consistency, inverse_consistency_map
from monai_reg_ext.networks.layers.warp import identity_grid, warp

SIZE = (12, 10, 14)


def constant_field(shift, size=SIZE) -> torch.Tensor:
    return torch.tensor(shift, dtype=torch.float32)[None, :, None, None, None].expand(1, 3, *size)


def about_centre(matrix: torch.Tensor) -> torch.Tensor:
    """Displacement ``(matrix - I)(x - centre)``."""
    centre = (torch.tensor(SIZE) - 1).reshape(1, 3, 1, 1, 1) / 2
    offset = identity_grid(list(SIZE), matrix) - centre
    return torch.einsum("dc,bcijk->bdijk", matrix - torch.eye(3), offset)


def test_a_translation_and_its_reverse_are_consistent():
    there, back = constant_field((2.5, -1.0, 0.25)), constant_field((-2.5, 1.0, -0.25))

    assert compute_inverse_consistency(there, back).max() < 1e-6


def test_a_linear_map_and_its_inverse_are_consistent():
    matrix = torch.tensor([[0.8, 0.05, -0.02], [-0.04, 0.7, 0.06], [0.03, -0.05, 0.75]])  # shrinks: nothing leaves

    error = inverse_consistency_map(about_centre(matrix), about_centre(torch.linalg.inv(matrix)))

    assert error.shape == (1, *SIZE)
    assert error.max() < 1e-5


def test_the_second_field_is_read_where_the_first_one_led():
    there, back = constant_field((0.0, 0.0, 3.0)), torch.zeros(1, 3, *SIZE)
    back[0, 2] = torch.arange(14.0)  # k + 3 + (k + 3) - k

    error = inverse_consistency_map(there, back)

    expected = torch.arange(11.0) + 6
    torch.testing.assert_close(error[0, ..., :11], expected.expand(12, 10, 11))


@pytest.mark.parametrize(("shift", "left"), [(-1.5, 1), (-0.5, 0), (0.5, 0), (1.5, 1)])
def test_the_other_image_reaches_half_a_voxel_beyond_its_outermost_centres(shift, left):
    error = inverse_consistency_map(constant_field((0.0, shift, 0.0)), torch.zeros(1, 3, *SIZE))

    assert error.isnan().sum() == left * 12 * 14


def test_voxels_that_leave_the_other_image_do_not_count():
    there, back = constant_field((4.0, 0.0, 0.0)), constant_field((-4.0, 0.0, 0.0)).clone()
    back[0, 0, -1] = 96.0  # met by plane 7 alone; planes 8 to 11 leave

    error = inverse_consistency_map(there, back)
    mean, quantile = compute_inverse_consistency(there, back)[0].tolist()

    assert error[0, 8:].isnan().all()
    assert not error[0, :8].isnan().any()
    assert mean == pytest.approx(100 / 8)
    assert quantile == pytest.approx(100)


def test_only_voxels_of_the_mask_count():
    there, back = torch.zeros(2, 3, *SIZE), torch.zeros(2, 3, *SIZE)
    there[:, 1, :, :, 5] = 0.5
    mask = torch.zeros(2, 1, *SIZE)
    mask[0, ..., 4:6] = 1

    result = compute_inverse_consistency(there, back, mask=mask)

    assert result[0].tolist() == pytest.approx([0.25, 0.5])
    assert result[1].isnan().all()


def test_with_an_affine_the_error_is_in_mm():
    affine = torch.tensor([[0.0, -2, 0, 9], [1.5, 0, 0, -3], [0, 0, 3, 5], [0, 0, 0, 1]])
    there = constant_field((0.2, -0.3, 0.4))

    mean, quantile = compute_inverse_consistency(there, torch.zeros(1, 3, *SIZE), affine_a=affine)[0].tolist()

    expected = np.linalg.norm([0.2 * 1.5, 0.3 * 2, 0.4 * 3])
    assert (mean, quantile) == pytest.approx((expected, expected), rel=1e-5)


def test_fields_on_different_grids_meet_in_physical_space():
    # B has axes swapped, one flipped, other spacing and extent; it shows the whole of A moved by 3, -2, 4 mm
    affine_a = torch.diag(torch.tensor([2.0, 1.5, 1.0, 1.0]))
    affine_b = torch.tensor([[0.0, -2.5, 0, 45], [1.0, 0, 0, -8], [0, 0, 0.5, -4], [0, 0, 0, 1]])
    shift_mm = torch.tensor([3.0, -2.0, 4.0])
    there = constant_field((torch.linalg.inv(affine_a[:3, :3]) @ shift_mm).tolist())
    back = constant_field((-torch.linalg.inv(affine_b[:3, :3]) @ shift_mm).tolist(), size=(30, 20, 50))

    error = inverse_consistency_map(there, back, affine_a, affine_b)

    assert error.max() < 1e-4  # NaN would not compare
    assert not error.isnan().any()


def test_a_flow_and_the_reverse_flow_are_nearly_consistent():
    i, j, k = identity_grid([24, 20, 28], torch.zeros(1))[0]
    window = torch.sin(torch.pi * i / 23) * torch.sin(torch.pi * j / 19) * torch.sin(torch.pi * k / 27)
    velocity = 2 * torch.stack([window * torch.cos(j / 5), window, window * torch.sin(i / 6)])[None]
    flows = []
    for sign in (1, -1):
        flow = sign * velocity / 2**6
        for _ in range(6):
            flow = flow + warp(flow, flow)
        flows.append(flow)

    mean, _ = compute_inverse_consistency(*flows)[0].tolist()

    assert flows[0].abs().max() > 1
    assert mean < 0.02


def test_the_metric_averages_over_pairs():
    there = torch.cat([constant_field((1.0, 0.0, 0.0)), constant_field((0.0, 3.0, 0.0))])
    affine = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0])).expand(2, 4, 4)

    metric = InverseConsistencyMetric()
    metric(there, torch.zeros(2, 3, *SIZE), affine_a=affine)

    assert metric.get_buffer().flatten().tolist() == pytest.approx([2.0, 3.0])
    assert metric.aggregate().item() == pytest.approx(2.5)
