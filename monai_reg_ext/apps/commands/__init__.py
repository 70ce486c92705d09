# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from .apply import apply
from .batch import batch
from .bundles import bundles
from .compose import compose
from .convert import convert
from .correspondences import correspondences
from .evaluate import evaluate
from .invert import invert
from .label_app import label_app
from .phantom import phantom
from .register import register
from .report import report
from .zoo import zoo

__all__ = [
    "apply",
    "batch",
    "bundles",
    "compose",
    "convert",
    "correspondences",
    "evaluate",
    "invert",
    "label_app",
    "phantom",
    "register",
    "report",
    "zoo",
]
