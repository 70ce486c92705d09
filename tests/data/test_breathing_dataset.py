# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader

from monai_reg_ext.data import BreathingCarrier, BreathingDataset, BreathingModel, RandomBreathingDataset


@pytest.fixture
def model(linear_patient):
    sizes = (-0.2, 0.0, 0.3)
    return BreathingModel([linear_patient(torch.diag(torch.tensor([0.1, 0.0, s])), name=f"patient{s}") for s in sizes])


@pytest.fixture
def scans(lung_scan):
    image, mask = lung_scan
    other = image.clone()
    other.meta["filename_or_obj"] = "other.nii.gz"
    return [{"image": image, "mask": mask}, BreathingCarrier(other, mask)]


def test_every_item_has_a_scan_and_a_motion_of_its_own(scans, model):
    dataset = RandomBreathingDataset(scans, model, length=12, points=7, order=1)

    pairs = [dataset[index] for index in range(12)]

    assert len(dataset) == 12
    assert {pair["pair"] for pair in pairs} == {"scan_drawn__scan", "other_drawn__other"}
    assert len({round(float(pair["true_ddf"].abs().sum()), 3) for pair in pairs}) == 12
    assert all(len(pair["fixed_points"]) == len(pair["moving_points"]) == 7 for pair in pairs)


def test_seed_epoch_and_index_alone_decide_whatever_the_workers(scans, model):
    dataset = RandomBreathingDataset(scans, model, length=3, seed=4, order=1, transform=lambda pair: pair["true_ddf"])
    twin = RandomBreathingDataset(scans, model, length=3, seed=4, order=1, transform=lambda pair: pair["true_ddf"])
    dataset.set_epoch(2)
    last = twin[2]
    twin.set_epoch(2)

    loaded = list(DataLoader(dataset, batch_size=1, num_workers=1))

    assert torch.equal(loaded[1][0], twin[1])
    assert not torch.equal(loaded[2][0], last)
    assert not torch.equal(RandomBreathingDataset(scans, model, 3, order=1)[1]["true_ddf"], twin[1])


def test_a_test_set_is_every_scan_with_every_motion_and_always_the_same(scans, model):
    dataset = BreathingDataset(scans, model.motions, order=1, points=5)

    assert len(dataset) == 2 * 6
    assert dataset[7]["pair"] == "other_patient-0.2_mirrored__other"
    assert torch.equal(dataset[7]["fixed"], dataset[-5]["fixed"])
    again, other = (BreathingDataset(scans, model.motions, order=1, points=5, seed=seed) for seed in (0, 1))
    assert torch.equal(dataset[7]["fixed_points"], again[7]["fixed_points"])
    assert not torch.equal(dataset[7]["fixed_points"], other[7]["fixed_points"])


def test_without_scans_or_motions_there_is_no_data_set(scans, model):
    with pytest.raises(ValueError, match="at least one scan with a mask"):
        RandomBreathingDataset([], model, 3)
    with pytest.raises(ValueError, match="at least one motion"):
        BreathingDataset(scans, [])
    with pytest.raises(ValueError, match=r"length.*got 0"):
        RandomBreathingDataset(scans, model, 0)
