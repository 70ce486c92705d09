# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from .autocast_inferer import AutocastInferer
from .has_fast_bfloat16 import has_fast_bfloat16
from .keep_thin_convolutions_exact import keep_thin_convolutions_exact
from .prepare_keypoint_batch import prepare_keypoint_batch
from .prepare_pair_batch import prepare_pair_batch
from .record_failures import record_failures

__all__ = [
    "AutocastInferer",
    "has_fast_bfloat16",
    "keep_thin_convolutions_exact",
    "prepare_keypoint_batch",
    "prepare_pair_batch",
    "record_failures",
]
