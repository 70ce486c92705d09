# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
from monai.transforms import Compose, Lambdad

from monai_reg_ext.data.error_line import error_line


def _raised(call) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011, any error is to be told
        call()
    return caught.value


def _refuse(value):
    raise ValueError(f"moving must be positive, got {value}.")


def test_the_layers_that_monai_wraps_around_an_error_are_left_out():
    nested = Compose([Compose([Lambdad("moving", _refuse)])])

    assert error_line(_raised(lambda: nested({"moving": -1}))) == "moving must be positive, got -1."


def test_errors_that_are_no_sentence_for_users_go_with_their_kind():
    assert error_line(_raised(lambda: {}["fixed_label"])) == "KeyError: 'fixed_label'"
    assert error_line(FileNotFoundError("no file a.nii.gz")) == "no file a.nii.gz"


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_an_error_without_text_is_told_by_its_kind(kind):
    assert error_line(kind()) == kind.__name__


def test_an_error_of_many_lines_becomes_one():
    error = OSError("reader.cxx:12:\nITK ERROR: cannot read missing  scan.mha\n")

    assert error_line(error) == "reader.cxx:12: ITK ERROR: cannot read missing  scan.mha"
