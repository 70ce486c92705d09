# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from .breathing_carrier import BreathingCarrier
from .breathing_dataset import BreathingDataset, RandomBreathingDataset
from .breathing_model import BreathingModel
from .breathing_pair import breathing_pair
from .breathing_patients import BreathingPatient, breathing_patients
from .bundle_dir import bundle_dir, bundle_names
from .epoch_dataset import EpochDataset
from .learn2reg import Learn2RegTask
from .learn2reg_dataset import Learn2RegDataset
from .lung_motion import LungMotion
from .pair_dataset import PairDataset
from .pair_list import pair_list
from .pairing import file_stem, join_subjects, pair_name
from .phantom import phantom_pair
from .points import read_points, write_points
from .random_pair_dataset import RandomPairDataset
from .whole_file import whole_file

__all__ = [
    "BreathingCarrier",
    "BreathingDataset",
    "BreathingModel",
    "BreathingPatient",
    "EpochDataset",
    "Learn2RegDataset",
    "Learn2RegTask",
    "LungMotion",
    "PairDataset",
    "RandomBreathingDataset",
    "RandomPairDataset",
    "breathing_pair",
    "breathing_patients",
    "bundle_dir",
    "bundle_names",
    "file_stem",
    "join_subjects",
    "pair_list",
    "pair_name",
    "phantom_pair",
    "read_points",
    "whole_file",
    "write_points",
]
