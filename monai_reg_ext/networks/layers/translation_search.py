# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["TranslationSearch"]


class TranslationSearch:
    """Mean squared feature difference of a fixed grid and others for every whole translation, over their overlap.

    With weights *w*, 0 outside the field of view, a translation *d* has the overlap ``sum_x w_f(x) w_m(x + d)`` and the
    energy ``sum_x w_f(x) w_m(x + d) sum_c (F_c(x) - M_c(x + d))^2 / overlap``. All translations that leave any overlap
    are compared at the price of one Fourier transform per feature.

    Args:
        features: ``(1, C, i, j, k)`` of the fixed image.
        weight: ``(1, 1, i, j, k)``, not negative.
        moving_size: extent of the moving grids.
    """

    def __init__(self, features: torch.Tensor, weight: torch.Tensor, moving_size: Sequence[int]) -> None:
        self.first = [1 - extent for extent in features.shape[2:]]
        self.translations = [here + there - 1 for here, there in zip(features.shape[2:], moving_size, strict=True)]
        self._padded = [_quick(extent) for extent in self.translations]
        self._spectra = self._transform(features, weight).conj()

    def __call__(self, features: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Energy and overlap of all translations.

        Args:
            features: ``(1, C, i', j', k')`` of a moving image, of the moving size.
            weight: ``(1, 1, i', j', k')``.

        Returns:
            Two tensors ``translations``: entry *n* is the translation ``n + first`` in cells, with which the fixed cell
            *x* meets the moving cell ``x + n + first``. The energy is infinite where nothing overlaps.
        """
        fixed, moving = self._spectra, self._transform(features, weight)
        products = (fixed[1:-1] * moving[1:-1]).sum(0)
        squares = fixed[-1] * moving[0] + fixed[0] * moving[-1] - 2 * products
        overlap = self._back(fixed[0] * moving[0])
        # what is less than rounding lets through is nothing
        some = overlap > 1e-5 * overlap.max()
        energy = self._back(squares).clamp(min=0) / overlap
        return torch.where(some, energy, torch.inf), torch.where(some, overlap, 0)

    def _transform(self, features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Spectra of the weight, the weighted features and their weighted square, ``(C + 2, ...)``."""
        square = features.square().sum(1, keepdim=True)
        weighted = torch.cat([weight, weight * features, weight * square], 1)[0]
        return torch.fft.rfftn(weighted, s=self._padded, dim=(1, 2, 3))

    def _back(self, spectrum: torch.Tensor) -> torch.Tensor:
        circular = torch.fft.irfftn(spectrum, s=self._padded)
        rolled = circular.roll([-first for first in self.first], (0, 1, 2))
        return rolled[tuple(slice(extent) for extent in self.translations)]


def _quick(extent: int) -> int:
    """The next number that has no prime factor above 5."""
    while True:
        rest = extent
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return extent
        extent += 1
