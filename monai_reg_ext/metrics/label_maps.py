# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

__all__ = ["check_same_grid", "common_labels"]


def check_same_grid(warped_label: torch.Tensor, fixed_label: torch.Tensor) -> None:
    """Raise a ``ValueError`` unless the warped label map has the shape of the fixed one."""
    if warped_label.shape != fixed_label.shape:
        raise ValueError(
            f"Label maps are compared on the fixed grid: fixed has shape {tuple(fixed_label.shape)}, warped "
            f"{tuple(warped_label.shape)}. Warp the moving label by the displacement field of the fixed grid."
        )


def common_labels(fixed_label: torch.Tensor, moving_label: torch.Tensor) -> list[int]:
    """Labels above 0 that two label maps, of any size each, have in common; ascending."""
    in_moving = set(moving_label.unique().tolist())
    return [int(label) for label in fixed_label.unique().tolist() if label > 0 and label in in_moving]
