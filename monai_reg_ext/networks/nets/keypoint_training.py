# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from monai_reg_ext.networks.layers.keypoint_distribution import KeypointDistribution
from monai_reg_ext.networks.layers.sample_points import sample_points
from monai_reg_ext.networks.layers.upsample_ddf import downsample_ddf, regrid_ddf
from monai_reg_ext.networks.nets.registration_net import RegistrationNet

__all__ = ["KeypointTraining"]


class KeypointTraining(nn.Module):
    """A registration network while it learns at keypoints: what it says there, instead of a whole field.

    The last stage of the network learns, its last refiner, or its estimator where there is none; stages before it only
    give the field from which it starts. An iterative stage (one with a method ``fields``, such as
    :py:class:`monai_reg_ext.networks.blocks.Learn2OptimiseEstimator`) answers after each of its iterations, one that
    works at points (with a method ``at_points``) once, and of any other network the field itself is read.

    Weights are those of the network that is given: save that one. ``final_widths`` and later passes have no effect on
    what is learned.

    Args:
        net: what is trained, of one pass.
        distribution: give the probabilities of all displacements at the points, for losses on them; of a stage with
            ``at_points``.

    Shape:
        - image, moving_mask, fixed_mask: see :py:class:`RegistrationNet`.
        - fixed_points: ``(B, N, 3)`` in voxels of the image. For rows that are not finite the result means nothing.
        - initial_ddf: ``(B, 3, I, J, K)`` in voxels, from which an iterative stage starts instead of what stages before
          it find; optional.
        - output: in training mode displacements at the points after every iteration ``(B, T, N, 3)`` in voxels, or a
          :py:class:`KeypointDistribution` in voxels; in evaluation mode what the network gives.

    Raises:
        ValueError: when there are no points in training mode.
        TypeError: when the last stage cannot give a distribution, or cannot start from a field.
    """

    def __init__(self, net: RegistrationNet, distribution: bool = False) -> None:
        super().__init__()
        self.net = net
        self.distribution = distribution
        if distribution and not hasattr(self._learner, "at_points"):
            raise TypeError(
                f"{type(self._learner).__name__} knows no probabilities at points: it needs a method at_points. Set "
                "distribution to false, or choose another estimator, e.g. VoxelMorphPlusPlusEstimator."
            )

    def forward(
        self,
        image: torch.Tensor,
        moving_mask: torch.Tensor | None = None,
        fixed_mask: torch.Tensor | None = None,
        fixed_points: torch.Tensor | None = None,
        initial_ddf: torch.Tensor | None = None,
    ) -> torch.Tensor | KeypointDistribution:
        if not self.training:
            return self.net(image, moving_mask, fixed_mask)
        if fixed_points is None:
            raise ValueError("KeypointTraining needs fixed_points (B, N, 3) in voxels in training mode.")
        if initial_ddf is not None and not hasattr(self._learner, "fields"):
            raise TypeError(f"{type(self._learner).__name__} starts from no field: leave out initial_ddf.")
        points = torch.nan_to_num(torch.as_tensor(fixed_points).as_subclass(torch.Tensor).float(), 0.0, 0.0, 0.0)
        moving, fixed = image.chunk(2, dim=1)
        sides = self.net._sides(moving, fixed, moving_mask, fixed_mask)
        if hasattr(self._learner, "at_points"):
            return self._at_points(sides, points)
        if hasattr(self._learner, "fields"):
            return self._after_iterations(sides, points, initial_ddf)
        return sample_points(self.net(image, moving_mask, fixed_mask), points).unsqueeze(1)

    @property
    def _learner(self) -> nn.Module:
        return self.net.refiners[-1] if len(self.net.refiners) > 0 else self.net.estimator

    def _at_points(self, sides: tuple, points: torch.Tensor) -> torch.Tensor | KeypointDistribution:
        (view,) = self.net._views(*sides, [self._learner])
        spacing = points.new_tensor(view.spacing)
        origin = (spacing - 1) / 2
        in_cells = view.shown_to(self._learner.at_points, (points - origin) / spacing)
        found = in_cells.scaled(view.spacing, origin.tolist())
        return found if self.distribution else found.mean().unsqueeze(1)

    def _after_iterations(self, sides: tuple, points: torch.Tensor, initial_ddf: torch.Tensor | None) -> torch.Tensor:
        stages = [self._learner] if initial_ddf is not None else [self.net.estimator, *self.net.refiners]
        *before, view = self.net._views(*sides, stages)
        if initial_ddf is None:
            start = self._found(before, view.spacing, sides[0].image.shape[2:])
        else:
            ddf = torch.as_tensor(initial_ddf).as_subclass(torch.Tensor)
            start = downsample_ddf(ddf.float(), view.spacing, self.net.compat)
        _, *fields = view.shown_to(self._learner.fields, start)
        if hasattr(self._learner, "at_features"):
            fields = [self._learner.at_features(field, view.fixed.shape[2:]) for field in fields]
        spacing = points.new_tensor(view.spacing)
        places = (points - (spacing - 1) / 2) / spacing
        return torch.stack([sample_points(field, places) * spacing for field in fields], 1)

    @torch.no_grad()
    def _found(self, views: list, spacing: tuple[int, ...], size: Sequence[int]) -> torch.Tensor | None:
        """What the stages before the last one find, on the last one's grid."""
        if not views:
            return None
        coarse_ddf = self.net._refined(*self.net._estimated(views[0], self.net.estimator), views, size)
        return regrid_ddf(coarse_ddf, views[-1].spacing, spacing, size, self.net.compat)
