# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.metrics import Learn2RegDiceMetric, compute_learn2reg_dice
from monai_reg_ext.networks.layers.warp import warp


def slow_dice(warped, fixed, moving, labels):
    """One comparison per label, in the words of the definition."""
    values = []
    for label in labels:
        a, b = warped.numpy() == label, fixed.numpy() == label
        counted = b.any() and (moving.numpy() == label).any()
        values.append(2 * (a & b).sum() / (a.sum() + b.sum()) if counted else np.nan)
    return values


def test_two_shifted_blocks_overlap_by_their_common_part():
    fixed, warped = torch.zeros(2, 1, 9, 8, 7, dtype=torch.int32)
    fixed[0, 2:6, 1:5, 1:6] = 3
    warped[0, 3:7, 1:5, 1:6] = 3  # three of four planes in common

    assert compute_learn2reg_dice(warped, fixed, warped).tolist() == pytest.approx([0.75])


@pytest.mark.parametrize("labels", [[1, 2, 3], [7, 2, 1000], [4]])
def test_many_labels_equal_one_comparison_per_label(labels):
    names = torch.tensor([0, 1, 2, 3, 7])
    warped, fixed = names[torch.randint(0, 5, (2, 1, 9, 8, 7))]
    moving = names[torch.randint(0, 5, (1, 6, 10, 5))]

    result = compute_learn2reg_dice(warped, fixed, moving, labels)

    np.testing.assert_allclose(result.numpy(), slow_dice(warped, fixed, moving, labels), rtol=1e-12)


def test_a_label_that_fixed_or_the_unwarped_moving_lack_is_not_counted_and_one_warped_away_counts_zero():
    fixed = torch.tensor([[[[1, 2, 4, 4]]]])
    moving = torch.tensor([[[[1, 3, 4]]]])
    warped = torch.tensor([[[[1, 2, 3, 0]]]])

    result = compute_learn2reg_dice(warped, fixed, moving, labels=[1, 2, 3, 4, 5])

    np.testing.assert_array_equal(result.numpy(), [1.0, np.nan, np.nan, 0.0, np.nan])


def test_by_default_the_common_labels_count_so_that_the_mean_is_that_of_any_longer_list():
    fixed = torch.tensor([[[[0, 1, 2, 40, 40]]]])
    moving = torch.tensor([[[[0, 40, 1, 5]]]])
    warped = torch.tensor([[[[1, 1, 2, 40, 5]]]])

    result = compute_learn2reg_dice(warped, fixed, moving)

    assert result.tolist() == pytest.approx([2 / 3, 2 / 3])  # labels 1 and 40
    assert result.mean() == compute_learn2reg_dice(warped, fixed, moving, range(1, 50)).nanmean()


def test_label_maps_without_a_common_label_have_no_value():
    fixed, moving = torch.ones(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)

    assert Learn2RegDiceMetric()(moving[None], fixed[None], moving_label=moving[None]).isnan().all()


def test_images_with_geometry_and_plain_tensors_give_the_same():
    warped, fixed, moving = torch.randint(0, 3, (3, 1, 5, 6, 7), dtype=torch.int32)

    torch.testing.assert_close(
        compute_learn2reg_dice(*map(MetaTensor, (warped, fixed, moving))).as_tensor(),
        compute_learn2reg_dice(warped, fixed, moving),
    )


def test_a_label_map_that_is_not_on_the_fixed_grid_is_refused():
    label = torch.ones(1, 4, 5, 6)

    with pytest.raises(ValueError, match=r"fixed has shape \(1, 4, 5, 6\), warped \(1, 6, 5, 4\)"):
        compute_learn2reg_dice(label.mT.reshape(1, 6, 5, 4), label, label)


def test_the_metric_is_the_mean_over_cases_of_the_mean_over_labels():
    fixed = [torch.tensor([[[[1, 2, 2, 0]]]]), torch.tensor([[[[1, 0, 0]]]])]
    warped = [torch.tensor([[[[1, 2, 0, 0]]]]), torch.tensor([[[[1, 1, 0]]]])]
    moving = [torch.tensor([[[[1, 2]]]]), torch.tensor([[[[1, 1, 1]]]])]

    metric = Learn2RegDiceMetric(labels=[1, 2])
    metric(warped, fixed, moving_label=moving)

    assert metric.get_buffer().flatten().tolist() == pytest.approx([(1 + 2 / 3) / 2, 2 / 3])
    assert metric.aggregate().item() == pytest.approx(0.75)


def golden_labels(golden_dir):
    golden = np.load(golden_dir / "learn2reg_metrics.npz")
    return golden, *(torch.from_numpy(golden[f"{name}_label"])[None] for name in ("warped", "fixed", "moving"))


def test_golden_dice(golden_dir):
    golden, warped, fixed, moving = golden_labels(golden_dir)

    np.testing.assert_allclose(compute_learn2reg_dice(warped, fixed, moving).numpy(), golden["dice"], atol=1e-6)


def test_golden_warped_label_comes_from_nearest_neighbour_and_zeros_outside(golden_dir):
    golden, warped, _, moving = golden_labels(golden_dir)
    ddf = torch.from_numpy(golden["displacement"]).movedim(-1, 0)

    torch.testing.assert_close(warp(moving[None], ddf[None], mode="nearest", padding="zeros")[0], warped)


def test_a_label_that_is_looked_for_a_hundredth_of_a_voxel_outside_is_lost():
    label = torch.ones(1, 1, 3, 4, 5)
    ddf = torch.zeros(1, 3, 3, 4, 5)
    ddf[0, 1, :, 0] = -0.01

    warped = warp(label, ddf, mode="nearest", padding="zeros")

    assert compute_learn2reg_dice(warped, label, label).item() == pytest.approx(2 * 45 / (45 + 60))


def test_hippocampus_pairs_start_from_the_known_dice(data_dir):
    folder = data_dir / "HippocampusMR"
    pairs = json.loads((folder / "HippocampusMR_dataset.json").read_text())["registration_val"]

    def label(path):
        data = nib.load(folder / path.replace("imagesTr", "labelsTr")).dataobj
        return torch.from_numpy(np.asarray(data).astype(np.int32))[None]

    metric = Learn2RegDiceMetric(labels=[1, 2])
    for pair in pairs:
        fixed, moving = label(pair["fixed"]), label(pair["moving"])
        metric([moving], [fixed], moving_label=[moving])

    assert 100 * metric.aggregate().item() == pytest.approx(59.4, abs=0.05)
