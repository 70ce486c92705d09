# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from monai_reg_ext.apps import require_packages


def test_packages_that_are_there_or_not_wanted_are_fine():
    require_packages(torch=True, no_such_package=False)


def test_a_package_that_is_missing_ends_the_process_with_what_to_do():
    with pytest.raises(SystemExit) as error:
        require_packages("track", torch=True, no_such_package=True)

    message = str(error.value)
    assert message.startswith("error: no_such_package is asked for but not installed.")
    assert "'monai-reg-ext[track]'" in message
    assert message.endswith("leave out the option that asks for it.")
    assert "torch" not in message
