# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""One Gauss-Newton step's equations: our solver beside ``scipy.sparse.linalg.cg`` on the assembled matrix.

    OMP_NUM_THREADS=2 python benchmarks/gauss_newton_solver.py

makes a pair of label maps of blobs, takes their signed distance maps as features, and solves the first step's equations
at several weights of the regularisation, by every preconditioner and by scipy. Then it counts the memory that a
training step keeps for the gradient, ours and with conjugate gradients under autograd. No data are needed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import fire
import numpy as np
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg
import torch

from monai_reg_ext.networks.layers import (
    NormalOperator,
    normal_equations,
    signed_distance,
    solve_normal_equations,
)

__all__ = ["assembled", "equations", "unrolled"]

PRECONDITIONERS = ("multigrid", "cosine", "block")
SCIPY = "scipy, assembled"


def main(
    size: Sequence[int] = (192, 160, 256),
    spacing: int = 4,
    weights: Sequence[float] = (1250.0, 125.0, 25.0, 2.5, 0.25),
    tolerance: float = 1e-3,
    repeats: int = 5,
) -> None:
    """Print two tables.

    Args:
        size: voxels of the images.
        spacing: voxels per cell of the control grid.
        weights: of the regularisation.
        tolerance: relative residual.
        repeats: solutions of which the median time counts; scipy and the slower preconditioners are timed once.
    """
    matrix, right_side = equations(size, spacing)
    mean = matrix[:, [0, 3, 5]].mean()
    print(f"{tuple(matrix.shape[2:])} cells, mean diagonal entry {mean:.2f}, {torch.get_num_threads()} threads\n")
    print("| weight | solver | iterations | relative residual | seconds | times ours |")
    print("|---|---|---|---|---|---|")
    for weight in weights:
        _print_solvers(matrix, right_side, weight, tolerance, repeats)
    print("\n| gradient through | iterations | kept for it, MiB |")
    print("|---|---|---|")
    for name, iterations, kept in _memory(matrix, right_side, weights[len(weights) // 2], tolerance):
        print(f"| {name} | {iterations} | {kept / 2**20:.1f} |")


def equations(size: Sequence[int], spacing: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix and right side of the first step between two label maps of blobs."""
    generator = np.random.default_rng(0)
    noise = generator.standard_normal([extent // 4 + 1 for extent in size])
    scene = scipy.ndimage.zoom(scipy.ndimage.gaussian_filter(noise, 2.5), 4, order=1)
    scene = scene[tuple(slice(extent) for extent in size)]
    moved = scipy.ndimage.shift(scene, (5, -3, 4), order=1, mode="nearest")
    labels = torch.from_numpy(np.stack([scene, moved]) > scene.std())
    fixed, moving = signed_distance(labels[:, None]).split(1)
    return normal_equations(fixed, moving, (spacing,) * 3)


def assembled(matrix: torch.Tensor, weight: float) -> scipy.sparse.csr_matrix:
    """The equations of three components as scipy's sparse matrix."""
    size, cells = matrix.shape[2:], matrix[0, 0].numel()
    entries = matrix[0].flatten(1).double().numpy()
    blocks = [[scipy.sparse.diags(entries[number]) for number in row] for row in ((0, 1, 2), (1, 3, 4), (2, 4, 5))]
    laplacian = scipy.sparse.csr_matrix((cells, cells))
    for axis, extent in enumerate(size):
        steps = scipy.sparse.diags([-np.ones(extent), np.ones(extent)], [0, 1], shape=(extent - 1, extent))
        factors = [scipy.sparse.identity(other) for other in size]
        factors[axis] = steps.T @ steps
        laplacian = laplacian + scipy.sparse.kron(scipy.sparse.kron(*factors[:2]), factors[2])
    return (scipy.sparse.bmat(blocks) + weight * scipy.sparse.block_diag([laplacian] * 3)).tocsr()


def unrolled(matrix: torch.Tensor, right_side: torch.Tensor, weight: float, iterations: int) -> torch.Tensor:
    """Textbook conjugate gradients, every step of which autograd keeps."""
    operator = NormalOperator(matrix, 3, torch.full((len(matrix),), weight))
    values, residual = torch.zeros_like(right_side), right_side
    direction, squares = residual, residual.square().sum()
    for _ in range(iterations):
        image = operator(direction)
        length = squares / (direction * image).sum()
        values, residual = values + length * direction, residual - length * image
        before, squares = squares, residual.square().sum()
        direction = residual + squares / before * direction
    return values


def _print_solvers(
    matrix: torch.Tensor, right_side: torch.Tensor, weight: float, tolerance: float, repeats: int
) -> None:
    rows = []
    for name in PRECONDITIONERS:
        settings = {"tolerance": tolerance, "max_iterations": 2000, "preconditioner": name}
        seconds, solution = _timed(
            lambda s=settings: solve_normal_equations(matrix, right_side, weight, **s), repeats if not rows else 1
        )
        rows.append((f"ours, {name}", solution.iterations.item(), solution.residual.item(), seconds))
    rows += _scipy_rows(matrix, right_side, weight, tolerance)
    for name, iterations, residual, seconds in rows:
        print(f"| {weight} | {name} | {iterations} | {residual:.1e} | {seconds:.3f} | {seconds / rows[0][3]:.1f} |")


def _scipy_rows(
    matrix: torch.Tensor, right_side: torch.Tensor, weight: float, tolerance: float
) -> list[tuple[str, int, float, float]]:
    """Without the time of the assembly and with it, in the same precision."""
    assembly, full = _timed(lambda: assembled(matrix, weight).astype(np.float32), 1)
    side = right_side.flatten().numpy()
    steps: list[None] = []
    scipy.sparse.linalg.cg(full, side, rtol=tolerance, callback=lambda _: steps.append(None))
    seconds, (values, _) = _timed(lambda: scipy.sparse.linalg.cg(full, side, rtol=tolerance), 1)
    found = len(steps), float(np.linalg.norm(side - full @ values) / np.linalg.norm(side))
    return [(SCIPY, *found, seconds), (f"{SCIPY} first", *found, assembly + seconds)]


def _memory(
    matrix: torch.Tensor, right_side: torch.Tensor, weight: float, tolerance: float
) -> list[tuple[str, int, int]]:
    matrix = matrix.clone().requires_grad_()
    kept, solution = _kept(lambda: solve_normal_equations(matrix, right_side, weight, tolerance=tolerance))
    rows = [("the equations (ours)", solution.iterations.item(), kept)]
    for iterations in (solution.iterations.item(), 40):
        rows.append(
            ("every iteration", iterations, _kept(lambda n=iterations: unrolled(matrix, right_side, weight, n))[0])
        )
    return rows


def _kept(function: Callable) -> tuple[int, object]:
    """Bytes of different tensors that autograd keeps of a call, and the call's result."""
    storages = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = function()
    return sum(storages.values()), result


def _timed(function: Callable, repeats: int) -> tuple[float, object]:
    """Median seconds, after a first call that compiles."""
    result = function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


if __name__ == "__main__":
    fire.Fire(main)
