# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from .app_bundle import AppBundle, app_bundles
from .registration_service import RegistrationService

__all__ = ["AppBundle", "RegistrationService", "app_bundles"]
