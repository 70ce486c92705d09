# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from .breathing_inputs import breathing_model, breathing_scans
from .html_report import write_html_report
from .latest_checkpoint import latest_checkpoint
from .load_weights import load_weights, save_weights
from .require_packages import require_packages
from .run_inputs import pairs_of_process, pairs_or_exit, prepare_output, run_or_exit
from .self_configuration import SelfConfiguration
from .train_folds import train_folds
from .training_subjects import training_labels, training_subjects, with_predictions
from .trial_evaluation import TrialEvaluation

__all__ = [
    "SelfConfiguration",
    "TrialEvaluation",
    "breathing_model",
    "breathing_scans",
    "latest_checkpoint",
    "load_weights",
    "pairs_of_process",
    "pairs_or_exit",
    "prepare_output",
    "require_packages",
    "run_or_exit",
    "save_weights",
    "train_folds",
    "training_labels",
    "training_subjects",
    "with_predictions",
    "write_html_report",
]
