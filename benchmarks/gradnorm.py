"""GradNorm on a toy problem whose two losses differ by a factor of 100, beside equal weights.

    python benchmarks/gradnorm.py --plot docs/images/gradnorm_toy.png

After the toy of the paper (Chen et al., ICML 2018, arXiv 1711.02257): a ReLU network with four shared layers learns
``y_t = tanh((B + E_t) x)`` for 250 random inputs x and 100 outputs per task, on fresh samples at every step. There the
targets are multiplied by 1 and 100; here the losses are, so that the scale is the only difference between the tasks,
and the weights that undo it are known: 2 * 100 / 101 and 2 / 101.

The inverse training rate of a task is the share of its initial loss that is left. Prints it and the weights at some
steps, and one line of JSON; ``--plot FILE`` draws both, as means over 25 steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from polyptych.balancers._base import Balancer
from polyptych.balancers.equal import Equal
from polyptych.balancers.gradnorm import GradNorm
from polyptych.types import Output

SCALES = {"a": 1.0, "b": 100.0}


class Problem:
    """Fresh samples of both functions at every call."""

    def __init__(self, inputs: int, outputs: int, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        common = 10**0.5 * self._normal(outputs, inputs)
        self.matrices = {task: (common + 3.5**0.5 * self._normal(outputs, inputs)) / inputs**0.5 for task in SCALES}

    def sample(self, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        x = self._normal(count, self.matrices["a"].shape[1])
        return x, {task: (x @ matrix.T).tanh() for task, matrix in self.matrices.items()}

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


def train(config: Balancer.Config, *, steps: int, width: int = 100, inputs: int = 250, seed: int = 0
          ) -> tuple[Tensor, Tensor]:
    """Adam at 1e-3 on batches of 100.

    Returns:
        The inverse training rates and the weights, each (steps tasks).
    """
    torch.manual_seed(seed)
    problem, balancer = Problem(inputs, width, seed), config.build(standard_weights=dict.fromkeys(SCALES, 1.0))
    layers = [layer for size in (inputs, width, width, width) for layer in (nn.Linear(size, width), nn.ReLU())]
    network = nn.ModuleDict({"trunk": nn.Sequential(*layers), **{task: nn.Linear(width, width) for task in SCALES}})
    optimizer, losses_by_step, weights_by_step = torch.optim.Adam(network.parameters(), lr=1e-3), [], []
    for _ in range(steps):
        x, targets = problem.sample(100)
        features = network["trunk"](x)
        losses = {task: scale * (network[task](features) - targets[task]).square().mean()
                  for task, scale in SCALES.items()}
        weights = balancer.backward(losses, network, Output({}))
        optimizer.step()
        optimizer.zero_grad()
        losses_by_step.append([loss.item() for loss in losses.values()])
        weights_by_step.append([float(weight) for weight in weights.values()])
    found = torch.tensor(losses_by_step)
    return found / found[0], torch.tensor(weights_by_step)


def plot(traces: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
    labels = {task: f"loss x {scale:g}" for task, scale in SCALES.items()}
    for number, (name, (rates, _)) in enumerate(traces.items()):
        for task, color in ((0, "#2a6f97"), (1, "#c44e52")):
            axes[number].plot(smooth(rates[:, task]), color=color, label=list(labels.values())[task])
        axes[number].set_title(f"{name}: share of the initial loss", fontsize=10)
        axes[number].set_ylim(0, 1.05)
    for task, color in ((0, "#2a6f97"), (1, "#c44e52")):
        axes[2].plot(smooth(traces["GradNorm"][1][:, task]), color=color, label=list(labels.values())[task])
        wanted = 2 / (1 + list(SCALES.values())[task] / list(SCALES.values())[1 - task])
        axes[2].axhline(wanted, color=color, linestyle="--", linewidth=1)
    axes[2].set_title("GradNorm: weights (dashed: 200/101, 2/101)", fontsize=10)
    axes[2].set_yscale("log")
    axes[2].set_ylim(0.005, 5)
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="center right" if axis is axes[2] else "upper right")
    figure.savefig(path, dpi=130)


def smooth(values: Tensor, window: int = 25) -> Tensor:
    """A running mean, as batches are fresh and losses noisy; (steps - window + 1)."""
    return values.unfold(0, window, 1).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--alpha", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    traces = {"equal weights": train(Equal.Config(), steps=args.steps, seed=args.seed),
              "GradNorm": train(GradNorm.Config(alpha=args.alpha), steps=args.steps, seed=args.seed)}
    print("step    share of the initial loss, and weight, of a and b")
    for name, (rates, weights) in traces.items():
        print(name)
        for step in range(0, args.steps, max(args.steps // 6, 1)):
            part = slice(step, step + 25)
            print(f"{step:6d}  {rates[part, 0].mean():.3f} {rates[part, 1].mean():.3f}   "
                  f"{weights[part, 0].mean():.3f} {weights[part, 1].mean():.4f}")
    print(json.dumps({name: {"rates": rates[-100:].mean(0).tolist(), "weights": weights[-100:].mean(0).tolist()}
                      for name, (rates, weights) in traces.items()}))
    if args.plot:
        plot(traces, args.plot)


if __name__ == "__main__":
    main()
