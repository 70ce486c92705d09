# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""Whether errors are as large as the predicted standard deviation says, on scans with a known displacement.

    OMP_NUM_THREADS=1 python benchmarks/calibration.py --data_dir DATA --task HippocampusMR --output calibration.svg

Every pair is semi-synthetic: a training scan, and the same scan deformed by a smooth random field, both with a contrast
and noise of their own. A bundle registers them and predicts at every voxel how long its error is likely to be. The
table and the plot put voxels of similar prediction together and set the root mean square of the predicted standard
deviations against that of the errors, inside the body. Where a prediction is calibrated both are equal.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fire
import matplotlib.pyplot as plt
import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import set_determinism
from scipy.stats import spearmanr

from monai_reg_ext.data import Learn2RegTask
from monai_reg_ext.data.sine_displacement import SineDisplacement
from monai_reg_ext.networks.layers import warp
from monai_reg_ext.transforms import NormalizeRobust, RegistrationRecipe, ddf_to_mm, voxel_spacing
from monai_reg_ext.transforms.read_volume import read_volume

AS_IT_IS = "defaults"
GAMMAS = (0.8, 1.25)
BODY = 0.1  # of the range of intensities
VOXELS = 20000  # of every case


class Calibration(NamedTuple):
    """Predicted and true errors in mm, one value for every class of similar predictions."""

    counts: np.ndarray
    predicted: np.ndarray
    error: np.ndarray
    spearman: float

    @property
    def expected_error(self) -> float:
        """Mean difference between predicted and true errors; every class has equally many voxels."""
        return float(np.abs(self.predicted - self.error).mean())

    @property
    def overall(self) -> tuple[float, float]:
        """Root mean squares of predicted and true errors of all voxels."""
        predicted, error = (float(np.sqrt(np.mean(values**2))) for values in (self.predicted, self.error))
        return predicted, error


def main(
    data_dir: str,
    task: str = "HippocampusMR",
    cases: int = 8,
    seed: int = 0,
    max_displacement_mm: float = 5.0,
    noise: float = 0.05,
    bundle: str = "convex_adam",
    variants: tuple[str, ...] | str = (AS_IT_IS, "search_only"),
    bins: int = 10,
    output: str = "",
    **overrides: Any,
) -> None:
    """Deform training cases, register them, print a table per variant and draw all of them into one plot.

    Args:
        data_dir: folder of the data sets.
        task: a Learn2Reg folder in ``data_dir``.
        cases: how many training cases, drawn at random.
        seed: of cases, displacements, contrast and noise.
        max_displacement_mm: length of the largest displacement.
        noise: standard deviation, of the range of intensities.
        bundle: name or folder of the bundle.
        variants: settings of the bundle, separated by commas; ``defaults`` is the bundle as it is, several names or
            files joined by ``+`` are merged.
        bins: classes of equally many voxels.
        output: file of the plot, ``.svg`` or ``.png``.
        overrides: config ids of inference.json, e.g. ``--network_def#refiner#iterations 40``.
    """
    set_determinism(seed)
    variants = variants.split(",") if isinstance(variants, str) else variants
    recipes = {name: _recipe(bundle, name, overrides) for name in variants}
    errors: dict[str, list[np.ndarray]] = {name: [] for name in variants}
    for path in _drawn_cases(Path(data_dir) / task, cases, seed):
        pair = known_pair(read_volume(path, path.name), max_displacement_mm, noise, _generator(seed, path))
        for name, recipe in recipes.items():
            errors[name].append(_predicted_and_true(recipe(pair), pair, _generator(seed, path)))
            predicted, true = (values.mean() ** 0.5 for values in errors[name][-1] ** 2)
            print(f"{path.name} {name}: predicted {predicted:.3f} mm, error {true:.3f} mm", flush=True)
    results = {name: calibrate(*np.concatenate(of_cases, 1), bins) for name, of_cases in errors.items()}
    print(
        f"\n{bundle} on {cases} training cases of {task}, moved by up to {max_displacement_mm:g} mm, noise {noise:g}\n"
    )
    print("\n".join(table(results)))
    if output:
        draw(results, Path(output))


def known_pair(
    scan: MetaTensor, max_displacement_mm: float, noise: float, generator: torch.Generator
) -> dict[str, Any]:
    """A scan ``(1, I, J, K)`` as moving image, and the same one deformed as fixed image.

    Returns:
        ``fixed``, ``moving``; ``true_ddf``, ``(3, I, J, K)`` in voxels, with which ``fixed(x)`` shows what
        ``moving(x + true_ddf(x))`` shows; ``body``, ``(I, J, K)``, where the fixed image is not dark.
    """
    scan = NormalizeRobust()(scan)
    size, spacing = scan.shape[1:], voxel_spacing(scan.affine).float()
    half_mm = (torch.tensor(size) - 1) * spacing / 2
    displacement = SineDisplacement.random(size, half_mm, max_displacement_mm, generator)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, extent) for extent in size], indexing="ij")
    ddf = displacement(torch.stack(axes).flatten(1)).reshape(3, *size) / spacing.view(3, 1, 1, 1)
    moving = scan.as_tensor()
    fixed = warp(moving[None], ddf[None])[0]
    images = {"fixed": fixed, "moving": moving}
    images = {key: MetaTensor(_scanned(image, noise, generator), affine=scan.affine) for key, image in images.items()}
    return {**images, "pair": "known", "true_ddf": ddf, "body": fixed[0] > BODY}


def _scanned(image: torch.Tensor, noise: float, generator: torch.Generator) -> torch.Tensor:
    low, high = GAMMAS
    gamma = low + (high - low) * torch.rand((), generator=generator)
    return image**gamma + noise * torch.randn(image.shape, generator=generator)


def calibrate(predicted: np.ndarray, error: np.ndarray, bins: int) -> Calibration:
    """Sort predicted and true errors ``(N,)`` into classes of equally many similar predictions."""
    classes = np.array_split(np.argsort(predicted, kind="stable"), bins)
    rms = [[np.sqrt(np.mean(values[chosen] ** 2)) for chosen in classes] for values in (predicted, error)]
    counts = np.array([len(chosen) for chosen in classes])
    return Calibration(counts, *map(np.array, rms), float(spearmanr(predicted, error).statistic))


def table(results: dict[str, Calibration]) -> list[str]:
    """Markdown: a row for every class with two columns per variant, and what sums them up."""
    names = [f"{name}: {column}" for name in results for column in ("predicted, mm", "error, mm")]
    lines = [f"| voxels | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row, count in enumerate(next(iter(results.values())).counts):
        cells = [f"{values[row]:.3f}" for result in results.values() for values in (result.predicted, result.error)]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    overall = [f"{value:.3f}" for result in results.values() for value in result.overall]
    lines.append(f"| all | {' | '.join(overall)} |\n")
    for name, result in results.items():
        lines.append(
            f"- {name}: expected calibration error {result.expected_error:.3f} mm, Spearman's correlation "
            f"{result.spearman:.2f} between predicted and true errors of single voxels"
        )
    return lines


def draw(results: dict[str, Calibration], path: Path) -> None:
    """Errors over predictions, and the diagonal on which both are equal."""
    # without these two the same figures would give another file
    with plt.rc_context({"svg.hashsalt": "calibration", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(4.2, 4), layout="constrained")
        end = 1.08 * max(values.max() for result in results.values() for values in (result.predicted, result.error))
        axes.plot([0, end], [0, end], color="0.6", linestyle="--", label="as predicted")
        for name, result in results.items():
            axes.plot(result.predicted, result.error, marker="o", markersize=4, label=name)
        axes.set(xlabel="predicted standard deviation, mm", ylabel="error, root mean square, mm")
        axes.set(xlim=(0, end), ylim=(0, end), aspect="equal")
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def _recipe(bundle: str, variant: str, overrides: dict[str, Any]) -> RegistrationRecipe:
    settings = [name for name in variant.split("+") if name != AS_IT_IS]
    return RegistrationRecipe.from_bundle(bundle, settings, uncertainty=True, **overrides)


def _drawn_cases(dataset_dir: Path, number: int, seed: int) -> Sequence[Path]:
    paths = [Path(subject["image"]) for subject in Learn2RegTask(dataset_dir).subjects()]
    return [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))[:number]]


def _generator(seed: int, path: Path) -> torch.Generator:
    """A case's own, whatever cases come before it."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {path.name}".encode()))


def _predicted_and_true(result: dict[str, Any], pair: dict[str, Any], generator: torch.Generator) -> np.ndarray:
    """Predicted standard deviations and lengths of errors ``(2, N)`` in mm, at voxels inside the body."""
    error = ddf_to_mm(result["pred"] - pair["true_ddf"], pair["fixed"].affine).norm(dim=0)
    inside = pair["body"].flatten().nonzero()[:, 0]
    chosen = inside[torch.randperm(len(inside), generator=generator)[:VOXELS]]
    values = torch.stack([result["uncertainty"].as_tensor()[0], error]).flatten(1)
    return values[:, chosen].double().numpy()


if __name__ == "__main__":
    fire.Fire(main)
