# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from monai_reg_ext.apps.file_list import file_list


@pytest.mark.parametrize(
    ("given", "files"),
    [
        (None, []),
        ("", []),
        ("a.h5", ["a.h5"]),
        ("1Warp.nii.gz,0Affine.mat", ["1Warp.nii.gz", "0Affine.mat"]),
        ("[1Warp.nii.gz, 0Affine.mat]", ["1Warp.nii.gz", "0Affine.mat"]),
        (("a", "b"), ["a", "b"]),
        (["a.h5", 1], ["a.h5", "1"]),
        (7, ["7"]),
    ],
)
def test_paths_are_a_list_or_stand_between_commas(given, files):
    assert file_list(given) == files


def test_a_file_with_a_comma_in_its_name_is_one_file(tmp_path):
    path = tmp_path / "left,right.h5"
    path.write_text("")

    assert file_list(str(path)) == [str(path)]
