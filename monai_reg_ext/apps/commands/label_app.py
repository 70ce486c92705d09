# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from monai_reg_ext.apps.copy_bundle import copy_bundle

__all__ = ["label_app"]


def label_app(folder: str) -> None:
    """Write the MONAI Label app that serves the bundles into a new folder.

    monai-reg label-app DIR

    DIR gets main.py, constraints.txt with the versions that MONAI Label works with, and README.md,
    which says how to install and start it. MONAI Label needs an environment of its own. Bundles in
    DIR/model, your own ones or those that the app trains, go before the package's.

    Example: monai-reg label-app label_app
    """
    target = copy_bundle(Path(str(files("monai_reg_ext"))) / "apps" / "label" / "app_folder", str(folder))
    print(f"{target}: how to install and start it stands in {target / 'README.md'}")
