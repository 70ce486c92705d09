# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from .box_filter import box_filter
from .cells_inside import cells_inside
from .central_differences import central_differences
from .compat import reference_stretch
from .compose_ddf import compose_ddf
from .conjugate_gradients import ConjugateGradients, conjugate_gradients
from .cosine_transform import cosine_transform
from .cost_volume import CostVolume
from .coupled_convex import COUPLINGS, coupled_convex
from .dense_cost_volume import DenseCostVolume
from .diffusion import diffusion
from .displacement_distribution import DisplacementDistribution, expected_displacement, field_on_cells
from .displacement_posterior import DisplacementPosterior, displacement_posterior
from .farthest_points import farthest_points
from .feature_energy import FeatureEnergy
from .field_normal_equations import field_normal_equations
from .fill_outside import FillOutside
from .foerstner_distinctiveness import foerstner_distinctiveness
from .foerstner_keypoints import foerstner_keypoints
from .graph_laplacian import graph_laplacian
from .inverse_consistency import make_inverse_consistent
from .invert_ddf import invert_ddf
from .jacobian import jacobian_determinant
from .keypoint_distribution import KeypointDistribution
from .keypoint_search import graph_convex, keypoint_cost
from .label_fusion import fuse_labels, local_agreement
from .least_trimmed_squares import fit_linear, least_trimmed_squares
from .linear_step import linear_step
from .mask_channel import add_mask_channel
from .mean_field import mean_field, pass_messages
from .min_convolution import min_convolution, quadratic_envelope
from .nearest_points import nearest_points
from .neighbour_graph import NeighbourGraph
from .normal_equations import normal_equations
from .normal_operator import NormalOperator
from .offset_differences import offset_differences
from .offset_window import offset_window_cost, offset_window_mean
from .planar_distribution import PlanarDistribution
from .points_in_mask import points_in_mask
from .pool_to_grid import pool_to_grid
from .residual_covariance import residual_covariance
from .sample_axes import sample_axes
from .sample_points import sample_points
from .sampled_cost import sampled_cost
from .search_grid import SearchGrid, search_grid
from .segmented_registration import SegmentedRegistration
from .separable_filter import gaussian_taps, separable_filter
from .signed_distance import signed_distance
from .solve_backward import solve_backward
from .solve_normal_equations import solve_normal_equations
from .ssd_cost_volume import SSDCostVolume, displacement_labels, ssd_cost_volume
from .thin_plate_spline import ThinPlateSpline, thin_plate_field
from .translation_search import TranslationSearch
from .upsample_covariance import upsample_covariance
from .upsample_ddf import downsample_ddf, regrid_ddf, share_with_grid, upsample_ddf
from .warp import identity_grid, sample, warp
from .window_cost import window_cost
from .window_mean import window_mean

__all__ = [
    "COUPLINGS",
    "ConjugateGradients",
    "CostVolume",
    "DenseCostVolume",
    "DisplacementDistribution",
    "DisplacementPosterior",
    "FeatureEnergy",
    "FillOutside",
    "KeypointDistribution",
    "NeighbourGraph",
    "NormalOperator",
    "PlanarDistribution",
    "SSDCostVolume",
    "SearchGrid",
    "SegmentedRegistration",
    "ThinPlateSpline",
    "TranslationSearch",
    "add_mask_channel",
    "box_filter",
    "cells_inside",
    "central_differences",
    "compose_ddf",
    "conjugate_gradients",
    "cosine_transform",
    "coupled_convex",
    "diffusion",
    "displacement_labels",
    "displacement_posterior",
    "downsample_ddf",
    "expected_displacement",
    "farthest_points",
    "field_normal_equations",
    "field_on_cells",
    "fit_linear",
    "foerstner_distinctiveness",
    "foerstner_keypoints",
    "fuse_labels",
    "gaussian_taps",
    "graph_convex",
    "graph_laplacian",
    "identity_grid",
    "invert_ddf",
    "jacobian_determinant",
    "keypoint_cost",
    "least_trimmed_squares",
    "linear_step",
    "local_agreement",
    "make_inverse_consistent",
    "mean_field",
    "min_convolution",
    "nearest_points",
    "normal_equations",
    "offset_differences",
    "offset_window_cost",
    "offset_window_mean",
    "pass_messages",
    "points_in_mask",
    "pool_to_grid",
    "quadratic_envelope",
    "reference_stretch",
    "regrid_ddf",
    "residual_covariance",
    "sample",
    "sample_axes",
    "sample_points",
    "sampled_cost",
    "search_grid",
    "separable_filter",
    "share_with_grid",
    "signed_distance",
    "solve_backward",
    "solve_normal_equations",
    "ssd_cost_volume",
    "thin_plate_field",
    "upsample_covariance",
    "upsample_ddf",
    "warp",
    "window_cost",
    "window_mean",
]
