"""Methods that compare gradients beside torchjd's, where both define the same one with the same options."""

from __future__ import annotations

import importlib

import gradient_references as papers
import numpy as np
import pytest
import torch
from gradient_toy import TASKS, build, steps


def theirs(name):
    """(torchjd's aggregator, ours with the same options, factor of our scale)."""
    pytest.importorskip("torchjd", reason="torchjd is in the test extra")
    there = importlib.import_module("torchjd.aggregation")
    table = {
        "upgrad": lambda: (there.UPGrad(), {}, 1),
        "dualproj": lambda: (there.DualProj(), {}, 1),
        "aligned_mtl": lambda: (there.AlignedMTL(), {}, 4),
        "aligned_mtl median": lambda: (there.AlignedMTL(scale_mode="median"), {"scale": "median"}, 4),
        "aligned_mtl rmse": lambda: (there.AlignedMTL(scale_mode="rmse"), {"scale": "rmse"}, 4),
        "config": lambda: (there.ConFIG(), {}, 1),
        "imtl": lambda: (there.IMTLG(), {"scale_losses": False}, 1),
        "mgda": lambda: (there.MGDA(epsilon=1e-12, max_iters=200_000), {"normalization": "none"}, 1),
        "fairgrad": lambda: (there.FairGrad(alpha=2.0), {"alpha": 2.0}, 4),
        "cagrad": lambda: (there.CAGrad(c=0.4), {"c": 0.4}, 4 / (1 + 0.4**2)),
        "nash_mtl": lambda: (there.NashMTL(n_tasks=4, max_norm=0.0), {}, 1),
    }
    try:
        return table[name]()
    except ImportError as missing:  # an extra of torchjd: a solver
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", ["upgrad", "dualproj", "aligned_mtl", "aligned_mtl median", "aligned_mtl rmse",
                                  "config", "imtl", "mgda", "fairgrad", "cagrad", "nash_mtl"])
@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem that is not DPP")
def test_torchjd_agrees(name) -> None:
    aggregator, options, factor = theirs(name)
    # Theirs is a conic solver for CAGrad (whose worst task improves no more than ours), and rounds of one for Nash-MTL.
    tolerance = {"cagrad": 1e-4, "nash_mtl": 1e-5}.get(name, 1e-6)
    for seed in range(4):
        getattr(aggregator, "reset", lambda: None)()
        rows = torch.randn(4, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weights = build(name.partition(" ")[0], **options).solve(
            rows @ rows.T, torch.ones(4, dtype=torch.float64), TASKS)
        torch.testing.assert_close(weights @ rows, factor * aggregator(rows), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["pcgrad", "gradvac"])
def test_torchjd_agrees_on_two_tasks(name) -> None:
    """With two tasks chance has no say."""
    there = pytest.importorskip("torchjd.aggregation", reason="torchjd is in the test extra")
    aggregator = there.PCGrad() if name == "pcgrad" else there.GradVac(beta=0.4)
    ours = build(name, TASKS[:2], **({"beta": 0.4} if name == "gradvac" else {}))
    for seed in range(8):
        rows = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weights = ours.solve(rows @ rows.T, torch.ones(2, dtype=torch.float64), TASKS[:2])
        torch.testing.assert_close(weights @ rows, aggregator(rows), rtol=1e-6, atol=1e-6)


def test_torchjd_agrees_on_excess() -> None:
    there = pytest.importorskip("torchjd.aggregation", reason="torchjd is in the test extra")
    # Without a warm-up its first step takes the excess risk as it is, not as a share.
    aggregator = there.ExcessMTL(robust_step_size=0.5, n_warmup_steps=2)
    for rows, _, found, _ in steps(build("excess_mtl", eta=0.5, warmup=2), 5):
        other = aggregator(torch.from_numpy(rows)).numpy()
        np.testing.assert_allclose(found / papers.norm(found), other / papers.norm(other), rtol=1e-6, atol=1e-6)
