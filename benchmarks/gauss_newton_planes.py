# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Learned Gauss-Newton beside the conventional one, on coronal slices of patients that the training has not seen.

    OMP_NUM_THREADS=1 python benchmarks/gauss_newton_planes.py --data_dir DATA --weights planes.pt

takes one coronal slice of every label map of AbdomenCTCT, seven organs on pixels of 1.2 mm, trains
``LearnedGaussNewtonEstimator`` on random pairs of the training patients, unless ``--weights`` is there already, and
prints the mean Dice over all ordered pairs of the patients of validation. Features are signed root distance maps with
noise of standard deviation 1. The training is the reference's: an affine map shared by both images, five iterations at
first and ten after 100 steps, class-weighted squared errors of warped labels, AdamW whose rate falls by 1 % a step.
Other than there, kernels see nothing in constants, the weights of the smoothness are learned too, at a rate of their
own, classes are weighted by their pixels in the training slices, those that one of both slices lacks do not count, and
the gradient's norm is limited.

- **conventional**: ``GaussNewtonEstimator``, coupled, weights 150 to 70; **diagonal**: as the reference has it.
- **conventional, best weights**: the same with the weights that were best on pairs of training patients.
- **untrained**, **learned**: the network before and after its training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import fire
import numpy as np
import torch
import torch.nn.functional as F
from coronal_slices import ORGANS, Slice, read_slices

from monai_reg_ext.data import Learn2RegTask
from monai_reg_ext.data.whole_file import whole_file
from monai_reg_ext.metrics import compute_learn2reg_dice
from monai_reg_ext.networks.blocks.gauss_newton_estimator import GaussNewtonEstimator
from monai_reg_ext.networks.blocks.learned_gauss_newton_estimator import LearnedGaussNewtonEstimator
from monai_reg_ext.networks.layers import warp

WEIGHTS = (150.0, 70.0)
FACTORS = (1.0, 0.3, 0.1, 0.03)
MAX_GRADIENT = 0.1  # norm; pairs of very different slices have gradients a hundred times as large
EXPONENT = -0.35  # of the classes' pixels
SMOOTHNESS_RATE = 0.05  # of the logarithms of the weights of the regularisation


def main(
    data_dir: str,
    task: str = "AbdomenCTCT",
    features: str = "merged",
    coupled: bool = True,
    loss: str = "squares",
    steps: int = 400,
    rate: float = 1e-3,
    size: Sequence[int] = (320, 312),
    pixel_mm: float = 1.2,
    organs: Sequence[int] = ORGANS,
    pairs: int | None = None,
    seed: int = 0,
    threads: int = 1,
    weights: str = "",
) -> None:
    """Train, register, print.

    Args:
        data_dir: folder of the data sets.
        task: a Learn2Reg folder with label maps.
        features: ``merged`` or ``organs``.
        coupled: the learned form solves for all components together.
        loss: ``squares`` or ``cross_entropy``.
        steps: of the training.
        rate: of AdamW at first.
        size: pixels from left to right and from the bottom to the top.
        pixel_mm: edge of a pixel.
        organs: classes of the label maps.
        pairs: at most so many.
        seed: of everything random.
        threads: of torch.
        weights: file that the trained stencils are written to, or taken from if it is there.
    """
    torch.set_num_threads(threads)
    settings = {"organs": organs, "size": size, "pixel_mm": pixel_mm, "merged": _is_merged(features)}
    dataset = Learn2RegTask(Path(data_dir) / task, "label")
    training = read_slices([subject["label"] for subject in dataset.subjects()], **settings)
    held_out = sorted({pair[f"{side}_label"] for pair in dataset.pairs() for side in ("fixed", "moving")})
    generator = torch.Generator().manual_seed(seed)
    tested = [noisy_pair(*pair, generator) for pair in permutations(read_slices(held_out, **settings), 2)][:pairs]
    print(f"{task}: {len(training)} slices to train on, {len(tested)} pairs of {len(held_out)} others", flush=True)

    form = {"channels": training[0].features.shape[1], "axes": 2, "regularization": WEIGHTS, "coupled": coupled}
    untrained, learned = (LearnedGaussNewtonEstimator(**form) for _ in range(2))
    if weights and Path(weights).is_file():
        learned.load_state_dict(torch.load(weights, weights_only=True))
    else:
        train(learned, training, LOSSES[loss], steps, rate, seed)
        if weights:
            with whole_file(weights) as file:
                torch.save(learned.state_dict(), file)
    factor = best_factor(training, seed)
    methods = {
        "before": None,
        "conventional, diagonal": GaussNewtonEstimator(regularization=WEIGHTS, coupled=False, dense=False),
        "conventional": GaussNewtonEstimator(regularization=WEIGHTS),
        f"conventional, best weights (× {factor:g})": GaussNewtonEstimator(regularization=_scaled(factor)),
        "untrained": untrained,
        "learned": learned,
    }
    print("\n".join(["", *table(methods, tested, organs)]))


def table(
    methods: Mapping[str, GaussNewtonEstimator | None], pairs: Sequence[tuple[Slice, Slice]], organs: Sequence[int]
) -> Iterator[str]:
    """Mean Dice of every method over the pairs, and of every organ, and CPU time."""
    yield f"| method | Dice | {' | '.join(str(organ) for organ in organs)} | CPU ms a pair |"
    yield "|---" * (len(organs) + 3) + "|"
    for name, estimator in methods.items():
        start = time.process_time()
        dice = pair_dice(estimator, pairs, len(organs))
        milliseconds = 1000 * (time.process_time() - start) / len(pairs)
        of_organs = " | ".join(f"{value:.1f}" for value in np.nanmean(dice, 0))
        yield f"| {name} | {np.nanmean(dice, 1).mean():.2f} | {of_organs} | {milliseconds:.0f} |"


def train(
    network: LearnedGaussNewtonEstimator, slices: Sequence[Slice], loss: Callable, steps: int, rate: float, seed: int
) -> None:
    """Train the stencils on random ordered pairs, through the steps from features to warped labels."""
    generator = torch.Generator().manual_seed(seed)
    classes = 1 + max(int(one.label.max()) for one in slices)
    counts = sum(torch.bincount(one.label.flatten().long(), minlength=classes) for one in slices)
    class_weights = counts.clamp(min=1) ** EXPONENT
    class_weights = (class_weights / class_weights.mean()).view(1, -1, 1, 1)
    stencils, weights = network.stencils.parameters(), [network.log_regularization]
    smoothness = {"params": weights, "lr": SMOOTHNESS_RATE, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([{"params": stencils}, smoothness], lr=rate)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    losses: list[float] = []
    network.train()
    for step in range(steps):
        network.training_iterations = unrolled(step)
        fixed, moving = random_pair(slices, classes, generator)
        in_both = (fixed.label.amax((2, 3)) * moving.label.amax((2, 3)) > 0).view(1, -1, 1, 1)
        warped = warp(moving.label, network(fixed.features, moving.features))
        value = loss(warped, fixed.label, class_weights * in_both)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT)
        optimizer.step()
        scheduler.step()
        losses.append(value.item())
        if (step + 1) % 25 == 0:
            print(
                f"step {step + 1}, {network.training_iterations} iterations: loss {np.mean(losses[-25:]):.4g}",
                flush=True,
            )
    network.eval()


def unrolled(step: int) -> int:
    """Iterations that a step of the training takes: five at first, ten after a hundred."""
    return int(np.ceil(np.linspace(4.1, 10, 100)[min(step, 99)]))


def random_pair(slices: Sequence[Slice], classes: int, generator: torch.Generator) -> list[Slice]:
    """Two different slices under one random affine map, features with noise, labels as ``classes`` linear channels."""
    first, second = torch.randperm(len(slices), generator=generator)[:2].tolist()
    matrix = torch.eye(2, 3)[None] + 0.05 * torch.randn((1, 2, 3), generator=generator)
    pair = []
    for one in matched(slices[first], slices[second]):
        channels = F.one_hot(one.label[:, 0].long(), classes).movedim(-1, 1).float()
        values = torch.cat([one.features, channels], 1)
        grid = F.affine_grid(matrix, list(values.shape), align_corners=False)
        moved = F.grid_sample(values, grid, padding_mode="border", align_corners=False)
        features, label = moved.split([one.features.shape[1], classes], 1)
        pair.append(with_noise(Slice(label, features), generator))
    return pair


def matched(fixed: Slice, moving: Slice) -> list[Slice]:
    """Both slices, with nothing to be seen of organs that have a channel of their own and that one of them lacks."""
    there = torch.stack([one.features.abs().amax((2, 3), keepdim=True) > 0 for one in (fixed, moving)]).all(0)
    return [one._replace(features=one.features * there) for one in (fixed, moving)]


def with_noise(one: Slice, generator: torch.Generator) -> Slice:
    """A slice whose features have noise of standard deviation 1."""
    return Slice(one.label, one.features + torch.randn(one.features.shape, generator=generator))


def noisy_pair(fixed: Slice, moving: Slice, generator: torch.Generator) -> tuple[Slice, Slice]:
    """A pair to be measured, see :py:func:`matched` and :py:func:`with_noise`."""
    fixed, moving = (with_noise(one, generator) for one in matched(fixed, moving))
    return fixed, moving


def squares(warped: torch.Tensor, fixed: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of weighted channels."""
    return (class_weights * (warped - fixed)).square().mean()


def cross_entropy(warped: torch.Tensor, fixed: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
    """Weighted cross-entropy of channels that add up to 1."""
    return -(class_weights * fixed * warped.clamp(min=1e-6).log()).sum(1).mean()


def best_factor(slices: Sequence[Slice], seed: int, number: int = 20) -> float:
    """The factor of the conventional form's weights that is best on random pairs of these slices."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randperm(len(slices), generator=generator)[:2].tolist() for _ in range(number)]
    pairs = [noisy_pair(slices[fixed], slices[moving], generator) for fixed, moving in chosen]
    classes = max(int(one.label.max()) for one in slices)
    dice = {}
    for factor in FACTORS:
        estimator = GaussNewtonEstimator(regularization=_scaled(factor))
        dice[factor] = float(np.nanmean(pair_dice(estimator, pairs, classes), 1).mean())
    print("weights on pairs of training: " + ", ".join(f"× {key:g} {value:.2f}" for key, value in dice.items()))
    return max(dice, key=dice.get)


@torch.no_grad()
def pair_dice(estimator: GaussNewtonEstimator | None, pairs: Iterable[tuple[Slice, Slice]], organs: int) -> np.ndarray:
    """Dice of every pair and organ in percent, ``(pairs, organs)``, NaN for one that either slice lacks."""
    rows = []
    for fixed, moving in pairs:
        warped = moving.label
        if estimator is not None:
            ddf = estimator(fixed.features, moving.features)
            warped = warp(moving.label, ddf, mode="nearest", padding="zeros")
        rows.append(100 * compute_learn2reg_dice(warped, fixed.label, moving.label, range(1, organs + 1)).numpy())
    return np.stack(rows)


def _is_merged(features: str) -> bool:
    if features not in ("merged", "organs"):
        raise ValueError(f"features must be 'merged' or 'organs', got {features!r}.")
    return features == "merged"


def _scaled(factor: float) -> tuple[float, float]:
    first, last = WEIGHTS
    return factor * first, factor * last


LOSSES = {"squares": squares, "cross_entropy": cross_entropy}


if __name__ == "__main__":
    fire.Fire(main)
