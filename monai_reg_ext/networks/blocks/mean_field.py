# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from monai_reg_ext.networks.layers.mean_field import mean_field

__all__ = ["PAPER_ALPHAS", "MeanField"]

PAPER_ALPHAS = (1.0, 0.1, 1.0, 1.0, 0.1, 1.0)


class MeanField(nn.Module):
    r"""Mean field inference with learned weights: costs of displacements to logits of their probabilities.

    By default two weights are learned, the sharpness *s* and the weight *r* of the messages,
    :math:`-s \cdot \text{mean\_field}(\text{cost}, r)`. All that six can do, these two can: a constant added to the
    costs does not change probabilities, and the rest is a matter of scale.

    Args:
        sharpness: initial *s*, ``> 0``; its logarithm is learned.
        message_weight: initial *r*; may become negative.
        alphas: initial values of the paper's six weights, e.g. ``PAPER_ALPHAS``, learned in place of the two: scale
            and bias of the costs, of the costs in later rounds, of the messages, bias of later rounds, sharpness. The
            biases have no gradient.
        rounds: see :py:func:`mean_field`.
        envelope_weight: see :py:func:`mean_field`.
        averages: see :py:func:`mean_field`.
        message_widths: see :py:func:`mean_field`; empty for no messages between control points.

    Shape:
        - cost, output: ``(B, l_0, l_1, l_2, i, j, k)``.

    Raises:
        ValueError: when the sharpness is not positive, or there are not six alphas.

    Source: Heinrich, "Closing the Gap between Deep and Conventional Image Registration using Probabilistic Dense
    Displacement Networks", MICCAI 2019, section 2.
    """

    def __init__(
        self,
        sharpness: float = 1.0,
        message_weight: float = 1.0,
        alphas: Sequence[float] | None = None,
        rounds: int = 2,
        envelope_weight: float | None = None,
        averages: int = 2,
        message_widths: Sequence[Sequence[int]] = ((3, 3), (3, 3), (3, 3)),
    ) -> None:
        super().__init__()
        if not sharpness > 0:
            raise ValueError(f"sharpness must be > 0 so that less cost means more probable, got {sharpness}.")
        if alphas is not None and len(alphas) != 6:
            raise ValueError(f"alphas are six weights, got {len(alphas)}. Leave them out for a form with two weights.")
        if alphas is None:
            self.log_sharpness = nn.Parameter(torch.tensor(float(sharpness)).log())
            self.message_weight = nn.Parameter(torch.tensor(float(message_weight)))
        else:
            self.alphas = nn.Parameter(torch.tensor([float(alpha) for alpha in alphas]))
        self.settings = {
            "rounds": rounds,
            "envelope_weight": envelope_weight,
            "averages": averages,
            "message_widths": tuple(map(tuple, message_widths)),
        }

    def forward(self, cost: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "log_sharpness"):
            belief = mean_field(cost, message_weight=self.message_weight, **self.settings)
            return _scaled(belief, -self.log_sharpness.exp())
        scale, bias, data_weight, message_weight, later_bias, sharpness = self.alphas
        belief = mean_field(
            scale * cost + bias,
            data_weight=data_weight,
            message_weight=message_weight,
            bias=later_bias,
            **self.settings,
        )
        return _scaled(belief, -sharpness)


def _scaled(belief: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled() and (belief.requires_grad or factor.requires_grad):
        return factor * belief
    # costs are large: no copies
    return belief.mul_(factor)
