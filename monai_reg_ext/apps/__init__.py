# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from .html_report import write_html_report
from .run_inputs import pairs_or_exit, prepare_output, run_or_exit
from .self_configuration import SelfConfiguration
from .trial_evaluation import TrialEvaluation

__all__ = [
    "SelfConfiguration",
    "TrialEvaluation",
    "pairs_or_exit",
    "prepare_output",
    "run_or_exit",
    "write_html_report",
]
