# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from monai_reg_ext.metrics import SDlogJMetric, compute_sdlogj

SIZE = (9, 7, 11)


def smooth_field(amplitude: float) -> torch.Tensor:
    """Smooth displacement (1, 3, 24, 20, 28) whose determinant varies everywhere."""
    i, j, k = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (24, 20, 28)), indexing="ij")
    components = [torch.sin(i / 3 + j / 5), torch.cos(j / 4 - k / 6), torch.sin(k / 3 + i / 7)]
    return amplitude * torch.stack(components)[None]


def slow_sdlogj(ddf: np.ndarray, counted: np.ndarray) -> float:
    """Zeros beyond the border, two voxels cropped, 3 added, as the challenge describes it."""
    jacobian = np.array([[correlate1d(c, [-0.5, 0, 0.5], a, mode="constant") for a in range(3)] for c in ddf])
    determinant = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)) + np.eye(3))[2:-2, 2:-2, 2:-2]
    logarithm = np.log(np.clip(determinant + 3, 1e-9, 1e9))
    return logarithm[counted[2:-2, 2:-2, 2:-2]].std()


def test_a_rough_field_gives_the_figure_of_the_slow_definition_with_and_without_mask():
    ddf = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    mask = (torch.rand(2, 1, *SIZE) > 0.4).to(torch.uint8)

    everywhere, masked = compute_sdlogj(ddf), compute_sdlogj(ddf, mask)

    for item in range(2):
        inside = mask[item, 0].numpy() > 0
        assert everywhere[item].item() == pytest.approx(slow_sdlogj(ddf[item].numpy(), np.ones(SIZE, bool)), abs=1e-12)
        assert masked[item].item() == pytest.approx(slow_sdlogj(ddf[item].numpy(), inside), abs=1e-12)


def test_a_constant_volume_change_has_no_deviation():
    scaling = 0.1 * torch.from_numpy(np.indices(SIZE, dtype=np.float64))[None]

    assert compute_sdlogj(scaling).item() == pytest.approx(0, abs=1e-12)


def test_of_a_smooth_field_it_is_a_quarter_of_the_true_deviation():
    ddf = smooth_field(0.05)

    ratio = compute_sdlogj(ddf, offset=0.0) / compute_sdlogj(ddf)

    assert ratio.item() == pytest.approx(4, rel=0.02)


def test_without_the_offset_a_folded_voxel_enters_with_the_log_of_1e_minus_9():
    # slope -1 along axis 0 for the three middle planes of six inner ones: their determinant is 1 - 1.5 < 0
    ddf = torch.zeros(1, 3, 10, 6, 7, dtype=torch.float64)
    ddf[0, 0, 5:] = -3.0  # jump between planes 4 and 5: central differences see -1.5 at planes 4 and 5

    result = compute_sdlogj(ddf, offset=0.0)

    share = 2 / 6  # planes 4 and 5 of 2 ... 7 are folded, the others keep their volume (log 1 = 0)
    assert result.item() == pytest.approx(math.sqrt(share * (1 - share)) * abs(math.log(1e-9)))


def test_the_two_outermost_voxels_do_not_count():
    ddf = torch.zeros(1, 3, *SIZE)
    rim = torch.ones(SIZE, dtype=torch.bool)
    rim[1:-1, 1:-1, 1:-1] = False  # planes 0 reach the differences of planes 1, never of planes 2
    ddf[0, :, rim] = torch.randn(3, int(rim.sum()))

    assert compute_sdlogj(ddf).item() == 0


def test_an_empty_mask_has_no_value():
    assert compute_sdlogj(torch.randn(1, 3, *SIZE), torch.zeros(1, 1, *SIZE)).isnan().all()


def test_a_mask_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"expected \(1, 1, 9, 7, 11\), got \(1, 1, 7, 9, 11\)"):
        compute_sdlogj(torch.zeros(1, 3, *SIZE), torch.ones(1, 1, 7, 9, 11))


def test_a_field_of_four_voxels_is_refused():
    with pytest.raises(ValueError, match="at least 5 voxels per axis"):
        compute_sdlogj(torch.zeros(1, 3, 9, 4, 9))


def test_the_metric_averages_over_pairs_and_leaves_out_those_without_a_value():
    ddf = torch.randn(3, 3, *SIZE)
    mask = torch.ones(3, 1, *SIZE)
    mask[1] = 0

    metric = SDlogJMetric()
    rows = metric(ddf, mask)

    assert rows.shape == (3, 1)
    expected = (compute_sdlogj(ddf[:1]) + compute_sdlogj(ddf[2:])) / 2
    assert metric.aggregate().item() == pytest.approx(expected.item())


def test_the_metric_passes_its_offset_on():
    assert SDlogJMetric(offset=0.0)(smooth_field(0.05)).item() == compute_sdlogj(smooth_field(0.05), offset=0.0).item()


def test_golden_sdlogj(golden_dir):
    golden = np.load(golden_dir / "learn2reg_metrics.npz")
    ddf = torch.from_numpy(golden["displacement"]).movedim(-1, 0)[None]

    assert compute_sdlogj(ddf).item() == pytest.approx(golden["sdlogj"].item(), abs=1e-6)
