# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from .channels_to_labels import ChannelsToLabels, ChannelsToLabelsD, ChannelsToLabelsd, ChannelsToLabelsDict
from .check_pair import CheckPairD, CheckPaird, CheckPairDict
from .conventions import (
    affine_to_itk,
    ddf_to_itk_field,
    ddf_to_learn2reg,
    ddf_to_mm,
    grid_voxels,
    itk_field_to_ddf,
    itk_to_affine,
    learn2reg_to_ddf,
    lps_to_ras_affine,
    lps_to_ras_points,
    mm_to_ddf,
    mm_to_voxel,
    moving_voxels,
    ras_to_lps_affine,
    ras_to_lps_points,
    resample_ddf,
    total_ddf,
    voxel_spacing,
    voxel_to_mm,
    voxel_to_voxel,
)
from .ddf_to_fixed_grid import DDFToFixedGrid, DDFToFixedGridD, DDFToFixedGridd, DDFToFixedGridDict
from .displacement_uncertainty import (
    DisplacementUncertainty,
    DisplacementUncertaintyD,
    DisplacementUncertaintyd,
    DisplacementUncertaintyDict,
)
from .draw_initial_field import DrawInitialFieldD, DrawInitialFieldd, DrawInitialFieldDict
from .draw_keypoints import DrawKeypointsD, DrawKeypointsd, DrawKeypointsDict
from .fill_outside_mask import FillOutsideMask, FillOutsideMaskD, FillOutsideMaskd, FillOutsideMaskDict
from .find_correspondences import FindCorrespondencesD, FindCorrespondencesd, FindCorrespondencesDict
from .foerstner_keypoints import (
    FoerstnerKeypoints,
    FoerstnerKeypointsD,
    FoerstnerKeypointsd,
    FoerstnerKeypointsDict,
)
from .initial_alignment import centre_alignment, initial_alignment, mass_alignment, overlap_fraction
from .inverse_field import InverseFieldD, InverseFieldd, InverseFieldDict
from .labels_to_channels import LabelsToChannels, LabelsToChannelsD, LabelsToChannelsd, LabelsToChannelsDict
from .learn2reg_field import find_learn2reg_field, learn2reg_field_names
from .linear_alignment import linear_alignment
from .load_pair import LoadPairD, LoadPaird, LoadPairDict
from .mind_ssc import MindSSCD, MindSSCd, MindSSCDict, MindSSCTransform
from .normalize_robust import NormalizeRobust, NormalizeRobustD, NormalizeRobustd, NormalizeRobustDict
from .padding_mask import PaddingMask, PaddingMaskD, PaddingMaskd, PaddingMaskDict, find_padding
from .register_pair import RegisterPairD, RegisterPaird, RegisterPairDict
from .registration_recipe import RegistrationRecipe
from .resample_to_fixed import ResampleToFixed, ResampleToFixedD, ResampleToFixedd, ResampleToFixedDict
from .save_registration import SaveRegistrationD, SaveRegistrationd, SaveRegistrationDict
from .signed_distance_map import SignedDistanceMap, SignedDistanceMapD, SignedDistanceMapd, SignedDistanceMapDict
from .spatial_displacement import FoldedFieldError, SpatialDisplacement
from .split_directions import SplitDirectionsD, SplitDirectionsd, SplitDirectionsDict
from .transform_files import read_linear_transform, read_transform, write_transform
from .warp_by_ddf import WarpByDDF, WarpByDDFD, WarpByDDFd, WarpByDDFDict
from .warp_points import WarpPoints, WarpPointsD, WarpPointsd, WarpPointsDict

__all__ = [
    "ChannelsToLabels",
    "ChannelsToLabelsD",
    "ChannelsToLabelsDict",
    "ChannelsToLabelsd",
    "CheckPairD",
    "CheckPairDict",
    "CheckPaird",
    "DDFToFixedGrid",
    "DDFToFixedGridD",
    "DDFToFixedGridDict",
    "DDFToFixedGridd",
    "DisplacementUncertainty",
    "DisplacementUncertaintyD",
    "DisplacementUncertaintyDict",
    "DisplacementUncertaintyd",
    "DrawInitialFieldD",
    "DrawInitialFieldDict",
    "DrawInitialFieldd",
    "DrawKeypointsD",
    "DrawKeypointsDict",
    "DrawKeypointsd",
    "FillOutsideMask",
    "FillOutsideMaskD",
    "FillOutsideMaskDict",
    "FillOutsideMaskd",
    "FindCorrespondencesD",
    "FindCorrespondencesDict",
    "FindCorrespondencesd",
    "FoerstnerKeypoints",
    "FoerstnerKeypointsD",
    "FoerstnerKeypointsDict",
    "FoerstnerKeypointsd",
    "FoldedFieldError",
    "InverseFieldD",
    "InverseFieldDict",
    "InverseFieldd",
    "LabelsToChannels",
    "LabelsToChannelsD",
    "LabelsToChannelsDict",
    "LabelsToChannelsd",
    "LoadPairD",
    "LoadPairDict",
    "LoadPaird",
    "MindSSCD",
    "MindSSCDict",
    "MindSSCTransform",
    "MindSSCd",
    "NormalizeRobust",
    "NormalizeRobustD",
    "NormalizeRobustDict",
    "NormalizeRobustd",
    "PaddingMask",
    "PaddingMaskD",
    "PaddingMaskDict",
    "PaddingMaskd",
    "RegisterPairD",
    "RegisterPairDict",
    "RegisterPaird",
    "RegistrationRecipe",
    "ResampleToFixed",
    "ResampleToFixedD",
    "ResampleToFixedDict",
    "ResampleToFixedd",
    "SaveRegistrationD",
    "SaveRegistrationDict",
    "SaveRegistrationd",
    "SignedDistanceMap",
    "SignedDistanceMapD",
    "SignedDistanceMapDict",
    "SignedDistanceMapd",
    "SpatialDisplacement",
    "SplitDirectionsD",
    "SplitDirectionsDict",
    "SplitDirectionsd",
    "WarpByDDF",
    "WarpByDDFD",
    "WarpByDDFDict",
    "WarpByDDFd",
    "WarpPoints",
    "WarpPointsD",
    "WarpPointsDict",
    "WarpPointsd",
    "affine_to_itk",
    "centre_alignment",
    "ddf_to_itk_field",
    "ddf_to_learn2reg",
    "ddf_to_mm",
    "find_learn2reg_field",
    "find_padding",
    "grid_voxels",
    "initial_alignment",
    "itk_field_to_ddf",
    "itk_to_affine",
    "learn2reg_field_names",
    "learn2reg_to_ddf",
    "linear_alignment",
    "lps_to_ras_affine",
    "lps_to_ras_points",
    "mass_alignment",
    "mm_to_ddf",
    "mm_to_voxel",
    "moving_voxels",
    "overlap_fraction",
    "ras_to_lps_affine",
    "ras_to_lps_points",
    "read_linear_transform",
    "read_transform",
    "resample_ddf",
    "total_ddf",
    "voxel_spacing",
    "voxel_to_mm",
    "voxel_to_voxel",
    "write_transform",
]
