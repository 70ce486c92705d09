# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""MONAI Label looks here for the app: ``monailabel start_server --app THIS_FOLDER --studies IMAGES``."""

from __future__ import annotations

from monai_reg_ext.apps.label.registration_app import RegistrationApp

__all__ = ["RegistrationApp"]
