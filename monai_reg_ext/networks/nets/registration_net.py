# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from monai.utils import convert_to_tensor
from torch import nn

from monai_reg_ext.networks.blocks.feature_block import as_feature_block
from monai_reg_ext.networks.layers.box_filter import box_filter
from monai_reg_ext.networks.layers.compose_ddf import compose_ddf
from monai_reg_ext.networks.layers.displacement_distribution import DisplacementDistribution, field_on_cells
from monai_reg_ext.networks.layers.inverse_consistency import make_inverse_consistent
from monai_reg_ext.networks.layers.planar_distribution import PlanarDistribution
from monai_reg_ext.networks.layers.pool_to_grid import pool_to_grid
from monai_reg_ext.networks.layers.upsample_covariance import upsample_covariance
from monai_reg_ext.networks.layers.upsample_ddf import regrid_ddf, upsample_ddf
from monai_reg_ext.networks.layers.warp import warp

__all__ = ["RegistrationNet"]


class RegistrationNet(nn.Module):
    """The skeleton that all methods share: features, estimator, refiner, passes.

    Estimator and refiner work on control grids of their own and know nothing else: they get the features averaged over
    the cells of ``spacing(size)``, voxels per cell for an image of that size, and count displacements in these cells.
    Where masks are given they get ``fixed_mask`` and ``moving_mask`` besides, the share of each cell that lies inside.

    Args:
        features: what is compared; a :py:class:`FeatureBlock`, which may pool without all voxels' features at once, or
            any module ``(B, C, I, J, K) -> (B, F, I, J, K)``.
        estimator: where things went, ``(fixed, moving features) -> coarse_ddf``; with a method ``both`` that also
            returns the coarse field of the opposite direction, both directions take one search instead of two. One for
            all passes, or one for each.
        refiner: polish, ``(fixed, moving features, coarse_ddf) -> coarse_ddf``; one, several one after the other, or
            none. One with an argument ``distribution`` also gets what the estimator's method ``distribution`` says of
            every displacement; one without a method ``spacing`` works on the estimator's grid.
        passes: how often to register: later passes see the moving image warped so far, and their fields are composed.
            By default once, or once for each estimator.
        final_widths: box filters over the field of each pass at full resolution; none by default.
        compat: borders and change of grids as convexAdam has them: dropped tails, see :py:func:`pool_to_grid`, and
            stretched fields, see :py:func:`upsample_ddf`.
        symmetric: register in both directions and return both fields. Fixed and moving then play the same part:
            exchanging them exchanges the fields.
        consistency: rounds that bring the two fields of a symmetric registration together after each pass, see
            :py:func:`make_inverse_consistent`.
        uncertainty: give the covariance of the field besides; needs an estimator with a method ``covariance``, see
            :py:meth:`covariance`.
        uncertainty_features: what :py:meth:`covariance` compares, of the images without preparation; ``features`` by
            default. Learned features say little of what their loss did not ask for: MIND-SSC tells more.
        preparation: what is made of each image once, before all passes, ``(B, C, I, J, K) -> (B, C', I, J, K)``; later
            passes warp its result. For example :py:class:`SegmentationChannel`: a label map is moved, where a
            segmentation of the warped image would be another one.
        probabilistic_training: in training mode give the :py:meth:`distribution` of the first pass in place of the
            field, for losses on probabilities.

    Shape:
        - image: ``(B, 2C, I, J, K)``, the channels of the moving image, then those of the fixed one.
        - moving_mask, fixed_mask: ``(B, 1, I, J, K)``, not 0 inside; optional. What lies outside is neither matched nor
          smoothed into the inside. Intensities there still reach the features beside the mask's border unless they are
          replaced before, see :py:class:`monai_reg_ext.transforms.FillOutsideMask`.
        - output: ddf ``(B, 3, I, J, K)`` float32 in voxels; ``warped(x) = moving(x + ddf(x))``. With ``symmetric``
          ``(B, 6, I, J, K)``: behind it the ddf of the opposite direction, ``warped(x) = fixed(x + inverse_ddf(x))``,
          in voxels of the same grid. With ``uncertainty`` six more channels behind the field or fields, ``(B, 9, I, J,
          K)`` or ``(B, 12, I, J, K)``: the covariance of the first field.

    Raises:
        ValueError: when the number of channels is odd, a mask is empty or on another grid, or an estimator's or
            refiner's field is not on its grid.
        TypeError: when there are masks and the estimator or refiner does not take them; when the estimator lacks what
            is asked of it, a covariance or a distribution.
    """

    def __init__(
        self,
        features: nn.Module,
        estimator: nn.Module | Sequence[nn.Module],
        refiner: nn.Module | Sequence[nn.Module] | None = None,
        passes: int | None = None,
        final_widths: Sequence[int] = (),
        compat: bool = False,
        symmetric: bool = False,
        consistency: int = 5,
        uncertainty: bool = False,
        uncertainty_features: nn.Module | None = None,
        preparation: nn.Module | None = None,
        probabilistic_training: bool = False,
    ) -> None:
        super().__init__()
        estimators = _one_per_pass(estimator, passes)
        self.features = features
        self.estimator = estimators[0]
        # one for all passes has its weights here once
        self.later_estimators = nn.ModuleList(() if isinstance(estimator, nn.Module) else estimators[1:])
        self.refiners = nn.ModuleList([refiner] if isinstance(refiner, nn.Module) else refiner or ())
        self.passes = len(estimators)
        self.final_widths = tuple(final_widths)
        self.compat = compat
        self.symmetric = symmetric
        self.consistency = consistency
        self.uncertainty = uncertainty
        self.uncertainty_features = uncertainty_features
        self.preparation = nn.Identity() if preparation is None else preparation
        self.probabilistic_training = probabilistic_training
        if uncertainty:
            _check_has(self._estimators[-1], "covariance")
        if probabilistic_training:
            _check_has(self.estimator, "distribution")
        if any(_takes_distribution(refiner) for refiner in self.refiners):
            for one in estimators:
                _check_has(one, "distribution")

    def forward(
        self, image: torch.Tensor, moving_mask: torch.Tensor | None = None, fixed_mask: torch.Tensor | None = None
    ) -> torch.Tensor | DisplacementDistribution | PlanarDistribution:
        if image.dim() != 5 or image.shape[1] % 2:
            raise ValueError(
                "RegistrationNet needs moving and fixed side by side, (B, 2C, I, J, K), "
                f"got shape {tuple(image.shape)}. Concatenate them along the channels."
            )
        moving, fixed = image.chunk(2, dim=1)
        masks = moving_mask, fixed_mask
        if self.probabilistic_training and self.training:
            return self.distribution(moving, fixed, *masks)
        if self.symmetric:
            output = self.register_both(moving, fixed, *masks)
        else:
            output = (self.register(moving, fixed, *masks),)
        if self.uncertainty:
            output = (*output, self.covariance(moving, fixed, output[0], *masks))
        return torch.cat(output, 1) if len(output) > 1 else output[0]

    def register(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        moving_mask: torch.Tensor | None = None,
        fixed_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Field ``(B, 3, I, J, K)`` that warps ``moving`` onto ``fixed``; both ``(B, C, I, J, K)`` on one grid."""
        if self.symmetric:
            return self.register_both(moving, fixed, moving_mask, fixed_mask)[0]
        moving_side, fixed_side = self._sides(moving, fixed, moving_mask, fixed_mask)
        ddf = self._register_once(moving_side, fixed_side, self.estimator)
        for estimator in self._estimators[1:]:
            ddf = self._another_pass(ddf, moving_side, fixed_side, estimator)
        return ddf

    def register_both(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        moving_mask: torch.Tensor | None = None,
        fixed_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The field that warps ``moving`` onto ``fixed``, and its inverse, which warps ``fixed`` onto ``moving``."""
        moving_side, fixed_side = self._sides(moving, fixed, moving_mask, fixed_mask)
        ddf, inverse_ddf = self._register_both_once(moving_side, fixed_side)
        for estimator in self._estimators[1:]:
            ddf = self._another_pass(ddf, moving_side, fixed_side, estimator)
            inverse_ddf = self._another_pass(inverse_ddf, fixed_side, moving_side, estimator)
            ddf, inverse_ddf = make_inverse_consistent(ddf, inverse_ddf, self.consistency, self.compat)
        return ddf, inverse_ddf

    def distribution(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        moving_mask: torch.Tensor | None = None,
        fixed_mask: torch.Tensor | None = None,
    ) -> DisplacementDistribution | PlanarDistribution:
        """What the estimator of the first pass says of every displacement, in voxels of the images.

        Raises:
            TypeError: when the estimator has no distribution.
        """
        _check_has(self.estimator, "distribution")
        sides = self._sides(moving, fixed, moving_mask, fixed_mask)
        return self._distribution(*self._views(*sides, [self.estimator]))

    @torch.no_grad()
    def covariance(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        ddf: torch.Tensor,
        moving_mask: torch.Tensor | None = None,
        fixed_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """How far a field may be off: the covariance of what is left to find once it has warped the moving image.

        The estimator looks once more, at the registered pair: its ``covariance(fixed, moving features, refined)``, in
        cells squared. It sees what the features do not tell (noise, edges along which everything looks the same, places
        without contrast), not what they tell wrongly.

        Args:
            moving: ``(B, C, I, J, K)``.
            fixed: ``(B, C, I, J, K)`` on the same grid.
            ddf: ``(B, 3, I, J, K)`` in voxels, the field that warps ``moving`` onto ``fixed``, of any origin.
            moving_mask: ``(B, 1, I, J, K)``, not 0 inside.
            fixed_mask: ``(B, 1, I, J, K)``, not 0 inside.

        Returns:
            ``(B, 6, I, J, K)`` float32 in voxels squared, entries 00, 01, 02, 11, 12, 22. No gradients.

        Raises:
            TypeError: when the estimator has no covariance.
        """
        estimator = self._estimators[-1]
        _check_has(estimator, "covariance")
        if self.uncertainty_features is not None:
            look = RegistrationNet(self.uncertainty_features, estimator, list(self.refiners), compat=self.compat)
            return look.covariance(moving, fixed, ddf, moving_mask, fixed_mask)
        moving_side, fixed_side = self._sides(moving, fixed, moving_mask, fixed_mask)
        (view,) = self._views(self._warped(moving_side, ddf), fixed_side, [estimator])
        coarse = view.shown_to(estimator.covariance, len(self.refiners) > 0).float()
        return upsample_covariance(coarse, view.spacing, fixed.shape[2:], self.compat)

    @property
    def _estimators(self) -> list[nn.Module]:
        """One for each pass."""
        later = list(self.later_estimators) or [self.estimator] * (self.passes - 1)
        return [self.estimator, *later]

    def _sides(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        moving_mask: torch.Tensor | None,
        fixed_mask: torch.Tensor | None,
    ) -> tuple[_Side, _Side]:
        moving, fixed = convert_to_tensor((moving, fixed), track_meta=False)
        if moving.shape != fixed.shape:
            raise ValueError(
                f"RegistrationNet needs fixed and moving on one grid: fixed has shape {tuple(fixed.shape)}, moving "
                f"{tuple(moving.shape)}. Resample first, e.g. with ResampleToFixedd."
            )
        masks = _mask(moving_mask, moving, "moving"), _mask(fixed_mask, fixed, "fixed")
        return _Side(self.preparation(moving), masks[0]), _Side(self.preparation(fixed), masks[1])

    def _another_pass(self, ddf: torch.Tensor, moving: _Side, fixed: _Side, estimator: nn.Module) -> torch.Tensor:
        return compose_ddf(ddf, self._register_once(self._warped(moving, ddf), fixed, estimator))

    def _warped(self, side: _Side, ddf: torch.Tensor) -> _Side:
        mask = side.mask if side.mask is None else warp(side.mask, ddf, mode="nearest")
        return _Side(as_feature_block(self.features).warped(side.image, ddf), mask)

    def _register_once(self, moving: _Side, fixed: _Side, estimator: nn.Module) -> torch.Tensor:
        views = self._views(moving, fixed, [estimator, *self.refiners])
        return self._registered(views, estimator, fixed.image.shape[2:])

    def _registered(self, views: list[_View], estimator: nn.Module, size: Sequence[int]) -> torch.Tensor:
        coarse_ddf = self._refined(*self._estimated(views[0], estimator), views, size)
        return self._at_full_size(coarse_ddf, views, size)

    def _register_both_once(self, moving: _Side, fixed: _Side) -> tuple[torch.Tensor, torch.Tensor]:
        size = fixed.image.shape[2:]
        views = self._views(moving, fixed, [self.estimator, *self.refiners])
        opposite = [view.swapped() for view in views]
        if hasattr(self.estimator, "both"):
            found = [(coarse_ddf, {}) for coarse_ddf in views[0].shown_to(self.estimator.both)]
        else:
            found = [self._estimated(of_direction[0], self.estimator) for of_direction in (views, opposite)]
        forward, backward = (self._refined(*one, of, size) for one, of in zip(found, (views, opposite), strict=True))
        forward, backward = make_inverse_consistent(forward, backward, self.consistency, self.compat)
        return self._at_full_size(forward, views, size), self._at_full_size(backward, views, size)

    def _views(self, moving: _Side, fixed: _Side, stages: Sequence[nn.Module]) -> list[_View]:
        """What each stage sees of the pair."""
        size = fixed.image.shape[2:]
        spacings = [tuple((stage if hasattr(stage, "spacing") else stages[0]).spacing(size)) for stage in stages]
        # two stages on one grid share their features
        grids = list(dict.fromkeys(spacings))
        of_pair = as_feature_block(self.features).pooled_pair(fixed.image, moving.image, grids, self.compat)
        views = {
            spacing: _View(spacing, *features, *(side.mask_on(spacing, self.compat) for side in (fixed, moving)))
            for spacing, *features in zip(grids, *of_pair, strict=True)
        }
        return [views[spacing] for spacing in spacings]

    def _distribution(self, view: _View) -> DisplacementDistribution | PlanarDistribution:
        """In voxels of the images."""
        return view.shown_to(self.estimator.distribution).scaled(view.spacing, [(n - 1) / 2 for n in view.spacing])

    def _estimated(self, view: _View, estimator: nn.Module) -> tuple[torch.Tensor, dict[str, tuple]]:
        """The coarse field, and the distribution behind it where a refiner takes it."""
        if not any(_takes_distribution(refiner) for refiner in self.refiners):
            return view.shown_to(estimator), {}
        distribution = view.shown_to(estimator.distribution)
        coarse_ddf = field_on_cells(distribution.mean(), distribution.grid, view.fixed.shape[2:])
        return coarse_ddf, {"distribution": distribution}

    def _refined(
        self, coarse_ddf: torch.Tensor, found: dict[str, tuple], views: list[_View], size: Sequence[int]
    ) -> torch.Tensor:
        coarse_ddf = coarse_ddf.float()
        for refiner, before, view in zip(self.refiners, views, views[1:], strict=False):
            # to change the grid smooths a little, also where the new one is as fine
            if hasattr(refiner, "spacing") or before.spacing != view.spacing:
                coarse_ddf = regrid_ddf(coarse_ddf, before.spacing, view.spacing, size, self.compat)
            taken = found if _takes_distribution(refiner) else {}
            coarse_ddf = view.shown_to(refiner, coarse_ddf, **taken).float()
        return coarse_ddf

    def _at_full_size(self, coarse_ddf: torch.Tensor, views: list[_View], size: Sequence[int]) -> torch.Tensor:
        ddf = upsample_ddf(coarse_ddf, views[-1].spacing, size, self.compat)
        return box_filter(ddf, self.final_widths, self.compat)


class _Side(NamedTuple):
    """One image of a pair ``(B, C, I, J, K)`` and its mask ``(B, 1, I, J, K)``."""

    image: torch.Tensor
    mask: torch.Tensor | None

    def mask_on(self, spacing: Sequence[int], compat: bool) -> torch.Tensor | None:
        return self.mask if self.mask is None else pool_to_grid(self.mask.float(), spacing, compat)


class _View(NamedTuple):
    """What a stage sees of a pair on its control grid."""

    spacing: tuple[int, ...]
    fixed: torch.Tensor
    moving: torch.Tensor
    fixed_mask: torch.Tensor | None
    moving_mask: torch.Tensor | None

    def swapped(self) -> _View:
        return _View(self.spacing, self.moving, self.fixed, self.moving_mask, self.fixed_mask)

    def shown_to(self, stage: Callable, *more: torch.Tensor | bool, **found: tuple) -> Any:
        if self.fixed_mask is None and self.moving_mask is None:
            return stage(self.fixed, self.moving, *more, **found)
        _check_takes_masks(stage)
        return stage(self.fixed, self.moving, *more, **found, fixed_mask=self.fixed_mask, moving_mask=self.moving_mask)


_ABSENT = {
    "covariance": "knows no uncertainty: it needs a method covariance(fixed, moving, refined). Set uncertainty to "
    "false, or choose another estimator, e.g. CoupledConvexEstimator.",
    "distribution": "knows no probabilities: it needs a method distribution(fixed, moving). Choose another estimator, "
    "e.g. MeanFieldEstimator, or do without what works on probabilities.",
}


def _check_has(estimator: nn.Module, method: str) -> None:
    if not hasattr(estimator, method):
        raise TypeError(f"{type(estimator).__name__} {_ABSENT[method]}")


def _one_per_pass(estimator: nn.Module | Sequence[nn.Module], passes: int | None) -> list[nn.Module]:
    if isinstance(estimator, nn.Module):
        passes = 1 if passes is None else passes
        if passes < 1:
            raise ValueError(f"RegistrationNet needs passes >= 1, got {passes}.")
        return [estimator] * passes
    if not estimator or passes not in (None, len(estimator)):
        raise ValueError(
            f"RegistrationNet needs one estimator for each pass, got {len(estimator)} for passes={passes}. Leave "
            "passes out, or give one estimator for all."
        )
    return list(estimator)


def _takes_distribution(refiner: nn.Module) -> bool:
    return "distribution" in inspect.signature(refiner.forward).parameters


def _check_takes_masks(stage: Callable) -> None:
    parameters = inspect.signature(getattr(stage, "forward", stage)).parameters
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    if not anything and not {"fixed_mask", "moving_mask"} <= parameters.keys():
        module = getattr(stage, "__self__", stage)
        raise TypeError(
            f"{type(module).__name__} takes no masks: to use them it needs the arguments fixed_mask and moving_mask. "
            "Register without masks, or choose another estimator or refiner."
        )


def _mask(mask: torch.Tensor | None, image: torch.Tensor, name: str) -> torch.Tensor | None:
    if mask is None:
        return None
    mask = convert_to_tensor(mask, track_meta=False, device=image.device)
    needed = (len(image), 1, *image.shape[2:])
    if mask.shape != needed:
        raise ValueError(f"RegistrationNet needs a {name}_mask of shape {needed}, got {tuple(mask.shape)}.")
    mask = mask != 0
    if not mask.flatten(1).any(1).all():
        raise ValueError(
            f"RegistrationNet got a {name}_mask without any voxel inside. Do mask and image belong together?"
        )
    return mask
