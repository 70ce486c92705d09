# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import surface_distance
import torch
from monai.utils import OptionalImportError

from monai_reg_ext.metrics import Learn2RegHD95Metric, compute_learn2reg_hd95, learn2reg_hd95


def block(start, size=(20, 18, 22), extent=(8, 8, 8), label=1):
    volume = torch.zeros(1, *size, dtype=torch.int32)
    volume[0, start[0] : start[0] + extent[0], start[1] : start[1] + extent[1], start[2] : start[2] + extent[2]] = label
    return volume


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.5, 3.0)])
def test_a_block_shifted_by_three_voxels_is_three_voxels_away(axis, spacing):
    # the leading face alone has more than 5 % of the surface of a cube-like block, in either direction
    start = [4, 4, 4]
    fixed = block(start)
    start[axis] += 3
    warped = block(start)

    result = compute_learn2reg_hd95(warped, fixed, fixed, spacing=spacing)

    assert result.tolist() == pytest.approx([3 * spacing[axis]])


def test_a_small_protrusion_is_not_noticed_and_the_larger_direction_is_taken():
    fixed = block((4, 4, 4))
    spike = fixed.clone()
    spike[0, 12:16, 8, 8] = 1  # four voxels long: far less than 5 % of the surface
    half = block((4, 4, 4), extent=(4, 8, 8))  # the fixed surface beyond is up to 4 voxels away, the reverse is near

    assert compute_learn2reg_hd95(spike, fixed, fixed).item() == 0
    assert compute_learn2reg_hd95(half, fixed, fixed).item() == pytest.approx(4)
    assert compute_learn2reg_hd95(fixed, half, fixed).item() == pytest.approx(4)


def test_the_crop_to_each_label_changes_nothing():
    fixed, warped = torch.zeros(2, 1, 14, 12, 16, dtype=torch.int32)
    for label, corner in ((1, 0), (2, 6), (5, 9)):  # label 1 touches the border of the volume
        fixed[0, corner : corner + 4, corner : corner + 3, corner : corner + 5] = label
        warped[0, corner + 1 : corner + 4, corner : corner + 2, corner + 2 : corner + 5] = label
    fixed[0, 13, 0, 15] = warped[0, 0, 11, 15] = 2  # far from the rest of its label

    result = compute_learn2reg_hd95(warped, fixed, fixed, spacing=(1.5, 1.0, 2.5))

    whole = [
        surface_distance.compute_surface_distances(fixed[0].numpy() == n, warped[0].numpy() == n, (1.5, 1.0, 2.5))
        for n in (1, 2, 5)
    ]
    assert result.tolist() == [surface_distance.compute_robust_hausdorff(distances, 95) for distances in whole]


def test_a_label_that_fixed_or_the_unwarped_moving_lack_is_not_counted_and_one_warped_away_is_infinitely_far():
    fixed = torch.tensor([[[[1, 2, 4, 4]]]])
    moving = torch.tensor([[[[1, 3, 4]]]])
    warped = torch.tensor([[[[1, 2, 3, 0]]]])

    result = compute_learn2reg_hd95(warped, fixed, moving, labels=[1, 2, 3, 4, 5])

    np.testing.assert_array_equal(result.numpy(), [0.0, np.nan, np.nan, np.inf, np.nan])


def test_by_default_the_common_labels_count():
    fixed, warped = block((2, 3, 4), label=6), block((2, 3, 5), label=6)
    fixed[0, 0, 0, 0] = 9

    assert compute_learn2reg_hd95(warped, fixed, warped).tolist() == [1.0]


def test_the_metric_averages_over_labels_and_pairs():
    fixed = [block((4, 4, 4)), block((4, 4, 4))]
    warped = [block((6, 4, 4)), block((4, 4, 7))]

    metric = Learn2RegHD95Metric(spacing=(1.0, 1.0, 2.0))
    metric(warped, fixed, moving_label=warped)

    assert metric.get_buffer().flatten().tolist() == pytest.approx([2.0, 6.0])
    assert metric.aggregate().item() == pytest.approx(4.0)


def test_label_maps_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="compared on the fixed grid"):
        compute_learn2reg_hd95(torch.ones(1, 4, 5, 6), torch.ones(1, 4, 5, 7), torch.ones(1, 4, 5, 6))


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setattr(learn2reg_hd95, "has_surface_distance", False)

    with pytest.raises(OptionalImportError, match="pip install surface-distance"):
        Learn2RegHD95Metric()


def test_golden_hd95(golden_dir):
    golden = np.load(golden_dir / "learn2reg_metrics.npz")
    warped, fixed, moving = (torch.from_numpy(golden[f"{name}_label"])[None] for name in ("warped", "fixed", "moving"))

    np.testing.assert_allclose(compute_learn2reg_hd95(warped, fixed, moving).numpy(), golden["hd95"], atol=1e-6)
