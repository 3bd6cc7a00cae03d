"""What the papers of the gradient methods write, on whole gradients (k p) in numpy: plain, slow, and independent of the
package. Every function returns the step for the shared parameters."""

from __future__ import annotations

import itertools

import numpy as np
import scipy.optimize
import torch


def norm(v):
    return np.sqrt((v * v).sum())


def mgda(rows, losses=None, normalization="none"):
    """Every support of the weights is tried."""
    sizes = np.ones(len(rows))
    if "l2" in normalization or normalization == "loss+":
        sizes = sizes * [norm(g) for g in rows]
    if "loss" in normalization:
        sizes = sizes * losses
    unit, best, found = rows / sizes[:, None], np.inf, None
    for count in range(1, len(rows) + 1):
        for support in itertools.combinations(range(len(rows)), count):
            part = unit[list(support)]
            # Equal products with all rows of the support.
            system = np.block([[part @ part.T, np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
            weights = np.linalg.lstsq(system, np.r_[np.zeros(count), 1], rcond=None)[0][:-1]
            if weights.min() >= 0 and norm(weights @ part) < best:
                best, found = norm(weights @ part), (support, weights)
    return sum(w * rows[i] for i, w in zip(*found, strict=True))


def orders(count, random):
    """For every task, the others in random order, as the balancer draws them."""
    for i in range(count):
        yield i, [j for j in torch.randperm(count, generator=random).tolist() if j != i]


def pcgrad(rows, random):
    changed = rows.copy()
    for i, others in orders(len(rows), random):
        for j in others:
            if changed[i] @ rows[j] < 0:
                changed[i] -= changed[i] @ rows[j] / norm(rows[j]) ** 2 * rows[j]
    return changed.sum(0)


def gradvac(rows, random, average, beta):
    """``average`` (k k) is updated in place."""
    changed = rows.copy()
    for i, others in orders(len(rows), random):
        for j in others:
            own, other = norm(changed[i]), norm(rows[j])
            cosine, goal = changed[i] @ rows[j] / own / other, average[i, j]
            if cosine < goal:
                changed[i] += (own * (goal * np.sqrt(1 - cosine**2) - cosine * np.sqrt(1 - goal**2))
                               / (other * np.sqrt(1 - goal**2)) * rows[j])
            average[i, j] = (1 - beta) * goal + beta * cosine
    return changed.sum(0)


def imtl_g(rows):
    """The closed form of the paper, by differences to the first task."""
    unit = rows / np.array([[norm(g)] for g in rows])
    between, across = rows[0] - rows[1:], unit[0] - unit[1:]
    rest = rows[0] @ across.T @ np.linalg.inv(between @ across.T)
    return np.r_[1 - rest.sum(), rest] @ rows


def cagrad(rows, c):
    """The primal problem: the best worst improvement in a ball, times K over 1 + c^2."""
    mean = rows.mean(0)
    basis = np.linalg.qr(rows.T)[0]  # the answer lies in the span of the gradients
    small, center = rows @ basis, mean @ basis
    scale = norm(center)
    small, center, count = small / scale, center / scale, len(basis[0])
    result = scipy.optimize.minimize(
        lambda x: -x[-1], np.r_[center, (small @ center).min()], method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
        constraints=[{"type": "ineq", "fun": lambda x: small @ x[:count] - x[-1]},
                     {"type": "ineq", "fun": lambda x: c**2 - ((x[:count] - center) ** 2).sum()}])
    return len(rows) * basis @ result.x[:count] * scale / (1 + c**2)


def fair(rows, power):
    """``J J^T a = a^-power``, by a root finder for the logarithms of a."""
    result = scipy.optimize.root(lambda b: np.log(np.abs(rows @ (rows.T @ np.exp(b))) + 1e-300) + power * b,
                                 -np.log(((rows @ rows.T) ** 2).sum(1)) / (2 + 2 * power), method="lm", tol=1e-14)
    weights = np.exp(result.x)
    np.testing.assert_allclose(rows @ (rows.T @ weights), weights**-power, rtol=1e-6)
    return weights @ rows


def aligned(rows, scale="min"):
    u, s, v = np.linalg.svd(rows, full_matrices=False)
    length = {"min": s.min(), "median": np.sort(s)[(len(s) - 1) // 2], "rmse": np.sqrt((s**2).mean())}[scale]
    return (length * u @ v).sum(0)


def projected(rows, vector_weights, ridge):
    """The nearest vector in the dual cone. The ridge is one more dimension for every task."""
    whole = np.c_[rows / np.sqrt((rows**2).sum()), np.sqrt(ridge) * np.eye(len(rows))]
    added, _ = scipy.optimize.nnls(whole.T, -(vector_weights @ whole))
    return (vector_weights + added) @ rows


def upgrad(rows, ridge):
    return sum(projected(rows, own, ridge) for own in np.eye(len(rows)) / len(rows))


def dualproj(rows, ridge):
    return projected(rows, np.full(len(rows), 1 / len(rows)), ridge)


def config(rows):
    direction = np.linalg.pinv(rows / np.array([[norm(g)] for g in rows])) @ np.ones(len(rows))
    direction /= norm(direction)
    return sum(g @ direction for g in rows) * direction


def graddrop(rows, signed, chance, leaks):
    """Element by element; ``signed`` are the numbers that decide, ``rows`` those that are added up."""
    result = np.zeros(rows[0].shape)
    for place in np.ndindex(*signed.shape[1:]):
        at = signed[(slice(None), *place)]
        purity = 0.5 * (1 + at.sum() / np.abs(at).sum()) if np.abs(at).sum() else 0.5
        for t, leak in enumerate(leaks):
            keep = (purity > chance[place] and at[t] > 0) or (purity < chance[place] and at[t] < 0)
            here = (..., *place)
            result[here] += (leak + (1 - leak) * keep) * rows[t][here]
    return result


def db_mtl(history, losses, beta, sigma):
    """From the gradients of all steps so far."""
    average = np.zeros_like(history[0])
    for step, (rows, loss) in enumerate(zip(history, losses, strict=True), 1):
        for t in range(len(rows)):
            of_logarithm, past = rows[t] / loss[t], beta / step**sigma
            average[t] = of_logarithm + past * (average[t] - of_logarithm)
    longest = max(norm(m) for m in average)
    return sum(longest / norm(m) * m for m in average)


def simplex(values):
    """By bisection for the number that is subtracted."""
    low, high = values.min() - 1, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(values - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(values - high, 0)


def moco(history, losses, beta, gamma, decay, rho, *, normalize=False, softmax=False):
    tracked, weights = np.zeros_like(history[0]), np.full(len(history[0]), 1 / len(history[0]))
    for step, (rows, loss) in enumerate(zip(history, losses, strict=True), 1):
        for t in range(len(rows)):
            gradient = rows[t] * loss[t] / norm(rows[t]) if normalize else rows[t]
            tracked[t] -= beta / step**decay * (tracked[t] - gradient)
        moved = weights - gamma / step**decay * ((tracked @ tracked.T + rho * np.eye(len(weights))) @ weights)
        weights = np.exp(moved) / np.exp(moved).sum() if softmax else simplex(moved)
    return weights @ tracked


def modo(history, gamma, rho):
    """``history``: for every step three batches of gradients."""
    weights = np.full(len(history[0][0]), 1 / len(history[0][0]))
    for one, two, _ in history:
        weights = simplex(weights - gamma * (one @ (two.T @ weights) + rho * weights))
    return weights @ history[-1][2]


def cr_mogm(found, share):
    """From the weights of the method in every step so far."""
    average = found[0]
    for weights in found[1:]:
        average = share * average + (1 - share) * weights
    return average


def excess_mtl(history, eta, warmup):
    count = len(history[0])
    squares, weights, first = np.zeros_like(history[0]), np.ones(count), np.zeros(count)
    for step, rows in enumerate(history):
        squares += rows**2
        excess = (rows**2 / np.sqrt(squares + 1e-7)).sum(1)
        if step < warmup:
            first += excess / warmup
        else:
            weights = weights * np.exp(eta * excess / first)
            weights *= count / weights.sum()
    return weights @ history[-1]


def sdmgrad(history, pull, rate, momentum, iterations):
    """``history``: for every step three batches of gradients."""
    count = len(history[0][0])
    weights = np.full(count, 1 / count)
    for one, two, three in history:  # noqa: B007
        product = one @ two.T
        product = product / np.sqrt(np.maximum(np.diag(product), 0)).mean() ** 2
        speed = 0
        for _ in range(iterations):
            speed = momentum * speed + product @ (weights + pull / count)
            weights = simplex(weights - rate * speed)
    return count * (weights @ three + pull * three.mean(0)) / (1 + pull)
