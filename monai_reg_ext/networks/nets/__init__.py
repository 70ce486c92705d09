# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from .keypoint_training import KeypointTraining
from .registration_net import RegistrationNet
from .segmentation_training import SegmentationTraining

__all__ = ["KeypointTraining", "RegistrationNet", "SegmentationTraining"]
