"""Methods that compare gradients, each against a plain transcription of its paper on whole gradients."""

from __future__ import annotations

import gradient_references as papers
import numpy as np
import pytest
import torch
from gradient_toy import TASKS, Toy, build, pair, steps

from polyptych.errors import InputError


def check(name, reference, count=3, tolerance=1e-6, tasks=TASKS, **options):
    balancer = build(name, tasks, **options)
    for _, _, found, expected in steps(balancer, count, reference=lambda g, loss: reference(balancer, g, loss)):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
    assert balancer.fallbacks == 0


@pytest.mark.parametrize("normalization", ["none", "l2", "loss", "loss+"])
@pytest.mark.parametrize("tasks", [TASKS, TASKS[:2]])
def test_mgda(normalization, tasks) -> None:
    check("mgda", lambda _, g, loss: papers.mgda(g, loss, normalization), tasks=tasks, normalization=normalization)


def test_pcgrad() -> None:
    check("pcgrad", lambda balancer, g, _: papers.pcgrad(g, balancer.random()), count=6)


def test_gradvac() -> None:
    average = np.zeros((4, 4))
    check("gradvac", lambda balancer, g, _: papers.gradvac(g, balancer.random(), average, 0.3), count=6, beta=0.3)
    assert np.abs(average).max() > 0.1


@pytest.mark.parametrize("tasks", [TASKS, TASKS[:2]])
def test_imtl_of_gradients(tasks) -> None:
    check("imtl", lambda _, g, loss: papers.imtl_g(g), tasks=tasks, scale_losses=False)


def test_imtl_of_gradients_and_losses() -> None:
    """The scales belong to the step before; each moves towards where its scaled loss is 1."""
    balancer = build("imtl", learning_rate=0.1)
    seen = []

    def reference(rows, losses):
        factors = np.exp(balancer.s.numpy())
        seen.append((losses, factors))
        return papers.imtl_g(factors[:, None] * rows)
    for _, _, found, expected in steps(balancer, 4, reference=reference):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert (seen[0][1] == 1).all()
    losses = seen[0][0]
    assert (np.sign(seen[1][1] - 1) == np.sign(1 - losses)).all() and len(set(np.sign(1 - losses))) == 2


def test_imtl_scales_end_at_inverse_losses() -> None:
    balancer = build("imtl", ("a", "b"), learning_rate=0.05)
    gram = torch.eye(2, dtype=torch.float64)
    for _ in range(400):
        balancer.solve(gram, torch.tensor([0.2, 3.0], dtype=torch.float64), ("a", "b"))
    torch.testing.assert_close(balancer.s.exp(), torch.tensor([5.0, 1 / 3], dtype=torch.float64), rtol=0.02, atol=0)


@pytest.mark.parametrize("c", [0.2, 0.4, 0.8])
def test_cagrad(c) -> None:
    check("cagrad", lambda _, g, loss: papers.cagrad(g, c), tolerance=1e-5, c=c)


def test_cagrad_without_radius_is_the_sum() -> None:
    check("cagrad", lambda _, g, loss: g.sum(0), c=0)


def test_nash_mtl() -> None:
    check("nash_mtl", lambda _, g, loss: papers.fair(g, 1))


@pytest.mark.parametrize("alpha", [0.5, 1, 2, 5])
def test_fairgrad(alpha) -> None:
    check("fairgrad", lambda _, g, loss: 4 * papers.fair(g, 1 / alpha), alpha=alpha)


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_mtl(scale) -> None:
    check("aligned_mtl", lambda _, g, loss: papers.aligned(g, scale), scale=scale)


def test_upgrad() -> None:
    check("upgrad", lambda _, g, loss: papers.upgrad(g, 1e-4))


def test_dualproj() -> None:
    check("dualproj", lambda _, g, loss: papers.dualproj(g, 1e-4))


def test_config() -> None:
    check("config", lambda _, g, loss: papers.config(g))


def chance_of(balancer, number, shape):
    """The random numbers that GradDrop compares with, drawn as it says: from one seed per map."""
    seed = torch.randint(2**62, (number + 1,), generator=balancer.random())[number]
    return torch.rand(shape, generator=torch.Generator().manual_seed(int(seed)), dtype=torch.float64).numpy()


@pytest.mark.parametrize("leak", [{}, {"depth": 0.5, "edges": 1.0}])
def test_graddrop_of_parameters(leak) -> None:
    check("graddrop", lambda balancer, g, _: papers.graddrop(
        g, g, chance_of(balancer, 0, g[0].shape), [leak.get(task, 0) for task in TASKS]), leak=leak)


@pytest.mark.parametrize("leak", [{}, {"depth": 0.5}])
def test_graddrop_of_features(leak) -> None:
    """Gradients times the sign of the features decide for the whole batch."""
    balancer, toy = build("graddrop", level="representation", leak=leak), Toy()
    losses, output = toy.losses(0)
    z, = output.shared
    rows = np.stack([torch.autograd.grad(loss, z, retain_graph=True)[0].numpy() for loss in losses.values()])
    signed = (rows * np.sign(z.detach().numpy())).sum(1)
    combined = papers.graddrop(rows, signed, chance_of(balancer, 0, signed[0].shape),
                               [leak.get(task, 0) for task in TASKS])
    expected = torch.autograd.grad(z, list(toy.trunk.parameters()), torch.from_numpy(combined), retain_graph=True)
    balancer.backward(losses, toy.network, output)
    np.testing.assert_allclose(toy.shared(), torch.cat([g.flatten() for g in expected]).numpy(), atol=1e-12)


def test_graddrop_keeps_every_sign_in_proportion() -> None:
    """Of many places with gradients 3 and -1, three quarters keep the 3."""
    balancer = build("graddrop", ("a", "b"))
    direction, _ = balancer.combine(torch.tensor([[3.0], [-1.0]]).repeat(1, 4000), torch.ones(2), ("a", "b"))
    assert set(direction.tolist()) == {3.0, -1.0}
    assert float((direction == 3).double().mean()) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("sigma", [0, 0.5])
def test_db_mtl(sigma) -> None:
    gradients, losses = [], []

    def reference(balancer, g, loss):
        gradients.append(g)
        losses.append(loss)
        return papers.db_mtl(gradients, losses, 0.9, sigma)
    check("db_mtl", reference, sigma=sigma, count=5)


@pytest.mark.parametrize("options", [{}, {"normalize": True, "onto": "softmax", "rho": 0.1},
                                     {"beta": 0.99, "decay": 0}])
def test_moco(options) -> None:
    gradients, losses = [], []
    given = {"beta": 0.5, "gamma": 0.1, "decay": 0.5, "rho": 0.0, "normalize": False} | options
    softmax = given.pop("onto", "simplex") == "softmax"

    def reference(balancer, g, loss):
        gradients.append(g)
        losses.append(loss)
        return papers.moco(gradients, losses, **given, softmax=softmax)
    check("moco", reference, count=5, **options)


@pytest.mark.parametrize("warmup", [1, 2])
def test_excess_mtl(warmup) -> None:
    gradients = []

    def reference(balancer, g, _):
        gradients.append(g)
        # The first step of the beginning changes nothing: all tasks are at a share of 1.
        return papers.excess_mtl(gradients, 0.5, warmup)
    check("excess_mtl", reference, count=5, eta=0.5, warmup=warmup)


def test_sdmgrad_of_one_batch() -> None:
    gradients = []

    def reference(balancer, g, _):
        gradients.append((g, g, g))
        return papers.sdmgrad(gradients, 0.3, 10.0, 0.5, 20)
    check("sdmgrad", reference, count=4)


def test_sdmgrad_of_three_batches() -> None:
    """Micro-batches are the batches, each with a third of the weight of the whole."""
    balancer, toy, history = build("sdmgrad", batches="independent"), Toy(), []
    for step in range(3):
        thirds = [slice(0, 3), slice(3, 6), slice(6, 8)]
        history.append([3 * toy.rows(toy.losses(step, part)[0]) for part in thirds])
        balancer.accumulate([lambda step=step, part=part: toy.losses(step, part) for part in thirds], toy.network)
        np.testing.assert_allclose(toy.shared(), papers.sdmgrad(history, 0.3, 10.0, 0.5, 20), rtol=1e-7, atol=1e-9)
        toy.descend()
    with pytest.raises(InputError, match="accumulate"):
        balancer.backward(*pair(toy, 0))


@pytest.mark.parametrize("options", [{}, {"gamma": 0.3, "rho": 0.0}])
def test_modo_of_one_batch(options) -> None:
    gradients = []

    def reference(balancer, g, _):
        gradients.append((g, g, g))
        return papers.modo(gradients, **{"gamma": 1e-3, "rho": 0.1} | options)
    check("modo", reference, count=5, **options)


def test_modo_of_three_batches() -> None:
    """Micro-batches are the batches, each with a third of the weight of the whole; heads get the mean of all."""
    balancer, toy, history = build("modo", batches="independent", gamma=0.05), Toy(), []
    for step in range(4):
        thirds = [slice(0, 3), slice(3, 6), slice(6, 8)]
        history.append([3 * toy.rows(toy.losses(step, part)[0]) for part in thirds])
        head = torch.autograd.grad(toy.losses(step)[0]["depth"], toy.heads["depth"].weight)[0]
        balancer.accumulate([lambda step=step, part=part: toy.losses(step, part) for part in thirds], toy.network)
        np.testing.assert_allclose(toy.shared(), papers.modo(history, 0.05, 0.1), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(toy.heads["depth"].weight.grad, head)
        toy.descend()
    assert float(balancer.weights.max() - balancer.weights.min()) > 0.05


@pytest.mark.parametrize(("method", "options"), [("mgda", {}), ("cagrad", {"c": 0.7}), ("nash_mtl", {}),
                                                 ("pcgrad", {})])
def test_cr_mogm_is_the_average_of_another_method(method, options) -> None:
    balancer, bare, found = build("cr_mogm", method=method, options=options, share=0.6), build(method, **options), []
    bare.seed = balancer.seed

    def reference(rows, losses):
        found.append(bare.solve(torch.from_numpy(rows @ rows.T), torch.from_numpy(losses), TASKS).numpy())
        bare.steps += 1
        return papers.cr_mogm(found, 0.6) @ rows
    for _, _, step, expected in steps(balancer, 5, reference=reference):
        np.testing.assert_allclose(step, expected, rtol=1e-8, atol=1e-10)
    assert balancer.fallbacks == 0 and np.ptp(np.array(found), 0).max() > 0.01


def test_cr_mogm_keeps_the_sum_where_some_tasks_have_no_label() -> None:
    balancer, toy = build("cr_mogm", share=0.5), Toy()
    balancer.backward(*pair(toy, 0))
    before = balancer.average.clone()
    weights = balancer.backward(*pair(toy, 1), active=set(TASKS[:2]))
    assert sum(float(w) for w in weights.values()) == pytest.approx(1)
    assert torch.equal(balancer.average[2:], before[2:]) and float(balancer.average.sum()) == pytest.approx(1)


def test_imtl_of_losses_alone() -> None:
    """``exp(s) loss - s`` by Adam on s, in one backward pass; no gradient is compared."""
    balancer, toy = build("imtl", level="parameters", balance_gradients=False, learning_rate=0.1), Toy()
    s = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer, passed = torch.optim.Adam([s], lr=0.1), []
    losses, output = toy.losses(0)
    balancer.follow(toy.network, {task: [loss] for task, loss in losses.items()}, output.shared)

    def watch(module, given, made) -> None:
        made.register_hook(lambda gradient: passed.append(1))

    handle = toy.trunk.register_forward_hook(watch)
    for step in range(4):
        losses, output = toy.losses(step)
        rows, values = toy.rows(losses), torch.stack([loss.detach() for loss in losses.values()])
        passed.clear()
        weights = balancer.backward(losses, toy.network, output)
        assert len(passed) == 1 and not any(name.startswith("gradient_norm") for name in balancer.diagnostics)
        expected = s.exp().detach().numpy()
        np.testing.assert_allclose([float(weights[task]) for task in TASKS], expected, rtol=1e-9)
        np.testing.assert_allclose(toy.shared(), expected @ rows, rtol=1e-9)
        (s.exp() * values - s).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        toy.descend()
    handle.remove()
    whole, parts = (build("imtl", balance_gradients=False) for _ in range(2))
    whole.backward(*pair(toy, 5))
    parts.accumulate([lambda half=half: toy.losses(5, half) for half in (slice(0, 4), slice(4, 8))], toy.network)
    torch.testing.assert_close(parts.s, whole.s)


def test_mgda_compares_features_sample_by_sample() -> None:
    """The upper bound of the paper: one product over all samples, channels and places, not of sums over the batch."""
    balancer, toy = build("mgda", level="representation", normalization="none"), Toy()
    losses, output = toy.losses(0)
    rows = np.stack([torch.autograd.grad(loss, output.shared[0], retain_graph=True)[0].flatten().numpy()
                     for loss in losses.values()])
    weights = balancer.backward(losses, toy.network, output)
    np.testing.assert_allclose(np.array([float(weights[t]) for t in TASKS]) @ rows, papers.mgda(rows), atol=1e-8)


def test_nash_weights_are_inverse_lengths_where_tasks_do_not_interfere() -> None:
    gram = torch.tensor([4.0, 0.25], dtype=torch.float64).diag()
    weights = build("nash_mtl", TASKS[:2]).solve(gram, torch.ones(2, dtype=torch.float64), TASKS[:2])
    torch.testing.assert_close(weights[1] / weights[0], torch.tensor(4.0, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1e-6, 1.0, 900.0])
def test_nash_bargains_over_gradients_as_they_are(size) -> None:
    """The authors' program gets ``M = G / n`` with the Frobenius norm n, for the solver's sake, and takes n back: it
    asks for ``log(n w) + log(M w) = 0``. So the sum has the length of the root of K, whatever the gradients' size, and
    not that which ``M w = 1 / w`` would give."""
    random = torch.Generator().manual_seed(0)
    rows = size**0.5 * torch.randn(3, 20, generator=random, dtype=torch.float64)
    gram = rows @ rows.T
    found = build("nash_mtl", TASKS[:3]).solve(gram, torch.ones(3, dtype=torch.float64), TASKS[:3])
    n = gram.norm()
    assert torch.allclose((n * found).log() + (gram / n @ found).log(), torch.zeros(3, dtype=torch.float64), atol=1e-6)
    assert float((found @ rows).norm()) == pytest.approx(3**0.5)
