# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from .adam_refiner import AdamRefiner
from .coupled_convex_estimator import CoupledConvexEstimator
from .feature_block import FeatureBlock
from .feature_concat import FeatureConcat
from .feature_fusion import FeatureFusion
from .feature_stack import FeatureStack
from .linear_registration import LinearRegistration
from .local_normalization import LocalNormalization
from .mind_ssc import MindSSC
from .residual_search import ResidualSearch
from .segmentation_channel import SegmentationChannel
from .semantic_features import SemanticFeatures

__all__ = [
    "AdamRefiner",
    "CoupledConvexEstimator",
    "FeatureBlock",
    "FeatureConcat",
    "FeatureFusion",
    "FeatureStack",
    "LinearRegistration",
    "LocalNormalization",
    "MindSSC",
    "ResidualSearch",
    "SegmentationChannel",
    "SemanticFeatures",
]
