# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from .folding_handler import FoldingHandler
from .inverse_consistency_handler import InverseConsistencyHandler
from .learn2reg_dice_handler import Learn2RegDiceHandler
from .learn2reg_hd95_handler import Learn2RegHD95Handler
from .pair_metric_handler import PairMetricHandler
from .report_figure import report_figure
from .report_handler import ReportHandler
from .report_png import report_png
from .run_recorder import RunRecorder
from .sdlogj_handler import SDlogJHandler
from .share_mlflow_run import share_mlflow_run
from .training_log import TrainingLog
from .tre_handler import TREHandler
from .validation_picture import ValidationPicture

__all__ = [
    "FoldingHandler",
    "InverseConsistencyHandler",
    "Learn2RegDiceHandler",
    "Learn2RegHD95Handler",
    "PairMetricHandler",
    "ReportHandler",
    "RunRecorder",
    "SDlogJHandler",
    "TREHandler",
    "TrainingLog",
    "ValidationPicture",
    "report_figure",
    "report_png",
    "share_mlflow_run",
]
