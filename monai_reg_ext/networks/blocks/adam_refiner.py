# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_reg_ext.networks.layers.box_filter import box_filter, box_filter_adjoint
from monai_reg_ext.networks.layers.cells_inside import cells_inside
from monai_reg_ext.networks.layers.feature_energy import FeatureEnergy
from monai_reg_ext.networks.layers.mask_channel import add_mask_channel

__all__ = ["AdamRefiner"]

_STALL_WINDOW = 10


class AdamRefiner(nn.Module):
    r"""Instance optimisation of a displacement field on features with Adam.

    Minimises :math:`\frac1N \sum_x |M(x + s(x)) - F(x)|^2 + \lambda \cdot \text{diffusion}(s)` over the control
    values :math:`\theta` of the smoothed field :math:`s = \text{box}(\theta)`, both counted in cells. As an
    estimator it starts from no displacement.

    Args:
        grid_spacing: voxels per cell of the grid on which it works.
        iterations: Adam steps; 0 only smooths the given field.
        regularization: weight :math:`\lambda` of the squared differences between neighbouring cells.
        smooth_widths: box filters that turn control values into the field; more or wider boxes, smoother fields.
        learning_rate: Adam's step, in cells.
        tolerance: stop when ten steps lower the mean energy of the ten before by less than this fraction; ``None``
            never stops early. Makes a GPU wait for its host every ten steps.
        compat: convexAdam's borders and sampling, its factor 12 whatever the number of channels, and its result before
            the last step.
        mask_penalty: what it costs, with a mask of the moving image, to go outside; on the scale of the features'
            squared difference. Less than in :py:class:`CoupledConvexEstimator`: a mask's border is not known to the
            fraction of a cell to which features match.

    Shape:
        - fixed, moving: ``(B, F, i, j, k)`` features pooled to the cells of :py:meth:`spacing`.
        - fixed_mask, moving_mask: ``(B, 1, i, j, k)``, how much of each cell lies inside, 0 to 1. Where it is less than
          half of the fixed one, features are not compared, and the field follows the inside as smoothly as it can.
        - coarse_ddf, output: ``(B, 3, i, j, k)`` in cells; float64 with float64 features, else float32.

    Source: ConvexAdam, Adam instance optimisation.
    """

    def __init__(
        self,
        grid_spacing: int | Sequence[int] = 2,
        iterations: int = 80,
        regularization: float = 1.25,
        smooth_widths: Sequence[int] = (3, 3, 3),
        learning_rate: float = 1.0,
        tolerance: float | None = None,
        compat: bool = False,
        mask_penalty: float = 1.0,
    ) -> None:
        super().__init__()
        self.grid_spacing = ensure_tuple_rep(grid_spacing, 3)
        self.iterations = iterations
        self.regularization = regularization
        self.smooth_widths = tuple(smooth_widths)
        self.learning_rate = learning_rate
        self.tolerance = tolerance
        self.compat = compat
        self.mask_penalty = mask_penalty

    def spacing(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Voxels per cell along each axis for an image of this size."""
        return self.grid_spacing

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        coarse_ddf: torch.Tensor | None = None,
        fixed_mask: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if coarse_ddf is None:
            coarse_ddf = fixed.new_zeros((len(fixed), 3, *fixed.shape[2:]))
        dtype = torch.promote_types(fixed.dtype, torch.float32)
        # results leave the graph: the network in front is not trained through the optimisation
        with torch.inference_mode(False), torch.no_grad():
            fixed, moving, coarse_ddf = (tensor.detach().to(dtype) for tensor in (fixed, moving, coarse_ddf))
            return self._optimise(self._energy(fixed, moving, fixed_mask, moving_mask), coarse_ddf.clone())

    def _energy(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        fixed_mask: torch.Tensor | None,
        moving_mask: torch.Tensor | None,
    ) -> FeatureEnergy:
        data_weight = 12 / fixed.shape[1] if self.compat else 1.0
        cell_weight = None if fixed_mask is None else cells_inside(fixed_mask).to(fixed)
        if moving_mask is not None:
            fixed, moving = add_mask_channel(fixed, moving, fixed_mask, moving_mask, self.mask_penalty)
        return FeatureEnergy(fixed, moving, self.regularization, data_weight, self.compat, cell_weight)

    def _optimise(self, energy: FeatureEnergy, control_values: torch.Tensor) -> torch.Tensor:
        # one pass over memory; learning rate and step stay on the device
        optimizer = torch.optim.Adam([control_values], lr=self.learning_rate, fused=True)
        energies: list[torch.Tensor] = []
        field = self._field(control_values)
        for step in range(self.iterations):
            gradient, value = energy.gradient(field)
            control_values.grad = box_filter_adjoint(gradient, self.smooth_widths, self.compat)
            optimizer.step()
            if not (self.compat and step == self.iterations - 1):
                field = self._field(control_values)
            if self.tolerance is not None and self._stalls(energies, value):
                break
        return field

    def _field(self, control_values: torch.Tensor) -> torch.Tensor:
        return box_filter(control_values, self.smooth_widths, self.compat)

    def _stalls(self, energies: list[torch.Tensor], energy: torch.Tensor) -> bool:
        energies.append(energy.sum())
        if len(energies) % _STALL_WINDOW or len(energies) < 2 * _STALL_WINDOW:
            return False
        before, now = torch.stack(energies[-2 * _STALL_WINDOW :]).view(2, -1).mean(1).tolist()
        return before - now < self.tolerance * before
