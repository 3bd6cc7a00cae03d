"""The small problems behind gradient balancing, in float64 on matrices of one row per task.

Everything here takes the Gram matrix ``G = J J^T`` of the tasks' gradients (the rows of J) and returns weights. The
solvers are exact up to rounding (active sets, Newton, eigenvectors) rather than iterations that are stopped early, so
a result does not depend on the scale of the gradients. They scale the matrix to a diagonal of ones first, because
losses of tasks often differ by orders of magnitude. A task whose gradient is zero says nothing about a direction and
is left out; each function says what weight it gets.

Where several solutions are equally good (linearly dependent gradients), each row gets a tiny component of its own
(``RIDGE``), which makes the solution unique and independent of the order of the tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RIDGE = 1e-10  # of the diagonal: above the noise of float32 gradients (1e-7, squared 1e-14), but too small to matter
TINY = 1e-300  # squared lengths up to this count as zero
FADE = 10.0  # a singular value counts in full from this multiple of the floor on


def present(gram: Float[Tensor, "t t"]) -> Bool[Tensor, " t"]:
    """Which tasks have a gradient at all."""
    return gram.diagonal() > TINY


def cosines(gram: Float[Tensor, "t t"]) -> tuple[Float[Tensor, "t t"], Float[Tensor, " t"]]:
    """Cosines between gradients (t t), and the lengths of the gradients (t), all of which must be above zero."""
    lengths = gram.diagonal().sqrt()
    cosine = (gram / lengths[:, None] / lengths).clamp(-1, 1)
    return cosine.fill_diagonal_(1.0), lengths


def where_present(gram: Float[Tensor, "t t"], absent: float,
                  solve: Callable[[Float[Tensor, "p p"]], Float[Tensor, " p"]]) -> Float[Tensor, " t"]:
    """``solve`` for the tasks that have a gradient; the others get the weight ``absent``."""
    here = present(gram)
    weights = torch.full_like(gram[0], absent)
    if here.any():
        weights[here] = solve(gram[here][:, here])
    return weights


def project_to_simplex(values: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """The Euclidean projection onto the simplex: the nearest point (t) whose entries are not negative and sum to 1.

    Source: Held, Wolfe, Crowder, Mathematical Programming 6, 1974
    """
    # The projection subtracts one number from all entries and cuts off below zero. If the k largest stay positive, it
    # is their excess over a sum of 1, divided by k; the right k is the last for which they do.
    descending = values.sort(descending=True).values
    excess = (descending.cumsum(0) - 1) / torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    return (values - excess[int((descending > excess).sum()) - 1]).clamp(min=0)


def shares(weights: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Weights scaled to sum to 1; equal ones where all are zero."""
    total = weights.sum()
    return weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))


def nonnegative_quadratic(matrix: Float[Tensor, "t t"], linear: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """``argmin_{x >= 0} x^T A x / 2 - b^T x`` for a positive definite A: nonnegative least squares in normal form.

    An active-set method: exact after finitely many linear systems, in practice a few per task at most.

    Source: Lawson and Hanson, Solving Least Squares Problems, 1974, in the form of Bro and De Jong, 1997
    """
    scale = matrix.diagonal().rsqrt()
    matrix, linear = matrix * scale * scale[:, None], linear * scale
    tolerance = 1e-13 * float(linear.abs().max())  # freeing an entry whose slope is only rounding could cycle
    x = torch.zeros_like(linear)
    free = torch.zeros_like(linear, dtype=torch.bool)
    for _ in range(10 * len(x)):
        slope = torch.where(free, -torch.inf, linear - matrix @ x)
        if float(slope.max()) <= tolerance:
            break
        free[slope.argmax()] = True
        while True:
            goal = torch.zeros_like(x)
            goal[free] = torch.linalg.solve(matrix[free][:, free], linear[free])
            blocked = free & (goal <= 0)
            if not blocked.any():
                break
            # Move toward the goal until the first entry reaches zero; it leaves the free set. Cutting off the goal at
            # zero instead could raise the objective, which would void the proof that the loop ends.
            steps = torch.where(blocked, x / (x - goal).clamp(min=TINY), torch.inf)
            x = x + steps.min() * (goal - x)
            free &= ~(blocked & (steps <= steps.min()))
            x = torch.where(free, x, 0)
        x = goal
    return x * scale


def min_norm_point(gram: Float[Tensor, "t t"]) -> Float[Tensor, " t"]:
    """``argmin w^T G w`` over weights that are not negative and sum to 1: the shortest vector in the convex hull.

    A row of zeros is the shortest vector: tasks with such a row share the weight, and the others get none.
    """
    here = present(gram)
    if not here.all():
        return (~here).to(gram.dtype) / (~here).sum()
    ridged = gram + RIDGE * gram.diagonal().diag()
    # At the optimum all tasks with a weight have the same product (G w)_t. So the constraint on the sum may become a
    # linear term, x^T G x / 2 - sum x, which only scales the solution; dividing by the sum undoes that.
    x = nonnegative_quadratic(ridged / ridged.diagonal().max(), torch.ones_like(gram[0]))
    return x / x.sum()


def nonnegative_quadratics(matrix: Float[Tensor, "t t"], linear: Float[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """:func:`nonnegative_quadratic` of one matrix and many vectors at once, just as exact.

    An active-set method changes one entry at a time, so n problems of t entries would take thousands of small systems.
    Here every problem changes all its wrong entries together, and each round solves one batch of systems. Such
    exchanges may cycle, so a problem with no fewer wrong entries after three rounds changes only its last wrong entry,
    which is proven to end; the few problems that take too long are left to :func:`nonnegative_quadratic`.

    Source: Kim and Park, SIAM Journal on Scientific Computing 33, 2011 (block principal pivoting)
    """
    scale = matrix.diagonal().rsqrt()
    scaled, right = matrix * scale * scale[:, None], linear * scale
    tolerance = 1e-13 * right.abs().amax(1, keepdim=True)
    identity, result = torch.eye(len(matrix), dtype=matrix.dtype), torch.zeros_like(right)
    free, waiting = right > tolerance, torch.arange(len(right))
    fewest, patience = torch.full_like(waiting, len(matrix) + 1), torch.full_like(waiting, 3)
    for _ in range(10 + len(matrix)):
        here, b = free[waiting], right[waiting]
        # Entries that are not free get rows and columns of the identity, so that systems of all sizes form one batch.
        systems = torch.where(here[:, :, None] & here[:, None], scaled, identity)
        x = torch.linalg.solve(systems, torch.where(here, b, 0)[..., None])[..., 0]
        wrong = torch.where(here, x < 0, b - x @ scaled > tolerance[waiting])
        count = wrong.sum(1)
        result[waiting] = torch.where(here, x, 0)
        better = count < fewest[waiting]
        patience[waiting] = torch.where(better, 3, patience[waiting] - 1)
        fewest[waiting] = torch.where(better, count, fewest[waiting])
        last = wrong & (wrong.flip(1).cumsum(1).flip(1) == 1)
        free[waiting] = here ^ torch.where((patience[waiting] >= 0)[:, None], wrong, last)
        waiting = waiting[count > 0]
        if not len(waiting):
            break
    result *= scale
    for row in waiting.tolist():
        result[row] = nonnegative_quadratic(matrix, linear[row])
    return result


def project_to_dual_cone(gram: Float[Tensor, "t t"], weights: Float[Tensor, "*n t"]) -> Float[Tensor, "*n t"]:
    """Weights v of the vector nearest to ``J^T u`` that has no negative product with any row of J. ``weights`` is u
    (t), or has one u in every row (n t); the result has its shape.

    They are ``argmin_{v >= u} v^T G v``, solved for ``v - u``. G must be positive definite: add a ridge first.

    Source: Lopez-Paz and Ranzato, NeurIPS 2017, arXiv 1706.08840
    """
    if weights.ndim == 2:
        return weights + nonnegative_quadratics(gram, -(weights @ gram))
    return weights + nonnegative_quadratic(gram, -(gram @ weights))


def balance_point(gram: Float[Tensor, "t t"], power: float = 1.0, *, ridge: float = RIDGE, iterations: int = 200
                  ) -> Float[Tensor, " t"]:
    """The weights ``a > 0`` with ``(G + ridge diag G) a = a^-power``; all tasks must be present.

    They minimize a convex function; power 1 is the Nash bargaining solution. Where gradients cancel (at a
    Pareto stationary point), there is no solution without the ridge; with it, weights grow to ``ridge^(-1/2)`` times
    those of tasks that do not interfere (for power 1).

    Both ``a`` and the products ``z = G a`` are kept positive, as in an interior-point method, and Newton's method is
    applied to ``log z + power * log a = 0``, so that its steps are good however many orders of magnitude a spans.

    Source: Navon et al., ICML 2022, arXiv 2202.01017 (power 1); Ban and Ji, ICML 2024, arXiv 2402.15638
    """
    cosine, lengths = cosines(gram)
    matrix = cosine + ridge * torch.eye(len(gram), dtype=gram.dtype)
    # In x = a * lengths the equation is matrix @ x = lengths^(power - 1) * x^-power.
    target = (power - 1) * lengths.log()
    x = (target / (1 + power)).exp()
    z, before = x.clone(), torch.inf
    for _ in range(iterations):
        linear, product = z - matrix @ x, target - z.log() - power * x.log()
        error = max(float((linear / z).abs().max()), float(product.abs().max()))
        if error < 1e-13 or (error < 1e-3 and error > before / 2):  # solved, or as well as rounding allows
            break
        before = error
        dx = torch.linalg.solve(matrix + (power * z / x).diag(), linear + z * product)
        dz = z * (product - power * dx / x)
        # At most 0.9 of the way to where an entry of x or z would be zero and have no logarithm.
        shrink = max(float((-dx / x).max()), float((-dz / z).max()), 0.0)
        step = min(1.0, 0.9 / shrink) if shrink > 0 else 1.0
        x, z = x + step * dx, z + step * dz
    return x / lengths


def conflict_averse_point(gram: Float[Tensor, "t t"], c: float) -> tuple[Float[Tensor, " t"], float]:
    """The weights w on the simplex that minimize ``g_w . g_0 + c |g_0| |g_w|``, and the length of g_w over ``c |g_0|``.

    ``g_w = J^T w`` and g_0 is the mean of the rows. With m the returned ratio, g_w is the point of the convex hull of
    the rows that is nearest to ``-m g_0``, that is, the shortest vector in the hull of the rows ``g_i + m g_0``; so
    the search is for the one number m with ``|g_w| = m c |g_0|``.

    Where g_0 is zero, all w are equally good: weights are then equal, and the ratio is infinite, so that g_w has no
    part in the step.

    Source: Liu et al., NeurIPS 2021, arXiv 2110.14048 (the dual problem there); c must be above zero
    """
    onto_mean = gram.mean(1)
    squared = onto_mean.mean()
    if float(squared) <= len(gram) * torch.finfo(gram.dtype).eps * float(gram.diagonal().max()):
        return torch.full_like(onto_mean, 1 / len(gram)), math.inf  # g_0, and thus the radius, is zero but for rounding
    radius = c * float(squared.sqrt())

    def excess(ratio: float) -> tuple[float, Tensor]:
        shifted = gram + ratio * (onto_mean + onto_mean[:, None]) + ratio**2 * squared
        weights = min_norm_point(shifted)
        return float((weights @ gram @ weights).clamp(min=0).sqrt()) - ratio * radius, weights

    high = float(gram.diagonal().max().sqrt()) / radius  # no vector of the hull is longer than its longest row
    low = 1e-6 * high
    (above, lowest), (below, weights) = excess(low), excess(high)
    if above <= 0:
        # The ratio is below the first bracket. No vector of the hull is shorter than the shortest one, so m is at least
        # its length over the radius.
        shortest = min_norm_point(gram)
        squares = float(shortest @ gram @ shortest)
        if squares <= 1e-12 * float(shortest @ gram.abs() @ shortest):
            return lowest, low  # zero is on the boundary of the hull, and g_w / m no longer changes with m
        high, below, weights = low, above, lowest
        low = squares**0.5 / radius
        if low >= high:  # up to rounding
            return lowest, squares**0.5 / radius
        above, _ = excess(low)
    side, ratio = 0, high
    for _ in range(100):  # regula falsi; halving the value at an end that stays (Illinois) keeps it from stalling
        if high - low <= 1e-14 * high or below == above:
            break
        ratio = (low * below - high * above) / (below - above)
        value, weights = excess(ratio)
        if abs(value) <= 1e-13 * ratio * radius:
            break
        if value > 0:
            low, above = ratio, value
            below, side = (below / 2 if side == 1 else below), 1
        else:
            high, below = ratio, value
            above, side = (above / 2 if side == -1 else above), -1
    return _without_ridge(gram, onto_mean, radius, weights, ratio)


def _without_ridge(gram: Float[Tensor, "t t"], onto_mean: Float[Tensor, " t"], radius: float,
                   weights: Float[Tensor, " t"], ratio: float) -> tuple[Float[Tensor, " t"], float]:
    """The conflict-averse point in closed form, once it is known which tasks have a weight.

    The ridge of :func:`min_norm_point` is negligible against every row, but not against a combination of rows that is
    shorter than the rows by many orders of magnitude. Where that violates the optimality conditions (all tasks with a
    weight gain the same ``g_i . d``, and no task gains less), the equations of the tasks with a weight are solved once
    more without the ridge: their weights are ``a + m b``, linear in the ratio m, with ``a = p / sum p``, ``b = p sum q
    / sum p - q``, ``G p = 1`` and ``G q = J g_0``.
    """
    def miss(w: Tensor, m: float) -> float:
        gains = onto_mean + gram @ w / m
        return float(((w @ gains - gains) / (w @ gains).abs()).max())

    used = weights > 0
    cosine, lengths = cosines(gram[used][:, used])
    solved, failed = torch.linalg.solve_ex(cosine, torch.stack([1 / lengths, onto_mean[used] / lengths], 1))
    p, q = (solved / lengths[:, None]).unbind(1)
    squared = (1 / p.sum()) / (radius**2 - q @ onto_mean[used] + q.sum() ** 2 / p.sum())
    m = float(squared.sqrt())
    exact = torch.zeros_like(weights)
    exact[used] = p / p.sum() + m * (p * q.sum() / p.sum() - q)
    if int(failed) or not 0 < m < math.inf or bool((exact < 0).any()):
        return weights, ratio
    before = miss(weights, ratio)
    return (exact, m) if before > 1e-9 and miss(exact, m) < before else (weights, ratio)


def balanced_transform(gram: Float[Tensor, "t t"], scale: str = "min", *, floor: float = 0.0) -> Float[Tensor, "t t"]:
    """The symmetric B (t t) for which ``B G B`` has equal eigenvalues: gradients become orthogonal and equally long.

    Args:
        gram: a Gram matrix.
        scale: their length: the ``min``, ``median``, or root mean square (``rmse``) of the singular values of J that
            are above the floor.
        floor: singular values below this share of the largest are taken as zero, as are those within rounding. In the
            decade above the floor, values fade out, and the ``min`` passes gradually to that of the others; otherwise
            a value that crosses the floor would multiply the step by thousands.

    Source: Senushkin et al., CVPR 2023, arXiv 2305.19000
    """
    eigenvalues, vectors = torch.linalg.eigh(gram)
    largest = eigenvalues[-1].clamp(min=TINY)
    kept = eigenvalues > largest * max(len(gram) * torch.finfo(gram.dtype).eps, floor**2)
    if not kept.any():
        return torch.zeros_like(gram)
    eigenvalues, vectors = eigenvalues[kept], vectors[:, kept]

    def length(values: Float[Tensor, " r"]) -> Tensor:
        return {"min": values.min(), "median": values.median(), "rmse": values.mean()}[scale].sqrt()

    if floor == 0 or bool((eigenvalues >= largest * min(FADE * floor, 1.0)**2).all()):
        return length(eigenvalues) * (vectors / eigenvalues.sqrt()) @ vectors.T
    # How much each value counts: from 0 at the floor to 1 where it is safe.
    counts = ((eigenvalues / largest).sqrt() / floor).log().div(math.log(min(FADE, 1 / floor))).clamp(0, 1)
    logarithms = [length(eigenvalues[k:]).log() for k in range(len(counts))]

    def faded(k: int) -> Tensor:
        """The length when value k counts in full, and each smaller one by its share in ``counts``."""
        found = logarithms[k]
        for smaller in range(k - 1, -1, -1):
            found = torch.lerp(found, logarithms[smaller], counts[smaller])
        return found.exp()

    factors = torch.stack([count.square() * faded(k) for k, count in enumerate(counts)])
    return (vectors * (factors / eigenvalues.sqrt())) @ vectors.T
