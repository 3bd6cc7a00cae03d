"""The small problems of gradient balancing: what each answer must satisfy, whatever solved it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyptych.balancers import _solvers as solvers

POWERS = (2.0, 1.0, 0.5)
SCALES = ("min", "median", "rmse")


@st.composite
def jacobians(draw, smallest=1, zeros=False) -> Tensor:
    """Gradient rows of one to six tasks: of very different lengths, dependent (up to rank 1), or repeated."""
    tasks = draw(st.integers(smallest, 6))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rank = draw(st.integers(1, 8))
    rows = torch.randn(tasks, rank, generator=random, dtype=torch.float64) @ torch.randn(
        rank, 9, generator=random, dtype=torch.float64)
    rows *= 10 ** (draw(st.floats(0, 1.5)) * torch.randn(tasks, 1, generator=random, dtype=torch.float64))
    if draw(st.booleans()):
        rows[-1] = rows[0]
    if zeros and draw(st.booleans()):
        rows[draw(st.integers(0, tasks - 1))] = 0
    return rows


def gram(rows: Tensor) -> Tensor:
    return rows @ rows.T


def angles_are_plain(rows: Tensor) -> bool:
    """Whether rounding in a float64 Gram matrix is far below its smallest eigenvalue."""
    cosines, _ = solvers.cosines(gram(rows))
    return float(torch.linalg.eigvalsh(cosines)[0]) > 1e-6


def conflict_averse_weights(matrix: Tensor) -> Tensor:
    weights, ratio = solvers.conflict_averse_point(matrix, 0.4)
    return 1 / len(matrix) + weights / ratio


ALL = {
    "min_norm_point": solvers.min_norm_point,
    "balance_point": solvers.balance_point,
    "balance_point of power 1/2": lambda g: solvers.balance_point(g, 0.5),
    "conflict_averse_point": conflict_averse_weights,
    "project_to_dual_cone": lambda g: solvers.project_to_dual_cone(g, torch.ones_like(g[0])),
    "balanced_transform": lambda g: solvers.balanced_transform(g).sum(1),
}


@pytest.mark.parametrize("solve", ALL.values(), ids=ALL.keys())
@settings(max_examples=40, deadline=None)
@given(rows=jacobians(), data=st.data())
def test_order_of_tasks_does_not_matter(solve, rows, data) -> None:
    if solve is ALL["balanced_transform"]:  # the eigenvalues of the matrix itself are as exact as the largest one
        lengths = rows.norm(dim=1, keepdim=True)
        rows = rows * lengths.clamp(min=0.1 * lengths.max()) / lengths
    if not angles_are_plain(rows):
        rows = rows + 0.1 * rows.norm(dim=1, keepdim=True) * torch.eye(len(rows), 9, dtype=torch.float64)
    order = data.draw(st.permutations(range(len(rows))))
    torch.testing.assert_close(solve(gram(rows[order])), solve(gram(rows))[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solve", ALL.values(), ids=ALL.keys())
def test_one_task(solve) -> None:
    weights = solve(torch.tensor([[4.0]], dtype=torch.float64))
    assert weights.shape == (1,) and weights[0] > 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8))
def test_projection_to_the_simplex(values) -> None:
    values = torch.tensor(values, dtype=torch.float64)
    nearest = solvers.project_to_simplex(values)
    assert nearest.min() >= 0 and float(nearest.sum()) == pytest.approx(1)
    # No direction to a corner of the simplex, and so to no point of it, leads closer.
    assert ((torch.eye(len(values), dtype=torch.float64) - nearest) @ (values - nearest)).max() < 1e-9
    torch.testing.assert_close(solvers.project_to_simplex(nearest), nearest)


@settings(max_examples=60, deadline=None)
@given(jacobians(), st.integers(0, 2**31))
def test_nonnegative_quadratic_is_least_squares(rows, seed) -> None:
    rows = rows + 0.1 * rows.norm(dim=1, keepdim=True) * torch.eye(len(rows), 9, dtype=torch.float64)
    goal = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected, _ = scipy.optimize.nnls(rows.T.numpy(), goal.numpy())
    x = solvers.nonnegative_quadratic(gram(rows), rows @ goal)
    np.testing.assert_allclose(rows.T.numpy() @ x.numpy(), rows.T.numpy() @ expected, atol=1e-9 * goal.norm())
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-9 * expected.max(initial=1e-9))


@settings(max_examples=100, deadline=None)
@given(jacobians(zeros=True))
def test_min_norm_point_is_optimal(rows) -> None:
    matrix = gram(rows)
    weights = solvers.min_norm_point(matrix)
    assert weights.min() >= 0 and float(weights.sum()) == pytest.approx(1)
    # The shortest vector has with every row at least the product that it has with itself.
    length = weights @ matrix @ weights
    assert float(length - (matrix @ weights).min()) <= 1e-9 * float(matrix.diagonal().max())


@settings(max_examples=60, deadline=None)
@given(jacobians(smallest=2), st.floats(-8, 8))
def test_min_norm_point_does_not_depend_on_scale(rows, exponent) -> None:
    torch.testing.assert_close(solvers.min_norm_point(gram(rows * 10**exponent)), solvers.min_norm_point(gram(rows)),
                               rtol=1e-6, atol=2e-5)  # rows may depend on each other: then the ridge decides


@given(jacobians(smallest=2))
@settings(max_examples=60, deadline=None)
def test_min_norm_point_of_two_tasks(rows) -> None:
    one, two = rows[0], rows[1] + 0.1 * rows[0].norm() * torch.eye(9, dtype=torch.float64)[0]
    first = float((((two - one) @ two) / (one - two).square().sum()).clamp(0, 1))
    assert float(solvers.min_norm_point(gram(torch.stack([one, two])))[0]) == pytest.approx(first, abs=1e-7)


def test_min_norm_point_of_equal_and_parallel_rows() -> None:
    row = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    equal = solvers.min_norm_point(gram(row.repeat(3, 1)))
    torch.testing.assert_close(equal, torch.full_like(equal, 1 / 3), rtol=0, atol=1e-5)
    parallel = solvers.min_norm_point(gram(row * torch.tensor([[2.0], [1.0], [5.0]], dtype=torch.float64)))
    torch.testing.assert_close(parallel, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-6)


def test_min_norm_point_with_rows_of_zero_is_theirs() -> None:
    rows = torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 0]], dtype=torch.float64)
    assert solvers.min_norm_point(gram(rows)).tolist() == [0, 0.5, 0, 0.5]


@settings(max_examples=60, deadline=None)
@given(jacobians(), st.integers(0, 2**31))
def test_projection_to_the_dual_cone(rows, seed) -> None:
    preference = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = gram(rows / rows.norm(dim=1, keepdim=True)) + 1e-4 * torch.eye(len(rows), dtype=torch.float64)
    weights = solvers.project_to_dual_cone(matrix, preference)
    products = matrix @ weights
    assert (weights >= preference).all() and products.min() > -1e-8
    assert float(((weights - preference) * products).abs().max()) < 1e-7  # what was added stops at the border


@pytest.mark.parametrize("power", POWERS)
@settings(max_examples=80, deadline=None)
@given(rows=jacobians())
def test_balance_point_solves_its_equation(power, rows) -> None:
    if not angles_are_plain(rows):
        rows = rows + 0.1 * rows.norm(dim=1, keepdim=True) * torch.eye(len(rows), 9, dtype=torch.float64)
    matrix = gram(rows)
    weights = solvers.balance_point(matrix, power)
    assert weights.min() > 0
    terms = matrix.abs() @ weights  # what cancels in the product sets how exact it can be
    residual = (matrix @ weights - weights**-power).abs()
    assert float((residual / (terms + weights**-power)).max()) < 1e-8


@pytest.mark.parametrize("power", POWERS)
@settings(max_examples=40, deadline=None)
@given(rows=jacobians(), factor=st.floats(1e-4, 1e4))
def test_balance_point_follows_the_scale_of_all_gradients(power, rows, factor) -> None:
    rows = rows + 0.1 * rows.norm(dim=1, keepdim=True) * torch.eye(len(rows), 9, dtype=torch.float64)
    expected = solvers.balance_point(gram(rows), power) * factor ** (-2 / (1 + power))
    torch.testing.assert_close(solvers.balance_point(gram(rows * factor), power), expected, rtol=1e-5, atol=0)


@settings(max_examples=40, deadline=None)
@given(jacobians(), st.integers(0, 2**31))
def test_bargaining_does_not_depend_on_the_scale_of_each_task(rows, seed) -> None:
    """Nash's solution (power 1): a loss in other units gets the inverse of the unit as weight."""
    rows = rows + 0.1 * rows.norm(dim=1, keepdim=True) * torch.eye(len(rows), 9, dtype=torch.float64)
    units = 10 ** torch.randn(len(rows), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(solvers.balance_point(gram(rows * units)) * units[:, 0],
                               solvers.balance_point(gram(rows)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("power", POWERS)
def test_balance_point_of_orthogonal_rows(power) -> None:
    squares = torch.tensor([1e-6, 1.0, 1e4], dtype=torch.float64)
    torch.testing.assert_close(solvers.balance_point(squares.diag(), power), squares ** (-1 / (1 + power)),
                               rtol=1e-8, atol=0)


@pytest.mark.parametrize("power", POWERS)
def test_balance_point_stays_finite_where_gradients_cancel(power) -> None:
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    weights = solvers.balance_point(gram(rows), power)
    assert torch.isfinite(weights).all() and float(weights[0] / weights[1]) == pytest.approx(1, abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(jacobians(zeros=True), st.floats(0.05, 0.95))
def test_conflict_averse_point_closes_the_duality_gap(rows, c) -> None:
    """The dual value is at least the worst improvement of any direction within the ball, and the direction that the
    weights give attains it."""
    mean = rows.mean(0)
    if float(mean.norm()) <= 1e-6 * float(rows.norm()):
        return
    weights, ratio = solvers.conflict_averse_point(gram(rows), c)
    assert weights.min() >= 0 and float(weights.sum()) == pytest.approx(1)
    direction, radius = mean + rows.T @ weights / ratio, c * mean.norm()
    dual = (rows.T @ weights) @ mean + radius * (rows.T @ weights).norm()
    size = float(rows.norm() * mean.norm())
    assert float((direction - mean).norm()) <= float(radius) * (1 + 1e-4) + 1e-6 * float(rows.norm())
    assert float(dual - (rows @ direction).min()) == pytest.approx(0, abs=1e-5 * size)


@pytest.mark.parametrize("scale", SCALES)
@settings(max_examples=60, deadline=None)
@given(rows=jacobians())
def test_balanced_transform_makes_rows_orthogonal(scale, rows) -> None:
    matrix = gram(rows)
    values = torch.linalg.svdvals(rows)
    floor = 1e-5
    values = values[values > floor * values[0]]
    if float((values / values[0]).min()) < solvers.FADE * floor:  # values fade there
        return
    transform = solvers.balanced_transform(matrix, scale, floor=floor)
    result = transform @ matrix @ transform
    expected = {"min": values.min(), "median": values.flip(0)[(len(values) - 1) // 2],
                "rmse": values.square().mean().sqrt()}[scale]
    # A projector times the square of one length.
    projector = result / expected**2
    torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-4)
    assert float(projector.trace()) == pytest.approx(len(values), abs=1e-4)
    torch.testing.assert_close(transform, transform.T, rtol=0, atol=1e-6 * float(transform.abs().max()))


def test_rows_of_zero_are_left_out() -> None:
    matrix = gram(torch.tensor([[1.0, 0], [0, 0], [0, 2]], dtype=torch.float64))
    weights = solvers.where_present(matrix, 7.0, lambda g: g.diagonal().clone())
    assert weights.tolist() == [1, 7, 4]
    assert solvers.where_present(torch.zeros(2, 2, dtype=torch.float64), 1.0, lambda g: g[0]).tolist() == [1, 1]
    assert solvers.balanced_transform(torch.zeros(2, 2, dtype=torch.float64)).abs().sum() == 0


def test_many_quadratic_problems_are_solved_as_each_by_itself() -> None:
    """Against scipy as well: conflicts, dependent gradients, and lengths that differ by a million."""
    from scipy.optimize import nnls

    for count, size, spread in [(2, 5, 0), (7, 3, 0), (12, 40, 3), (24, 24, 0)]:
        random = torch.Generator().manual_seed(count)
        rows = torch.randn(count, size, generator=random, dtype=torch.float64)
        matrix = gram(rows * torch.logspace(-spread, spread, count, dtype=torch.float64)[:, None])
        matrix = matrix / matrix.trace() + 1e-4 * torch.eye(count, dtype=torch.float64)
        linear = torch.randn(count + 1, count, generator=random, dtype=torch.float64)
        found = solvers.nonnegative_quadratics(matrix, linear)
        root = torch.linalg.cholesky(matrix).T
        for x, b in zip(found, linear, strict=True):
            other = nnls(root.numpy(), torch.linalg.solve(root.T, b).numpy())[0]
            torch.testing.assert_close(x, torch.from_numpy(other), rtol=1e-8, atol=1e-10)
            torch.testing.assert_close(x, solvers.nonnegative_quadratic(matrix, b), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("exponent", range(-14, 15, 2))
def test_conflict_averse_point_whatever_the_ratio_of_lengths(exponent) -> None:
    """The worst task's gain equals the dual value, and the correction has exactly the length of the radius."""
    for seed in range(6):
        rows = torch.randn(2 + seed % 3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rows[0] *= 10.0**exponent
        matrix, c = gram(rows), 0.4
        weights, ratio = solvers.conflict_averse_point(matrix, c)
        radius, length = c * float(matrix.mean().sqrt()), float((weights @ matrix @ weights).sqrt())
        gain = float((matrix.mean(1) + matrix @ weights / ratio).min())
        assert length / ratio == pytest.approx(radius, rel=1e-6)
        assert gain == pytest.approx(float(weights @ matrix.mean(1)) + radius * length, rel=1e-6)


@pytest.mark.parametrize("rows", [[[1.0, 2], [-1, -2]], [[1, 0], [0, 1], [-1, -1]],
                                  [[0.1, 0.3], [0.2, 0.7], [-0.3, -1]]])
def test_gradients_that_sum_to_zero_have_equal_weights(rows) -> None:
    weights, ratio = solvers.conflict_averse_point(gram(torch.tensor(rows, dtype=torch.float64)), 0.4)
    assert ratio == float("inf") and torch.equal(weights, torch.full_like(weights, 1 / len(rows)))


@pytest.mark.parametrize("scale", SCALES)
def test_a_singular_value_that_crosses_the_floor_does_not_make_the_step_jump(scale) -> None:
    floor, found = 1e-4, []
    vectors = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    for smallest in torch.logspace(-4.5, -2.5, 400, dtype=torch.float64).tolist():
        values = torch.tensor([smallest, 0.5, 1.0], dtype=torch.float64)
        found.append(solvers.balanced_transform(vectors * values.square() @ vectors.T, scale, floor=floor))
    for one, other in itertools.pairwise(found):
        # 1.2% from value to value; a sudden end would be a factor of thousands.
        assert float((one - other).norm()) < 0.5 * float(other.norm())
