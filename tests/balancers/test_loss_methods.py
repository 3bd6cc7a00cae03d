"""Methods that see losses only, each against a plain transcription of its paper's equations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from loss_toy import TASKS, build, check, softmax, spread
from torch import nn

from polyptych.balancers.dtp import DTP
from polyptych.balancers.dwa import DWA
from polyptych.balancers.famo import FAMO
from polyptych.balancers.gls import GLS
from polyptych.balancers.rlw import RLW
from polyptych.balancers.scale_invariant import ScaleInvariant
from polyptych.balancers.stch import STCH
from polyptych.balancers.uncertainty import Uncertainty
from polyptych.balancers.uw_so import UWSO
from polyptych.recipes.rooms import rooms
from polyptych.tasks._base import CATALOG
from polyptych.tasks.boundaries import Boundaries
from polyptych.tasks.classification import Classification
from polyptych.tasks.depth import Depth
from polyptych.tasks.keypoints import Keypoints
from polyptych.tasks.normals import Normals
from polyptych.tasks.semseg import SemanticSegmentation
from polyptych.types import LabelInfo

# -- every method against its equations ------------------------------------------------------------------------------

def test_gls_is_the_gradient_of_the_geometric_mean():
    def rule(losses, active):
        total = math.prod(losses[t] for t in active) ** (1 / len(active))
        return spread([total / (len(active) * losses[t]) for t in sorted(active)], active)

    check(GLS.Config(), rule)


def test_scale_invariant_is_the_gradient_of_the_logarithms():
    check(ScaleInvariant.Config(), lambda losses, active: spread([1 / losses[t] for t in sorted(active)], active))


@pytest.mark.parametrize("smoothing", [0.0, 0.7])
def test_uw_so(smoothing):
    average = {}

    def rule(losses, active):
        for t in sorted(active):
            average[t] = smoothing * average[t] + (1 - smoothing) * losses[t] if t in average else losses[t]
        return spread(softmax([1 / average[t] / 4 for t in sorted(active)]), active)

    check(UWSO.Config(temperature=4.0, smoothing=smoothing), rule)


@pytest.mark.parametrize("revised", [False, True])
def test_uncertainty(revised):
    s = [0.5] * 3
    # cross entropy, absolute error, and squared error as asked for
    a, b = ([0.5] * 3, None) if revised else ([1.0, 1.0, 0.5], [0.5, 1.0, 0.5])

    def rule(losses, active):
        weights = spread([a[t] * math.exp(-s[t]) for t in sorted(active)], active)
        for t in active:
            push = 1 / (1 + math.exp(-s[t])) if revised else b[t]
            s[t] -= 0.1 * (push - weights[t] * losses[t])
        return weights

    check(Uncertainty.Config(start=0.5, revised=revised, likelihoods={"normals": "gaussian"}), rule)


@pytest.mark.parametrize("n", [1, 2])
def test_dwa_by_steps(n):
    seen = {t: [] for t in range(3)}

    def rule(losses, active):
        ratios = [sum(seen[t][-n:]) / sum(seen[t][-2 * n:-n]) if len(seen[t]) >= 2 * n else 1.0 for t in sorted(active)]
        for t in active:
            seen[t].append(losses[t])
        return spread([len(active) * w for w in softmax([r / 2 for r in ratios])], active)

    check(DWA.Config(window=n), rule)


def test_dwa_by_epochs():
    balancer, loss = build(DWA.Config()), torch.tensor([1.0, 2, 3], dtype=torch.float64)
    epochs = [{"semseg": 4.0, "depth": 1.0, "normals": 3.0}, {"semseg": 2.0, "normals": 3.3},
              {"semseg": 1.5, "depth": 0.9, "normals": 3.0}]
    assert torch.equal(balancer.weigh(loss, TASKS), torch.ones(3))
    balancer.on_epoch_end(epochs[0])
    assert torch.equal(balancer.weigh(loss, TASKS), torch.ones(3))
    balancer.on_epoch_end(epochs[1])  # no depth in this one
    w = softmax([0.5 / 2, 1 / 2, 1.1 / 2])
    torch.testing.assert_close(balancer.weigh(loss, TASKS), loss.new_tensor([3 * x for x in w]))
    balancer.on_epoch_end(epochs[2])
    w = softmax([1.5 / 2 / 2, 0.9 / 2, 3.0 / 3.3 / 2])
    torch.testing.assert_close(balancer.weigh(loss, TASKS), loss.new_tensor([3 * x for x in w]))


@pytest.mark.parametrize("preferences", [{}, {"depth": 2.5, "normals": 0.4}])
def test_stch_is_the_gradient_of_the_soft_maximum(preferences):
    balancer = build(STCH.Config(mu=0.6, warmup=2, preferences=preferences))
    preferred = torch.tensor([preferences.get(task, 1.0) for task in TASKS], dtype=torch.float64)
    losses = torch.tensor([0.4, 7.0, 2.0], dtype=torch.float64, requires_grad=True)
    (warm,) = torch.autograd.grad(losses.log().sum(), losses)
    for _ in range(2):  # the warm-up; the nadir is that of the epoch after it, as in the authors' code
        balancer.on_epoch_end({"semseg": 9.0, "depth": 9.0, "normals": 9.0})
        torch.testing.assert_close(balancer.weigh(losses.detach(), TASKS), warm)
    balancer.on_epoch_end({"semseg": 0.5, "depth": 8.0})  # no label for normals
    balancer.on_epoch_end({"semseg": 0.1, "depth": 0.1, "normals": 4.0})
    nadir = losses.new_tensor([0.5, 8.0, 4.0])
    (expected,) = torch.autograd.grad(3 * 0.6 * torch.logsumexp(preferred * (losses / nadir).log() / 0.6, 0), losses)
    torch.testing.assert_close(balancer.weigh(losses.detach(), TASKS), expected)


def test_stch_gives_a_task_without_a_nadir_its_warm_up_weight():
    balancer, losses = build(STCH.Config(warmup=1)), torch.tensor([0.4, 7.0, 2.0], dtype=torch.float64)
    balancer.on_epoch_end({"semseg": 0.7, "depth": 7.0, "normals": 1.0})
    balancer.on_epoch_end({"semseg": 0.5, "depth": 8.0})
    weights = balancer.weigh(losses, TASKS)
    assert float(weights[0]) != pytest.approx(1 / 0.4)
    assert float(weights[2]) == 0.5 and float((weights * losses)[:2].sum()) == pytest.approx(2)


class NaiveFAMO:
    """With an Adam of torch's for every task's logit; the second pass is the toy's own."""

    def __init__(self, lazy):
        self.logits = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(3)]
        self.optimizers = [torch.optim.Adam([x], lr=0.025, weight_decay=1e-2) for x in self.logits]
        self.before, self.lazy = {}, lazy

    def __call__(self, losses, active):
        d = {t: losses[t] - (0.01 if t == 1 else 0) + 1e-8 for t in sorted(active)}
        if self.lazy:
            self.learn(d)
        self.before = {**(self.before if self.lazy else {}), **d}
        z = softmax([self.logits[t].item() for t in sorted(active)])
        c = 1 / sum(p / d[t] for p, t in zip(z, sorted(active), strict=True))
        return spread([c * p / d[t] for p, t in zip(z, sorted(active), strict=True)], active)

    def after(self, losses, active):
        if not self.lazy:
            self.learn({t: losses[t] - (0.01 if t == 1 else 0) + 1e-8 for t in sorted(active)})

    def learn(self, d):
        both = [t for t in d if t in self.before]
        if both:
            delta = torch.tensor([math.log(self.before[t]) - math.log(d[t]) for t in both], dtype=torch.float64)
            with torch.enable_grad():
                torch.stack([self.logits[t] for t in both]).softmax(0).backward(delta)
            for t in both:
                self.optimizers[t].step()
                self.optimizers[t].zero_grad()


@pytest.mark.parametrize("lazy", [False, True])
def test_famo(lazy):
    check(FAMO.Config(lazy=lazy, decay=1e-2, lowest={"depth": 0.01}), NaiveFAMO(lazy))


def test_rlw_is_the_softmax_of_normal_noise():
    balancer, draws = build(RLW.Config()), []
    for _ in range(2000):
        weights = balancer.backward({task: torch.ones((), requires_grad=True) for task in TASKS}, nn.Identity(), None)
        draws.append([float(w) for w in weights.values()])
    draws = np.array(draws)
    np.testing.assert_allclose(draws.sum(1), 1, rtol=1e-5)
    gaps = np.log(draws[:, 0] / draws[:, 1])  # of two independent standard normals
    assert abs(gaps.mean()) < 0.1 and abs(gaps.var() - 2) < 0.2
    assert abs(np.mean(np.abs(gaps) < math.sqrt(2)) - 0.6827) < 0.03
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.06


# -- dynamic task prioritization -------------------------------------------------------------------------------------

def focal(k, gamma):
    return -((1 - k) ** gamma) * math.log(k)


def test_dtp_follows_the_tasks_own_metrics():
    balancer, losses = build(DTP.Config(gamma=2.0, smoothing=0.25)), torch.ones(3)
    assert torch.equal(balancer.weigh(losses, TASKS), torch.ones(3))
    balancer.on_validation({"semseg": {"pixel_accuracy": 90.0, "mIoU": 40.0}, "depth": {"RMSE": 0.5, "delta1": 99.9},
                            "normals": {"mean": 20.0, "within_11.25": math.nan}})
    expected = [focal(0.4, 2), focal(0.99, 2), 1.0]  # nothing known of normals
    torch.testing.assert_close(balancer.weigh(losses, TASKS), torch.tensor(expected))
    balancer.on_validation({"semseg": {"mIoU": 60.0}, "depth": {"delta1": 0.0}, "normals": {"within_11.25": 30.0}})
    expected = [focal(0.45, 2), focal(0.25 * 0.01 + 0.75 * 0.99, 2), focal(0.3, 2)]
    torch.testing.assert_close(balancer.weigh(losses, TASKS), torch.tensor(expected))


def test_dtp_reads_every_task_that_has_a_share():
    """The metrics that the tasks really report, so that a renamed one is noticed."""
    from polyptych.balancers._indicator import SHARES, indicator
    from polyptych.tasks._base import CATALOG

    found = {}
    for name in CATALOG.names():
        directions = CATALOG.load(name).higher_is_better
        known = [metric for metric in SHARES if metric in directions]
        assert all(directions[metric] for metric in known)
        found[name] = indicator(name, dict.fromkeys(directions, 0.5)) is not None
    assert {name for name, has in found.items() if not has} == {"edge_texture", "keypoints2d"}


def test_dtp_takes_every_metric_as_it_is_measured():
    """All shares, the customary ones and others that may be named, on predictions that are right: 100 percent."""
    from polyptych.balancers._indicator import SHARES, indicator
    from polyptych.metrics.accuracy import Accuracy

    labels = LabelInfo(classes=("one", "two"), unit="m")
    line = torch.zeros(1, 24, 24)
    line[:, 12] = 1
    valid = torch.ones(1, 24, 24, dtype=torch.bool)
    up = torch.tensor([0.0, 0.0, -1.0])[None, :, None, None].expand(1, 3, 24, 24)
    targets = {"semseg": line.long(), "depth": line + 1, "normals": up, "boundaries": line, "saliency": line}
    seen = set()
    for name, target in targets.items():
        task = CATALOG.load(name).Config().build(labels=labels)
        metric = task.metric()
        metric.update(target, target, valid)
        metrics = metric.compute()
        for chosen in (each for each, higher in task.higher_is_better.items() if higher):
            assert indicator(name, metrics, chosen) == pytest.approx(1), (name, chosen)
            seen.add(chosen)
        build(DTP.Config(metrics=dict.fromkeys([name], chosen)), (name,)).on_validation({name: metrics})
    accuracy = Accuracy()
    accuracy.update(torch.eye(2).log(), torch.arange(2), valid.expand(2, 24, 24))
    assert indicator("classification", accuracy.compute()) == 1
    assert set(SHARES) - seen == {"PCK", "top1", "odsF"}
    assert indicator("boundaries", {"odsF": 71.0, "F": 60.0}) == pytest.approx(0.71)


@pytest.mark.slow
def test_dtp_takes_the_benchmark_of_boundaries_as_it_is_measured():
    from polyptych.balancers._indicator import indicator
    from polyptych.metrics.boundary_scores import BoundaryScores

    line, metric = torch.zeros(1, 24, 24), BoundaryScores()
    line[:, 12] = 1
    metric.update(line, line, torch.ones(1, 24, 24, dtype=torch.bool))
    metrics = metric.compute()
    assert indicator("boundaries", metrics) == indicator("boundaries", metrics, "oisF") == 1
    assert 0 <= indicator("boundaries", metrics, "AP") <= 1


def test_dtp_falls_back_on_ratios_of_losses():
    balancer, losses = build(DTP.Config(smoothing=0.5), ("semseg", "edge_texture")), torch.ones(2)
    balancer.on_epoch_end({"semseg": 2.0, "edge_texture": 1.0})
    balancer.on_validation({"semseg": {"mIoU": 40.0}, "edge_texture": {"abs": 0.1}})
    balancer.on_epoch_end({"semseg": 1.0, "edge_texture": 0.8})
    torch.testing.assert_close(balancer.weigh(losses, balancer.tasks), torch.tensor([focal(0.4, 1), focal(0.8, 1)]))
    balancer.on_epoch_end({"edge_texture": 0.9})  # got worse: the ratio is 1, limited to 0.99
    expected = torch.tensor([focal(0.4, 1), focal(0.5 * 0.8 + 0.5 * 0.99, 1)])
    torch.testing.assert_close(balancer.weigh(losses, balancer.tasks), expected)
    normalized = build(DTP.Config(signal="loss", normalize=True), ("semseg", "edge_texture"))
    for loss in (3.0, 1.0):
        normalized.on_epoch_end({"semseg": loss, "edge_texture": 1.0})
    k = torch.tensor([focal(1 / 3, 1), focal(0.99, 1)])
    torch.testing.assert_close(normalized.weigh(losses, normalized.tasks), 2 * k / k.sum())


@pytest.mark.parametrize(("metrics", "said"), [
    ({"depth": "delta4"}, "got 'delta4' for 'depth'; needs one of delta1, odd (nearest: delta1)"),
    ({"depth": "odd"}, "got 'odd' of 'depth' at 450; needs a metric that is a share"),
    ({"depth": "RMSE"}, "balancer.metrics: got 'RMSE' for 'depth', an error; needs a metric that is a share"),
    ({"depth": "error"}, "balancer.metrics: got 'error' for 'depth', an error; needs a metric that is a share"),
])
def test_dtp_refuses_what_is_no_share(metrics, said):
    with pytest.raises(ValueError) as error:
        build(DTP.Config(metrics=metrics)).on_validation({"depth": {"odd": 450.0, "delta1": 50.0}})
    assert said in str(error.value)


@pytest.mark.parametrize(("config", "said"), [
    (DWA.Config(temperature=0.0), "balancer.temperature: got 0; needs a number above 0"),
    (DWA.Config(window=0), "balancer.window: got 0; needs at least 1 step"),
    (UWSO.Config(temperature=math.nan), "balancer.temperature: got nan"),
    (UWSO.Config(smoothing=1.0), "balancer.smoothing: got 1; needs a number of at least 0 and below 1"),
    (STCH.Config(mu=-1.0), "balancer.mu: got -1"),
    (STCH.Config(warmup=-1), "balancer.warmup: got -1"),
    (STCH.Config(preferences={"depth": 0.0}), "balancer.preferences of 'depth': got 0; needs a number above 0"),
    (STCH.Config(preferences={"edges": 1.0}), "balancer.preferences: got an entry for 'edges'"),
    (DTP.Config(gamma=-0.5), "balancer.gamma: got -0.5"),
    (DTP.Config(smoothing=0.0), "balancer.smoothing: got 0"),
    (DTP.Config(metrics={"dept": "delta1"}), "balancer.metrics: got an entry for 'dept'; needs one of depth, normals, "
                                             "semseg (nearest: depth)"),
    (FAMO.Config(learning_rate=0.0), "balancer.learning_rate: got 0"),
    (FAMO.Config(decay=math.inf), "balancer.decay: got inf"),
    (FAMO.Config(lowest={"edges": 0.1}), "balancer.lowest: got an entry for 'edges'"),
    (Uncertainty.Config(start=11.0), "balancer.start: got 11; needs a number from -10 to 10"),
    (Uncertainty.Config(likelihoods={"x": "laplace"}), "balancer.likelihoods: got an entry for 'x'"),
])
def test_refusals(config, said):
    with pytest.raises(ValueError) as error:
        build(config)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_likelihood_belongs_to_the_loss_and_not_to_the_name():
    """Through a run, as training builds it: kinds under other names, and losses that are not the default."""
    run = replace(rooms(), balancer=Uncertainty.Config(likelihoods={"far": "gaussian"}), tasks={
        "material": SemanticSegmentation.Config(), "place": Classification.Config(), "semseg": Depth.Config(),
        "far": Depth.Config(), "square": Depth.Config(loss="l2"), "silog": Depth.Config(loss="silog"),
        "wall": Boundaries.Config(), "joints": Keypoints.Config(), "heat": Keypoints.Config(loss="mse"),
        "facing": Normals.Config(loss="cosine")})
    labels = dict.fromkeys(run.tasks, LabelInfo(classes=("one", "two"), unit="m"))
    assert run.build_balancer(run.build_tasks(labels)).likelihoods == {
        "material": "categorical", "place": "categorical", "semseg": "laplace", "far": "gaussian",
        "square": "gaussian", "silog": "gaussian", "wall": "categorical", "joints": "categorical",
        "heat": "gaussian", "facing": "laplace"}


def test_in_a_loop_of_ones_own_a_name_of_a_kind_has_its_default_likelihood():
    found = build(Uncertainty.Config(), ("saliency", "keypoints", "classification", "depth", "other")).likelihoods
    assert list(found.values()) == ["categorical"] * 3 + ["laplace"] * 2


def test_one_loss_of_nan_does_not_spoil_the_windows_of_dwa() -> None:
    balancer, clean = build(DWA.Config(window=3)), build(DWA.Config(window=3))
    losses = torch.tensor([1.0, 2, 3], dtype=torch.float64)
    for step in range(8):
        now = losses * (1 + step)
        found = balancer.weigh(torch.where(torch.tensor([step == 4, False, False]), torch.nan, now), TASKS)
        assert bool(found.isfinite().all()), step
        if step != 4:
            clean.weigh(now, TASKS)
    assert torch.equal(balancer.recent[0], clean.recent[0]) and balancer.seen.tolist() == [7, 8, 8]


def test_famo_learns_nothing_from_no_losses() -> None:
    balancer = build(FAMO.Config())
    balancer.weigh(torch.tensor([1.0, 2, 3], dtype=torch.float64), TASKS)
    balancer.after_step(dict)
    assert not balancer.x.any() and bool(balancer.before.isinf().all())
