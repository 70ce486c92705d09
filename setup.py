# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from setuptools import find_packages, setup

# setup.cfg cannot say both "whatever packages there are" and "the folder bundles as one more"
setup(packages=[*find_packages(include=["monai_reg_ext*"]), "monai_reg_ext.bundles"])
