# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_reg_ext.data import file_stem, join_subjects, pair_name


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("/scans/LungCT_0001_0000.nii.gz", "LungCT_0001_0000"),
        ("exhMaster.mha", "exhMaster"),
        ("case.01.NII.GZ", "case.01"),
        ("visit 2/head.nrrd", "head"),
        ("study.2020/series", "series"),  # a DICOM folder
        ("series.7", "series.7"),
    ],
)
def test_a_stem_loses_the_folder_and_the_suffixes_of_images_only(path, stem):
    assert file_stem(path) == stem


def test_a_pair_is_named_after_both_images_fixed_first():
    assert pair_name("a/fixed.nii.gz", "b/moving.mha") == "fixed__moving"


def test_joining_two_subjects_keeps_everything_of_each_side_and_leaves_nones_out():
    pair = join_subjects(
        {"image": "a/x.nii.gz", "label": "a/l.nii.gz", "age": 40}, {"image": "b/y.nii.gz", "label": None, "mask": "b/m"}
    )

    assert pair == {
        "pair": "x__y",
        "fixed": "a/x.nii.gz",
        "moving": "b/y.nii.gz",
        "fixed_label": "a/l.nii.gz",
        "fixed_age": 40,
        "moving_mask": "b/m",
    }


def test_a_loaded_image_gives_the_name_of_its_file():
    loaded = MetaTensor(torch.zeros(1, 2, 3, 4), meta={"filename_or_obj": "scans/x.nii.gz"})

    assert join_subjects({"image": loaded}, {"image": "y.mha"})["pair"] == "x__y"


def test_a_subject_without_an_image_is_refused():
    with pytest.raises(ValueError, match="needs the key 'image', got \\['label'\\]"):
        join_subjects({"image": "x.nii"}, {"label": "y.nii"})
