# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Large-deformation medical image registration, made of MONAI parts."""

from . import apps, data, engines, handlers, losses, metrics, networks, transforms

__all__ = ["apps", "data", "engines", "handlers", "losses", "metrics", "networks", "transforms"]
__version__ = "0.1.0"
