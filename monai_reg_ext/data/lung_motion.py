# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from monai_reg_ext.data.breathing_patients import BreathingPatient
from monai_reg_ext.networks.layers.jacobian import jacobian_determinant

__all__ = ["LungMotion"]

NODES = (7, 7, 8)  # B-splines along right, anterior, superior
REACH = 1.2  # beyond it, in halves of the lungs, a motion goes on as it is there
STIFFNESS = 3e-5
OUTLIER = 0.04  # residual, in halves of the lungs, from which on a correspondence loses weight
ROUNDS = 3
EXTENT = (0.01, 0.99)  # quantiles of the places in a lung that count as its ends


class LungMotion:
    """A smooth motion of lungs, in coordinates that fit any lungs: cubic B-splines, twice differentiable.

    Positions and displacements count in halves of the lungs' extent along right, anterior and superior: the centre of
    their box is 0, its faces are at -1 and 1.

    Args:
        coefficients: ``(3, 7, 7, 8)`` float64, of the B-splines.
        name: whose motion.
    """

    def __init__(self, coefficients: torch.Tensor, name: str = "motion") -> None:
        if coefficients.shape != (3, *NODES):
            raise ValueError(f"a motion has coefficients {(3, *NODES)}, got {tuple(coefficients.shape)}.")
        self.coefficients = coefficients
        self.name = name

    @classmethod
    def fit(cls, patient: BreathingPatient) -> LungMotion:
        """Motion that leads from places of the exhaled lungs to those of the inhaled ones.

        Least squares with a price on bending; correspondences far off weigh less (Huber).

        Raises:
            ValueError: for fewer than four correspondences.
        """
        if len(patient.exhale) < 4 or patient.exhale.shape != patient.inhale.shape:
            raise ValueError(
                f"{patient.name}: a motion needs at least four corresponding places, got {len(patient.exhale)} and "
                f"{len(patient.inhale)}."
            )
        first, last = patient.exhale.quantile(torch.tensor(EXTENT, dtype=torch.float64), dim=0)
        half = (last - first) / 2
        position, displacement = (patient.exhale - first) / half - 1, (patient.inhale - patient.exhale) / half
        design = _at_points(position)
        weight = torch.ones(len(position), dtype=torch.float64)
        for _ in range(ROUNDS):
            weighted = design * (weight / weight.sum())[:, None]
            coefficients = torch.linalg.solve(weighted.T @ design + STIFFNESS * _bending(), weighted.T @ displacement)
            residual = (design @ coefficients - displacement).norm(dim=1)
            weight = (OUTLIER / residual.clamp(min=1e-9)).clamp(max=1)
        return cls(coefficients.T.reshape(3, *NODES), patient.name)

    def at(self, position: torch.Tensor) -> torch.Tensor:
        """Displacements ``(N, 3)`` float64 at positions ``(N, 3)``."""
        return _at_points(position.double()) @ self.coefficients.flatten(1).T

    def on_grid(self, positions: Sequence[torch.Tensor]) -> torch.Tensor:
        """Displacements ``(3, i, j, k)`` float64 on the mesh of positions along each of the three axes."""
        field = self.coefficients
        for axis in positions:
            # the contracted axis comes back as the last one: after three turns all are in order
            field = torch.tensordot(field, _splines(axis.double(), field.shape[1]), dims=([1], [1]))
        return field

    def mirrored(self) -> LungMotion:
        """The motion of the same lungs seen in a mirror, left for right."""
        flipped = self.coefficients.flip(1) * torch.tensor([-1.0, 1, 1]).double().view(3, 1, 1, 1)
        return LungMotion(flipped, f"{self.name}_mirrored")

    def smallest_determinant(self) -> float:
        """Smallest Jacobian determinant in and around the lungs; above 0 nothing folds."""
        axis = torch.linspace(-REACH, REACH, 33, dtype=torch.float64)
        field = self.on_grid([axis] * 3) / (axis[1] - axis[0])
        return float(jacobian_determinant(field[None]).min())

    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the lower and upper faces of the box come to lie on average, ``(3,)`` each."""
        axis, ends = torch.linspace(-0.5, 0.5, 7, dtype=torch.float64), torch.tensor([-1.0, 1.0], dtype=torch.float64)
        moved = []
        for normal in range(3):
            positions = [ends if other == normal else axis for other in range(3)]
            faces = self.on_grid(positions)[normal].movedim(normal, 0).flatten(1)
            moved.append(ends + faces.mean(1))
        lower, upper = torch.stack(moved, 1)
        return lower, upper


def _splines(position: torch.Tensor, nodes: int) -> torch.Tensor:
    """Values ``(N, nodes)`` of the cubic B-splines along one axis."""
    knot = (position.clamp(-REACH, REACH) + REACH) * ((nodes - 3) / (2 * REACH)) + 1
    distance = (knot[:, None] - torch.arange(nodes, dtype=torch.float64)).abs()
    near = 2 / 3 - distance.square() + distance**3 / 2
    return torch.where(distance < 1, near, (2 - distance).clamp(min=0) ** 3 / 6)


def _at_points(position: torch.Tensor) -> torch.Tensor:
    """Values ``(N, 7 * 7 * 8)`` of their products."""
    right, anterior, superior = (_splines(position[:, axis], NODES[axis]) for axis in range(3))
    return torch.einsum("ni,nj,nk->nijk", right, anterior, superior).flatten(1)


@lru_cache(maxsize=1)
def _bending() -> torch.Tensor:
    """Squared second differences of the coefficients, along single axes and mixed, as a matrix."""
    units = [torch.eye(nodes, dtype=torch.float64) for nodes in NODES]
    total = torch.zeros(1, dtype=torch.float64)
    for first in range(3):
        for second in range(first, 3):
            factors = list(units)
            for axis in {first, second}:
                difference = units[axis].diff(n=2 if first == second else 1, dim=0)
                factors[axis] = difference.T @ difference
            share = torch.kron(torch.kron(factors[0], factors[1]), factors[2])
            total = total + (1 if first == second else 2) * share
    return total
