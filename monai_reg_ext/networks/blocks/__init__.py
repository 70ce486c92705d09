# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from .adam_refiner import AdamRefiner
from .coupled_convex_estimator import CoupledConvexEstimator
from .feature_block import FeatureBlock
from .feature_concat import FeatureConcat
from .feature_fusion import FeatureFusion
from .feature_stack import FeatureStack
from .flow_net_estimator import FlowNetEstimator
from .gauss_newton_estimator import GaussNewtonEstimator
from .gauss_newton_stencils import GaussNewtonStencils
from .heatmap_head import HeatmapHead
from .learn2optimise_estimator import Learn2OptimiseEstimator
from .learned_gauss_newton_estimator import LearnedGaussNewtonEstimator
from .linear_registration import LinearRegistration
from .local_normalization import LocalNormalization
from .mean_field import PAPER_ALPHAS, MeanField
from .mean_field_estimator import MeanFieldEstimator
from .mind_ssc import MindSSC
from .network_features import NetworkFeatures
from .obelisk_features import ObeliskFeatures
from .planar_mean_field_estimator import PlanarMeanFieldEstimator
from .pre_registration import PRE_REGISTRATION_MODES, PreRegistrationAugmentation, PreRegistrationMode
from .probability_refiner import ProbabilityRefiner
from .residual_search import ResidualSearch
from .segmentation_channel import SegmentationChannel
from .semantic_features import SemanticFeatures
from .signed_distance_features import SignedDistanceFeatures
from .skip_unet import SkipUNet
from .voxelmorph_estimator import VoxelMorphEstimator
from .voxelmorph_plus_plus_estimator import VoxelMorphPlusPlusEstimator
from .window_estimator import WindowEstimator

__all__ = [
    "PAPER_ALPHAS",
    "PRE_REGISTRATION_MODES",
    "AdamRefiner",
    "CoupledConvexEstimator",
    "FeatureBlock",
    "FeatureConcat",
    "FeatureFusion",
    "FeatureStack",
    "FlowNetEstimator",
    "GaussNewtonEstimator",
    "GaussNewtonStencils",
    "HeatmapHead",
    "Learn2OptimiseEstimator",
    "LearnedGaussNewtonEstimator",
    "LinearRegistration",
    "LocalNormalization",
    "MeanField",
    "MeanFieldEstimator",
    "MindSSC",
    "NetworkFeatures",
    "ObeliskFeatures",
    "PlanarMeanFieldEstimator",
    "PreRegistrationAugmentation",
    "PreRegistrationMode",
    "ProbabilityRefiner",
    "ResidualSearch",
    "SegmentationChannel",
    "SemanticFeatures",
    "SignedDistanceFeatures",
    "SkipUNet",
    "VoxelMorphEstimator",
    "VoxelMorphPlusPlusEstimator",
    "WindowEstimator",
]
