# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from monai_reg_ext.apps.run_options import is_measurable, split_options
from monai_reg_ext.apps.usage_error import UsageError


def test_what_belongs_to_the_pair_is_told_from_what_overrides_the_config():
    options = {"fixed_label": 12, "points_space": "lps", "moving_spacing": [1, 1, 2], "spacing": 2, "network_def#p": 1}

    inputs, overrides = split_options(options)

    assert inputs == {"fixed_label": "12", "points_space": "lps", "moving_spacing": [1, 1, 2]}
    assert overrides == {"spacing": 2, "network_def#p": 1}


@pytest.mark.parametrize(
    ("given", "passed"), [("rigid", "rigid"), ("1Warp.nii.gz,0Affine.mat", ["1Warp.nii.gz", "0Affine.mat"])]
)
def test_several_files_may_be_the_initial_transform(given, passed):
    assert split_options({"initial": given})[1] == {"initial": passed}


@pytest.mark.parametrize("key", ["output_dir", "bundle_root", "pairs", "dataset_dir"])
def test_ids_that_the_command_sets_itself_are_refused(key):
    with pytest.raises(UsageError, match=f"--{key}"):
        split_options({key: "x"})


@pytest.mark.parametrize(
    ("keys", "measurable"),
    [
        (("fixed_label", "moving_label"), True),
        (("fixed_points", "moving_points"), True),
        (("fixed_label", "moving_points"), False),
        (("fixed_mask", "moving_mask"), False),
    ],
)
def test_labels_or_points_of_both_sides_can_be_measured(keys, measurable):
    assert is_measurable(dict.fromkeys(keys, "file")) is measurable
