# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_reg_ext.data import Learn2RegTask, pair_list


def test_nothing_given_or_empty_strings_give_the_phantom():
    (default,) = pair_list()
    (empty,) = pair_list(dataset_dir="", fixed="", moving="", fixed_label="", moving_points="", seed=0)

    assert default["pair"] == empty["pair"] == "phantom_fixed__phantom_moving"
    assert torch.equal(default["fixed"].as_tensor(), empty["fixed"].as_tensor())


def test_two_files_and_what_belongs_to_them_give_one_pair_without_looking_at_the_files():
    pairs = pair_list(fixed=Path("a/fixed.nii.gz"), moving="b/moving.mha", moving_label="b/organs.nii", fixed_mask="")

    assert pairs == [
        {
            "pair": "fixed__moving",
            "fixed": "a/fixed.nii.gz",
            "moving": "b/moving.mha",
            "moving_label": "b/organs.nii",
        }
    ]


def test_every_file_argument_arrives_under_its_own_key():
    files = {
        f"{side}{kind}": f"{side}{kind}.file"
        for side in ("fixed", "moving")
        for kind in ("", "_label", "_mask", "_prediction", "_points")
    }

    (pair,) = pair_list(**files, points_space="lps")

    assert pair == {"pair": "fixed.file__moving.file", "points_space": "lps", **files}


def test_a_dataset_gives_the_pairs_of_its_split(data_dir):
    folder = data_dir / "AbdomenMR"
    task = Learn2RegTask(folder)

    assert pair_list(str(folder)) == task.pairs()
    assert pair_list(folder, limit=3) == task.pairs()[:3]
    assert pair_list(folder, "training", limit=7, seed=5) == task.pairs("training", 7, seed=5)
    assert len(pair_list(data_dir / "AbdomenCTCT", image_from="label")) == 45


@pytest.mark.parametrize("given", [{"fixed": "a.nii"}, {"moving": "b.nii"}, {"fixed_label": "l.nii"}])
def test_half_a_pair_is_refused(given):
    with pytest.raises(ValueError, match="needs both fixed and moving, got only"):
        pair_list(**given)


def test_a_dataset_beside_files_is_refused():
    with pytest.raises(ValueError, match=r"give either dataset_dir or images.*moving_mask"):
        pair_list("somewhere", moving_mask="m.nii")


def test_one_missing_file_of_a_dataset_is_left_to_the_loading_of_its_pair(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / "imagesTr" / name).touch()
    json = '{"registration_val": [{"fixed": "./imagesTr/a.nii.gz", "moving": "./imagesTr/%s.nii.gz"}, %s]}'
    present = '{"fixed": "./imagesTr/a.nii.gz", "moving": "./imagesTr/b.nii.gz"}'
    (tmp_path / "Toy_dataset.json").write_text(json % ("absent", present))

    assert [pair["pair"] for pair in pair_list(tmp_path)] == ["a__absent", "a__b"]


def test_predictions_of_a_dataset_have_the_names_of_its_images(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / "imagesTr" / name).touch()
    pair = '{"fixed": "./imagesTr/a.nii.gz", "moving": "./imagesTr/b.nii.gz"}'
    (tmp_path / "Toy_dataset.json").write_text(f'{{"registration_val": [{pair}]}}')

    (listed,) = pair_list(tmp_path, predictions_dir=tmp_path / "network")

    assert listed["fixed_prediction"] == str(tmp_path / "network" / "a.nii.gz")
    assert listed["moving_prediction"] == str(tmp_path / "network" / "b.nii.gz")
