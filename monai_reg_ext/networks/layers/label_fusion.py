# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from monai_reg_ext.networks.layers.box_filter import box_filter

__all__ = ["fuse_labels", "local_agreement"]

LEAST = 1e-4  # weight of who does not agree


def fuse_labels(labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """One label map out of several of the same place: in every voxel the label with the greatest sum of weights.

    Without weights this is the vote of the majority, as ``monai.transforms.VoteEnsemble`` counts it on one-hot maps,
    but label by label: memory does not grow with the number of labels, which may be any whole numbers.

    Args:
        labels: ``(N, *size)``, whole numbers, one map per voter.
        weights: ``(N, *size)``, not negative, how much each voter counts in each voxel; ``None`` lets all count alike.

    Returns:
        ``(*size)`` in the dtype of the labels. Where sums are equal the smallest label is taken. Memory: two float32
        maps and one stack of masks.

    Raises:
        ValueError: when there is no map, or the weights have another shape, are negative or not finite.
    """
    if labels.ndim == 0 or len(labels) == 0:
        raise ValueError(f"labels need at least one map, (N, *size), got shape {tuple(labels.shape)}.")
    if weights is not None:
        _check_weights(weights, labels)
    fused = torch.zeros_like(labels[0])
    greatest = torch.full(fused.shape, -1.0, device=labels.device)
    for label in labels.unique():
        votes = labels == label
        total = (votes if weights is None else votes * weights).sum(0, dtype=torch.float32)
        fused = torch.where(total > greatest, label, fused)
        greatest = torch.maximum(greatest, total)
    return fused


def local_agreement(fixed: torch.Tensor, warped: torch.Tensor, width: int = 9, gain: float = 4.0) -> torch.Tensor:
    """How well warped images agree with the fixed one around each voxel, as weights for :py:func:`fuse_labels`.

    It is the correlation coefficient of both windows to the power of ``gain``, so that brightness and contrast do not
    matter. Where both do not correlate, or one of them is flat, 1e-4 remains: where nobody agrees the majority decides.

    Args:
        fixed: ``(I, J, K)``.
        warped: ``(N, I, J, K)`` on the fixed grid.
        width: extent of the window in voxels, odd.
        gain: above 1 the better ones count more than in proportion, at 0 all alike where they correlate.

    Returns:
        ``(N, I, J, K)`` float32 in ``1e-4 .. 1``. Memory: six volumes beside the result, one image at a time.

    Source: Artaechevarria, Muñoz-Barrutia, Ortiz-de-Solórzano, "Combination Strategies in Multi-Atlas Image
    Segmentation: Application to Brain MR Data", 2009, section II (local weighted voting).
    """
    fixed, fixed_deviation = _centred(fixed[None, None], width)
    agreements = [_correlation(fixed, fixed_deviation, image[None, None], width) for image in warped]
    return torch.cat(agreements).clamp(0, 1).pow(gain).clamp(min=LEAST)[:, 0]


def _correlation(fixed: torch.Tensor, fixed_deviation: torch.Tensor, image: torch.Tensor, width: int) -> torch.Tensor:
    image, deviation = _centred(image, width)
    covariance = box_filter(fixed * image, (width,)) - box_filter(fixed, (width,)) * box_filter(image, (width,))
    scale = fixed_deviation * deviation
    return torch.where(scale > 0, covariance / scale.clamp(min=torch.finfo(torch.float32).tiny), 0.0)


def _centred(image: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image around its mean, so that moments do not cancel, and its local standard deviation, 0 where it is flat."""
    image = image.float() - image.float().mean()
    variance = box_filter(image.square(), (width,)) - box_filter(image, (width,)).square()
    rounding = 1e-6 * image.square().mean()
    return image, torch.where(variance > rounding, variance, 0.0).sqrt()


def _check_weights(weights: torch.Tensor, labels: torch.Tensor) -> None:
    if weights.shape != labels.shape:
        raise ValueError(f"weights need the shape of the labels, {tuple(labels.shape)}, got {tuple(weights.shape)}.")
    if not (torch.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("weights must be finite and not negative, so that more weight means more trust.")
