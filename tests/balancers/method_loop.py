"""A training loop around any method of the catalog, in one process or several; run as a program, it writes what every
method ends with."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_network import Small
from torch import Tensor, nn

from polyptych import distributed
from polyptych.balancers._base import CATALOG, Balancer, add
from polyptych.balancers._engine import undisturbed
from polyptych.checkpoint import TrainingState
from polyptych.optim import Optimizer
from polyptych.types import Output

NAMES = {"a": "semseg", "b": "depth", "c": "normals"}
STANDARD = {"semseg": 1.0, "depth": 1.0, "normals": 10.0}
BATCH = 12  # whatever the number of processes and micro-batches


class Network(Small):
    """With the tasks' usual names, and with noise in training where that is asked for."""

    def __init__(self, drop: float = 0.0):
        super().__init__()
        self.second = nn.Sequential(self.second, nn.Dropout(drop))

    def forward(self, x: Tensor) -> Output:
        output = super().forward(x)
        return Output({NAMES[task]: value for task, value in output.final.items()}, shared=output.shared)


def batch(step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Image, target and mask. In odd steps the second half has no depth; in step 2 there are no normals at all."""
    random = torch.Generator().manual_seed(step)
    image = torch.randn(BATCH, 3, 8, 8, dtype=torch.float64, generator=random)
    target = {task: torch.randn(BATCH, 2, 4, 4, dtype=torch.float64, generator=random) for task in STANDARD}
    valid = {task: torch.rand(BATCH, 4, 4, generator=random) < 0.7 for task in STANDARD}
    if step % 2:
        valid["depth"][BATCH // 2:] = False
    if step == 2:
        valid["normals"][:] = False
    return image, target, valid


class Loop:
    def __init__(self, name: str, parts: int = 1, drop: float = 0.0, **options):
        torch.manual_seed(0)
        network = Network(drop).double()
        self.balancer: Balancer = CATALOG.load(name).Config(**options).build(standard_weights=STANDARD)
        self.parts = parts * getattr(self.balancer, "splits", 1)
        self.state = TrainingState(
            network, self.balancer, Optimizer(kind="adam", learning_rate=0.01).build(network, self.balancer),
            torch.amp.GradScaler("cpu", enabled=False))
        with undisturbed(network):
            self.balancer.prepare(network, network(batch(0)[0]))
        self.model = network
        if self.balancer.one_backward:
            self.model = distributed.parallel(network, torch.device("cpu"), self.balancer.reach.unused)

    def losses(self, data, part: slice) -> tuple[dict[str, Tensor], Output]:
        image, target, valid = data
        output = self.model(image[part])
        return {task: (output.final[task] - target[task][part]).pow(2).mul(valid[task][part, None]).sum()
                * (distributed.world() / max(int(valid[task].sum()), 1)) for task in STANDARD}, output

    def step(self) -> dict[str, float]:
        state, data = self.state, batch(self.state.step)
        own = BATCH // distributed.world()
        size, start = own // self.parts, own * distributed.rank()
        passes = [partial(self.losses, data, slice(start + i * size, start + (i + 1) * size))
                  for i in range(self.parts)]
        random = torch.get_rng_state()
        losses, weights = self.balancer.accumulate(passes, state.network,
                                                   active={task for task in STANDARD if data[2][task].any()})

        def again() -> dict[str, Tensor]:
            total: dict[str, Tensor] = {}
            with undisturbed(state.network), torch.no_grad():
                torch.set_rng_state(random)
                for run in passes:
                    total = add(total, run()[0])
            return {task: distributed.mean(loss) for task, loss in total.items()}

        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        if self.balancer.wants_after_step:
            self.balancer.after_step(again)
        if state.step % 2 == 0:
            self.balancer.on_epoch_end({task: float(distributed.mean(loss)) for task, loss in losses.items()})
            self.balancer.on_validation({"semseg": {"mIoU": 20.0 + 3 * state.step}, "depth": {"delta1": 40.0},
                                         "normals": {"within_11.25": 10.0 + state.step}})
        return {task: float(weight) for task, weight in weights.items()}

    def result(self) -> dict[str, Tensor]:
        return {f"{part}.{name}": value.detach().clone() for part in ("network", "balancer")
                for name, value in getattr(self.state, part).state_dict().items()}


def main(out: Path, steps: int) -> None:
    with distributed.group(torch.device("cpu")):
        found = {}
        for name in CATALOG.names():
            loop = Loop(name)
            for _ in range(steps):
                loop.step()
            found |= {f"{name}/{key}": value for key, value in loop.result().items()}
        save_file(found, out / f"{distributed.rank()}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
