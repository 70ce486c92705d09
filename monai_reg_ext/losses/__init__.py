# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from .keypoint_loss import KeypointLoss
from .mind_ssc_loss import MindSSCLoss
from .non_local_feature_loss import NonLocalFeatureLoss
from .non_local_label_loss import NonLocalLabelLoss
from .segmentation_guided_loss import SegmentationGuidedLoss
from .warped_label_loss import WarpedLabelLoss

__all__ = [
    "KeypointLoss",
    "MindSSCLoss",
    "NonLocalFeatureLoss",
    "NonLocalLabelLoss",
    "SegmentationGuidedLoss",
    "WarpedLabelLoss",
]
