# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from monai_reg_ext.data import whole_file


def test_a_file_appears_when_the_block_ends_under_a_folder_that_is_made(tmp_path):
    target = tmp_path / "new" / "volume.nii.gz"

    with whole_file(target) as unfinished:
        unfinished.write_text("whole")
        assert not target.exists()
        assert unfinished.name.endswith(".nii.gz")  # writers choose the format by the suffix

    assert [path.name for path in target.parent.iterdir()] == ["volume.nii.gz"]
    assert target.read_text() == "whole"


def test_a_block_that_fails_leaves_the_older_file_and_no_trace(tmp_path):
    target = tmp_path / "metrics.csv"
    target.write_text("older")

    def write_half():
        with whole_file(target) as unfinished:
            unfinished.write_text("half")
            raise KeyError("dice")

    with pytest.raises(KeyError):
        write_half()

    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    assert target.read_text() == "older"


def test_a_finished_file_has_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()

    with whole_file(tmp_path / "whole"):
        pass

    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(OSError, match=r"cannot write .*metrics\.csv"), whole_file(tmp_path / "file" / "metrics.csv"):
        pass
