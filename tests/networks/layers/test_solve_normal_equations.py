# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch.autograd import gradcheck

from monai_reg_ext.networks.layers import normal_preconditioner
from monai_reg_ext.networks.layers.conjugate_gradients import conjugate_gradients
from monai_reg_ext.networks.layers.graph_laplacian import graph_laplacian
from monai_reg_ext.networks.layers.normal_operator import NormalOperator
from monai_reg_ext.networks.layers.normal_preconditioner import PRECONDITIONERS
from monai_reg_ext.networks.layers.solve_normal_equations import solve_normal_equations
from monai_reg_ext.networks.layers.symmetric_matrix import entries_of, matrices_of

EXACT = {"tolerance": 1e-12, "max_iterations": 2000}
SIZES = [(4, 6, 5), (9, 4), (3, 1, 7), (1, 1, 1)]


def system(size, coupled=True, batch=2, dtype=torch.float64, seed=0):
    """Blocks as of one or two channels with a hole where nothing has a gradient, and a right side."""
    generator = torch.Generator().manual_seed(seed)
    axes = len(size)
    slopes = torch.randn(batch, 2, axes, *size, dtype=dtype, generator=generator)
    slopes[..., : size[-1] // 2] = 0
    slopes[..., -1] += torch.eye(2, axes, dtype=dtype).view(1, 2, axes, *[1] * (axes - 1))
    blocks = (slopes.unsqueeze(2) * slopes.unsqueeze(3)).sum(1)
    blocks[..., -1] += 0.1 * torch.eye(axes, dtype=dtype).view(1, axes, axes, *[1] * (axes - 1))
    matrix = entries_of(blocks) if coupled else blocks.diagonal(dim1=1, dim2=2).movedim(-1, 1).contiguous()
    return matrix, torch.randn(batch, axes, *size, dtype=dtype, generator=generator)


def assembled(matrix, components, regularization, weights=None):
    """One system as scipy's sparse matrix, cell by cell and component by component."""
    cells = matrix[0].numel()
    blocks = matrices_of(matrix[None])[0] if len(matrix) > components else torch.diag_embed(matrix.movedim(0, -1))
    if len(matrix) == components:
        blocks = blocks.movedim((-2, -1), (0, 1))
    blocks = blocks.reshape(components, components, cells).numpy()
    rows = [[scipy.sparse.diags(blocks[row, column]) for column in range(components)] for row in range(components)]
    units = torch.eye(cells, dtype=matrix.dtype).view(1, cells, *matrix.shape[1:])
    laplacian = scipy.sparse.csr_matrix(graph_laplacian(units, weights).view(cells, cells).numpy())
    return (scipy.sparse.bmat(rows) + regularization * scipy.sparse.block_diag([laplacian] * components)).tocsr()


@pytest.mark.parametrize("preconditioner", PRECONDITIONERS)
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_solution_of_the_assembled_matrix(size, coupled, preconditioner):
    matrix, right_side = system(size, coupled)
    weights = (1.0, 0.3, 2.0)[: len(size)]
    regularization = torch.tensor([3.0, 0.2], dtype=torch.float64)

    solution = solve_normal_equations(
        matrix, right_side, regularization, weights, preconditioner=preconditioner, **EXACT
    )

    assert solution.converged.all()
    for item in range(2):
        exact = scipy.sparse.linalg.spsolve(
            assembled(matrix[item], len(size), regularization[item].item(), weights), right_side[item].flatten().numpy()
        )
        expected = torch.from_numpy(np.asarray(exact)).view(right_side[item].shape)
        torch.testing.assert_close(solution.values[item], expected, rtol=1e-8, atol=1e-9)


def test_it_stops_where_scipys_conjugate_gradients_stop():
    matrix, right_side = system((4, 6, 5), batch=1)
    operator = NormalOperator(matrix, 3, torch.tensor([0.7], dtype=torch.float64))
    counted = []

    solution = conjugate_gradients(operator, lambda field: field, right_side, 0.05, 500)

    expected, _ = scipy.sparse.linalg.cg(
        assembled(matrix[0], 3, 0.7), right_side.flatten().numpy(), rtol=0.05, callback=counted.append
    )
    assert solution.iterations.item() == len(counted)
    np.testing.assert_allclose(solution.values.flatten(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("size", [(19, 22, 17), (2, 1, 5), (1, 9, 1)])
def test_the_compiled_product_is_the_plain_one(size, coupled, compiled, plain):
    matrix, field = (tensor.float() for tensor in system(size, coupled))
    weights, regularization = (1.0, 0.3, 2.0), torch.tensor([3.0, 0.2])

    for arguments in ((regularization, weights), ()):
        fast, slow = (run(lambda a=arguments: NormalOperator(matrix, 3, *a)(field)) for run in (compiled, plain))
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_system_is_solved_the_same_whatever_stands_beside_it(dtype):
    matrix, right_side = system((8, 6, 7), batch=3, dtype=dtype)
    regularization = torch.tensor([50.0, 0.5, 0.01], dtype=dtype)

    together = solve_normal_equations(matrix, right_side, regularization)

    assert together.iterations.unique().numel() > 1
    for item in range(3):
        one = slice(item, item + 1)
        alone = solve_normal_equations(matrix[one], right_side[one], regularization[one])
        assert alone.iterations == together.iterations[item]
        torch.testing.assert_close(alone.values[0], together.values[item], rtol=1e-5, atol=1e-6)


def test_what_is_reported_is_the_true_residual():
    matrix, right_side = system((8, 6, 7), batch=2)
    operator = NormalOperator(matrix, 3, torch.full((2,), 2.0, dtype=torch.float64))

    solution = solve_normal_equations(matrix, right_side, 2.0, tolerance=1e-4)

    left = (right_side - operator(solution.values)).flatten(1).norm(dim=1)
    torch.testing.assert_close(solution.residual, left / right_side.flatten(1).norm(dim=1))
    assert (solution.residual <= 1e-4).all()
    assert (solution.residual > 1e-8).all()


def test_nothing_on_the_right_gives_nothing():
    matrix, right_side = system((4, 6, 5))
    right_side[1] = 0

    solution = solve_normal_equations(matrix, right_side, 1.0)

    assert solution.values[1].abs().max() == 0
    assert solution.values[0].abs().max() > 0
    assert solution.iterations[1] == solution.residual[1] == 0
    assert solution.converged.all()


def test_diagonal_blocks_are_as_many_systems_as_components():
    matrix, right_side = system((4, 6, 5), coupled=False)

    solution = solve_normal_equations(matrix, right_side, 1.0, **EXACT).values

    for component in range(3):
        one = slice(component, component + 1)
        alone = solve_normal_equations(matrix[:, one], right_side[:, one], 1.0, **EXACT).values
        torch.testing.assert_close(solution[:, one], alone, rtol=1e-8, atol=1e-9)


def test_where_nothing_has_a_gradient_the_solution_is_harmonic():
    matrix, right_side = system((6, 7, 8))
    right_side[..., :4] = 0

    solution = solve_normal_equations(matrix, right_side, 5.0, **EXACT).values

    assert graph_laplacian(solution)[..., :4].abs().max() < 1e-9
    assert solution[..., :4].abs().min() > 0


def test_scaling_the_features_and_the_regularisation_changes_nothing():
    matrix, right_side = system((4, 6, 5), dtype=torch.float32)

    one = solve_normal_equations(matrix, right_side, 0.5, damping=0.1).values
    other = solve_normal_equations(400 * matrix, 400 * right_side, 200.0, damping=0.1).values

    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(2, 3, 2), (3, 4)])
@pytest.mark.parametrize("coupled", [True, False])
def test_its_gradients_are_right(size, coupled):
    matrix, right_side = system(size, coupled, batch=1)
    # beyond the blocks' rounding: gradcheck moves entries by themselves
    diagonal = NormalOperator(matrix, len(size)).diagonal
    matrix[:, diagonal] += 0.5
    inputs = matrix, right_side, torch.tensor([0.7], dtype=torch.float64)

    def solve(*tensors):
        return solve_normal_equations(*tensors, (1.0, 0.3, 2.0)[: len(size)], **EXACT)[0]

    assert gradcheck(solve, [tensor.requires_grad_() for tensor in inputs])


def test_one_weight_for_all_gets_the_gradient_of_all_and_damping_is_part_of_it():
    matrix, right_side = system((3, 2))
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def solve(matrix, weight):
        return solve_normal_equations(matrix, right_side, weight, damping=0.3, **EXACT)[0].square().sum()

    assert gradcheck(solve, (matrix.requires_grad_(), weight))


def test_the_gradient_is_that_of_the_steps_and_needs_none_of_their_memory():
    matrix, right_side = system((6, 5, 7), batch=1)
    matrix.requires_grad_()
    steps = assembled_steps(matrix, right_side, 2.0, 60)
    (expected,) = torch.autograd.grad(steps.square().sum(), matrix)
    kept = []

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        solution = solve_normal_equations(matrix, right_side, 2.0, **EXACT).values
    (gradient,) = torch.autograd.grad(solution.square().sum(), matrix)

    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
    # six entries and three components for each cell, besides a few numbers
    assert sum(kept) < 10 * 6 * 5 * 7


def assembled_steps(matrix, right_side, regularization, steps):
    """Textbook conjugate gradients under autograd."""
    blocks = matrices_of(matrix)
    values, residual = torch.zeros_like(right_side), right_side
    direction, squares = residual, residual.square().sum()
    for _ in range(steps):
        image = (blocks * direction.unsqueeze(1)).sum(2) + regularization * graph_laplacian(direction)
        length = squares / (direction * image).sum()
        values, residual = values + length * direction, residual - length * image
        before, squares = squares, residual.square().sum()
        direction = residual + squares / before * direction
    return values


@pytest.mark.parametrize("slope", [(1.0, 0.0, 0.0), (0.6, -0.64, 0.48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_that_vary_along_one_direction_only_move_along_it(slope, dtype):
    slope = torch.tensor(slope, dtype=dtype).view(1, 3, 1, 1, 1)
    strength = torch.rand(1, 1, 5, 7, 4, dtype=dtype)
    matrix = entries_of((slope.unsqueeze(1) * slope.unsqueeze(2)) * strength.unsqueeze(1))
    right_side = 2 * slope * strength

    with pytest.warns(UserWarning, match="1 of 1 systems of normal equations have a direction without any gradient"):
        solution = solve_normal_equations(matrix, right_side, 3.0, tolerance=1e-5)

    # (s s^T) x = 2 s holds for x = 2 s everywhere, which costs no regularisation
    torch.testing.assert_close(solution.values, (2 * slope).expand_as(right_side), rtol=0, atol=1e-3)


def test_features_without_any_gradient_move_nothing():
    matrix, right_side = torch.zeros(1, 6, 4, 5, 3), torch.zeros(1, 3, 4, 5, 3)
    rough = graph_laplacian(torch.rand(1, 3, 4, 5, 3))

    with pytest.warns(UserWarning, match="without any gradient"):
        assert solve_normal_equations(matrix, right_side, 3.0).values.abs().max() == 0
    with pytest.warns(UserWarning, match="without any gradient"):
        smoothed = solve_normal_equations(matrix, -2.0 * rough, 2.0, tolerance=1e-5).values
    torch.testing.assert_close(graph_laplacian(smoothed), -rough, rtol=0, atol=1e-3)


def test_damping_is_counted_in_mean_diagonal_entries_and_shortens_the_step():
    matrix, right_side = system((4, 6, 5))
    diagonal = matrix[:, [0, 3, 5]]
    more = torch.zeros_like(matrix)
    more[:, [0, 3, 5]] = 0.5 * diagonal.mean((1, 2, 3, 4)).view(2, 1, 1, 1, 1)

    damped = solve_normal_equations(matrix, right_side, 1.0, damping=0.5, **EXACT).values

    expected = solve_normal_equations(matrix + more, right_side, 1.0, **EXACT).values
    torch.testing.assert_close(damped, expected)
    assert damped.norm() < solve_normal_equations(matrix, right_side, 1.0, **EXACT).values.norm()


def test_a_system_that_is_not_solved_is_told_of():
    matrix, right_side = system((9, 8, 7))

    with pytest.warns(UserWarning, match=r"2 of 2 systems of normal equations \(registration\) are not solved"):
        solution = solve_normal_equations(matrix, right_side, 1.0, max_iterations=2)

    assert not solution.converged.any()
    assert solution.iterations.tolist() == [2, 2]


def test_a_gradient_that_is_not_solved_is_told_of():
    matrix, right_side = system((9, 8, 7))
    right_side.zero_()
    solution = solve_normal_equations(matrix, right_side.requires_grad_(), 1.0, max_iterations=1)

    with pytest.warns(UserWarning, match=r"\(gradient\) are not solved"):
        solution.values.backward(torch.randn(solution.values.shape, dtype=torch.float64))


def test_blocks_that_are_not_positive_end_in_a_warning():
    matrix, right_side = system((4, 6, 5))
    matrix[1] *= -1

    with pytest.warns(UserWarning, match="normal equations") as told:
        solution = solve_normal_equations(matrix, right_side, 1.0)

    assert any("1 of 2 systems of normal equations (registration) are not solved" in str(one.message) for one in told)
    assert solution.converged.tolist() == [True, False]
    assert solution.iterations[1] < 20  # it rests where it finds out
    assert solution.values.isfinite().all()


def test_single_precision_reaches_what_it_can():
    matrix, right_side = system((12, 10, 14), dtype=torch.float32)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = solve_normal_equations(matrix, right_side, 25.0, tolerance=2e-6)

    assert solution.values.dtype == torch.float32
    assert (solution.residual <= 2e-6).all()


def test_half_precision_and_autocast_are_solved_in_single_precision():
    matrix, right_side = system((4, 6, 5), dtype=torch.float32)
    expected = solve_normal_equations(matrix, right_side, 1.0).values

    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = solve_normal_equations(matrix, right_side, 1.0).values
    torch.testing.assert_close(within, expected)
    half = solve_normal_equations(matrix.half(), right_side.half(), 1.0).values
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.1, atol=0.02)


def test_a_gradient_that_overflowed_goes_on_as_such():
    matrix, right_side = system((4, 6, 5))
    solution = solve_normal_equations(matrix, right_side.requires_grad_(), 1.0).values

    with pytest.warns(UserWarning, match="not solved"):
        solution.backward(torch.full_like(solution, torch.inf))

    assert right_side.grad.isnan().all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [(21, 16, 11), (8, 33, 6)])
def test_multigrid_takes_few_steps_whatever_the_weight_the_size_and_the_axes_weights(axis, size):
    matrix, right_side = system(size)
    weights = [1.0, 1.0, 1.0]
    weights[axis] = 0.3

    for regularization in (1e-3, 0.1, 10.0, 1e3):
        solution = solve_normal_equations(matrix, right_side, regularization, weights)
        assert solution.iterations.max() < 25


@pytest.mark.parametrize("size", [(5, 6, 7), (5, 8)])
@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_preconditioners_are_symmetric_and_positive(size, name):
    matrix, _ = system(size, batch=1)
    axes, cells = len(size), torch.Size(size).numel()
    operator = NormalOperator(matrix, axes, torch.tensor([0.8], dtype=torch.float64))

    units = torch.eye(axes * cells, dtype=torch.float64).view(-1, 1, axes, *size)
    columns = torch.stack([PRECONDITIONERS[name](operator)(unit).flatten() for unit in units])

    torch.testing.assert_close(columns, columns.T)
    assert torch.linalg.eigvalsh(columns).min() > 0


def test_cells_are_gathered_and_spread_by_one_matrix_and_its_transpose():
    fine, coarse = torch.randn(1, 2, 5, 1, 8), torch.randn(1, 2, 3, 1, 4)

    gathered = normal_preconditioner._gather(fine)
    spread = normal_preconditioner._spread(coarse, fine.shape[2:])

    torch.testing.assert_close((gathered * coarse).sum(), (fine * spread).sum())
    assert torch.equal(spread[..., :2, :, :2], coarse[..., :1, :, :1].expand(1, 2, 2, 1, 2))


@pytest.mark.parametrize("regularization", [0.0, -1.0, float("nan"), torch.tensor([1.0, 0.0])])
def test_the_weight_must_be_positive(regularization):
    matrix, right_side = system((4, 6, 5))

    with pytest.raises(ValueError, match=r"finite|regularization must be > 0"):
        solve_normal_equations(matrix, right_side, regularization)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_values_must_be_finite(which, value):
    given = system((4, 6, 5))
    given[which][1, 0, 2, 3, 1] = value

    with pytest.raises(ValueError, match="finite values"):
        solve_normal_equations(*given, 1.0)


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 6, 4, 6, 5), (2, 3, 4, 5, 6)),
        ((1, 6, 4, 6, 5), (2, 3, 4, 6, 5)),
        ((2, 5, 4, 6, 5), (2, 3, 4, 6, 5)),
        ((2, 3, 4), (2, 3, 4)),
    ],
)
def test_sizes_must_fit(shapes):
    with pytest.raises(ValueError, match="on the same grid"):
        solve_normal_equations(*(torch.ones(shape) for shape in shapes), 1.0)


def test_other_settings_must_make_sense():
    matrix, right_side = system((4, 6, 5))

    with pytest.raises(ValueError, match="preconditioner must be one of"):
        solve_normal_equations(matrix, right_side, 1.0, preconditioner="jacobi")
    with pytest.raises(ValueError, match="damping must be >= 0"):
        solve_normal_equations(matrix, right_side, 1.0, damping=-0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_and_waits_only_every_few_steps():
    matrix, right_side = system((18, 14, 22), dtype=torch.float32)
    expected = solve_normal_equations(matrix, right_side, 2.0, tolerance=1e-5)

    solution = solve_normal_equations(matrix.cuda(), right_side.cuda(), 2.0, tolerance=1e-5)

    assert solution.values.is_cuda
    torch.testing.assert_close(solution.values.cpu(), expected.values, rtol=1e-3, atol=1e-4)
    assert (solution.iterations.cpu() - expected.iterations).abs().max() <= 1
