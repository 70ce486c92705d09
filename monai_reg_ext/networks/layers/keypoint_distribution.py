# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from monai_reg_ext.networks.layers.nearest_points import nearest_points
from monai_reg_ext.networks.layers.sample_points import sample_points

__all__ = ["KeypointDistribution"]

_NEIGHBOURS = 7


class KeypointDistribution(NamedTuple):
    """How probable every displacement is at scattered points; asked as a :py:class:`DisplacementDistribution`.

    - ``probabilities``: ``(B, N, L)``, their sum over the displacements is 1.
    - ``points``: ``(B, N, 3)``, where they are.
    - ``displacements``: ``(L, 3)``, the same for all points.

    Points and displacements count in cells of the features where an estimator gives them, in voxels of the images where
    :py:class:`monai_reg_ext.networks.nets.KeypointTraining` does.
    """

    probabilities: torch.Tensor
    points: torch.Tensor
    displacements: torch.Tensor

    def mean(self) -> torch.Tensor:
        """``(B, N, 3)`` expected displacement of every point."""
        # bfloat16 has too few digits for the sum of a thousand displacements
        with torch.autocast(self.points.device.type, enabled=False):
            return self.probabilities.to(self.displacements.dtype) @ self.displacements

    def seen(self, values: torch.Tensor) -> torch.Tensor:
        """``(B, C, N)`` what the points expect to see of ``values (B, C, I, J, K)``, in whose voxels all counts.

        With gradients to the probabilities. Memory: *C L* values for every point.
        """
        targets = (self.points.detach().unsqueeze(2) + self.displacements).flatten(1, 2)
        samples = sample_points(values.detach().float(), targets).unflatten(1, self.probabilities.shape[1:])
        with torch.autocast(self.points.device.type, enabled=False):
            return torch.einsum("bnl,bnlc->bcn", self.probabilities.float(), samples)

    def here(self, values: torch.Tensor) -> torch.Tensor:
        """``(B, C, N)`` values at the points themselves."""
        return sample_points(values, self.points).mT

    def roughness(self) -> torch.Tensor:
        """Mean squared difference of a point's expected displacement from those of its seven nearest neighbours.

        In steps between the displacements; a scalar.
        """
        in_steps = self.mean() / self._step()
        nearest = [nearest_points(points, _NEIGHBOURS + 1)[:, 1:] for points in self.points]
        of_neighbours = torch.stack([one[of] for one, of in zip(in_steps, nearest, strict=True)])
        return (in_steps.unsqueeze(2) - of_neighbours).square().mean()

    def scaled(self, factor: Sequence[float], origin: Sequence[float] = (0.0, 0.0, 0.0)) -> KeypointDistribution:
        """The same in another unit: points ``factor * x + origin``, displacements ``factor * d``."""
        scale, start = (torch.tensor(values).to(self.points) for values in (factor, origin))
        return self._replace(points=scale * self.points + start, displacements=scale * self.displacements)

    def float(self) -> KeypointDistribution:
        """The same in float32, as a tensor's ``float()``."""
        return KeypointDistribution(*(part.float() for part in self))

    def _step(self) -> torch.Tensor:
        """From one displacement to the next along each axis, 1 where there is but one."""
        steps = [axis.unique().diff()[:1] for axis in self.displacements.T]
        return torch.stack(
            [
                step[0] if len(step) else torch.ones_like(axis[0])
                for step, axis in zip(steps, self.displacements.T, strict=True)
            ]
        )
