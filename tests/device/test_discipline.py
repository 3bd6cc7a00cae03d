"""What the first run on a real accelerator would stumble over, found without one: everything is computed on ``cuda:1``
of a machine with two pretended devices, where tensors of two devices do not mix and every wait of the host is counted.

The host may wait where the lists below say so, with the reason. Everywhere else a wait in a step fails here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretended import Pretended
from safetensors.torch import load_file
from torch import Tensor, nn

from polyptych import devices
from polyptych.balancers._base import CATALOG as BALANCERS
from polyptych.balancers._gradients import GramBalancer, JacobianBalancer
from polyptych.balancers._weighing import LossBalancer
from polyptych.data.transforms import collate
from polyptych.datasets.rooms import Rooms
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.evaluation import Evaluator
from polyptych.network import Network
from polyptych.optim import Optimizer
from polyptych.passes import total_loss
from polyptych.prediction.model import RunModel
from polyptych.prediction.predictor import Inference, Predictor
from polyptych.recipes.rooms import rooms
from polyptych.run import Execution, Loading, Monitoring, Run
from polyptych.tasks._base import CATALOG as TASKS
from polyptych.training import Trainer
from polyptych.types import Output
from trying_encoders import backbone, names

OWN = torch.device("cuda:1")

WAITS_OF_BALANCERS = {
    "moco": 2, "db_mtl": 2,  # their memory moves only if the rows are finite, and is then multiplied with itself
}
"""In a step, of methods that solve their problem on the host: one, for all that it is about, unless named here."""

WAITS_OF_FLOAT16 = 1
"""In a step: torch's scaler asks whether a gradient overflowed before it lets the optimizer step."""

TINY = {"semseg": 4, "depth": 1, "normals": 3}


@pytest.fixture
def machine() -> Iterator[Pretended]:
    with Pretended("cuda", devices=2) as pretended:
        yield pretended


def levels(name: str) -> list[dict[str, object]]:
    """Options of every level that a balancer has, and those that choose another way through the engine."""
    kind = BALANCERS.load(name)
    if issubclass(kind, LossBalancer):
        return [{}, {"sum_to": "mean"}]
    if issubclass(kind, JacobianBalancer):
        both = "combine_maps" in vars(kind)
        return [{"level": "parameters", "clip_shared": 1.0}, *([{"level": "representation"}] if both else [])]
    return [{"level": level, "clip_shared": 1.0} for level in ("parameters", "representation", "layer")] + [
        {"weight_heads": False}, {"every": 2}]


def allowed(name: str) -> int:
    return 0 if issubclass(BALANCERS.load(name), LossBalancer) else WAITS_OF_BALANCERS.get(name, 1)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.2))
        self.last = nn.Conv2d(4, 4, 1)
        self.heads = nn.ModuleDict({task: nn.Conv2d(4, c, 1) for task, c in TINY.items()})

    def forward(self, x: Tensor) -> Output:
        z = self.last(self.trunk(x))
        return Output({task: head(z) for task, head in self.heads.items()}, shared=(z,))


def marks(number: int) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if number else []


@pytest.mark.parametrize(("name", "options"), [
    pytest.param(name, options, id=f"{name}-{'-'.join(map(str, options.values()))}", marks=marks(number))
    for name in BALANCERS.names() for number, options in enumerate(levels(name))])
def test_a_balancers_step_waits_no_more_than_it_says(name, options, machine):
    torch.manual_seed(0)
    network = Tiny().to(OWN)
    kind = BALANCERS.load(name)
    likelihoods = {"likelihoods": {}} if name == "uncertainty" else {}
    balancer = kind.Config(**options).build(standard_weights=dict.fromkeys(TINY, 1.0), **likelihoods).to(OWN)
    optimizer = Optimizer(kind="adam").build(network, balancer)
    images = [torch.randn(2, 3, 6, 6).to(OWN) for _ in range(2 * getattr(balancer, "splits", 1))]

    def forward(image: Tensor) -> tuple[dict[str, Tensor], Output]:
        output = network(image)
        return {task: x.square().mean() for task, x in output.final.items()}, output

    counted = []
    for step, parts in enumerate((1, 2, 2, 1)):
        machine.waits.clear()
        active = {"semseg", "normals"} if step == 2 else None
        balancer.accumulate([lambda image=image: forward(image) for image in
                             images[:parts * getattr(balancer, "splits", 1)]], network, 1.0, active)
        optimizer.step()
        optimizer.zero_grad()
        if balancer.wants_after_step:
            balancer.after_step(lambda: {task: x.detach() for task, x in forward(images[0])[0].items()})
        counted.append(dict(machine.waits))
        if step == 1:
            balancer.on_epoch_end(dict.fromkeys(TINY, 1.0))
    per_copy = 2 if options.get("level") == "representation" and issubclass(kind, JacobianBalancer) else 1
    most = [allowed(name) * (per_copy if parts > 1 else 1) for parts in (1, 2, 2, 1)]
    assert all(sum(found.values()) <= most for found, most in zip(counted, most, strict=True)), counted


# -- whole runs --------------------------------------------------------------------------------------------------


def small(device: str = "cuda:1", precision: str = "float32", **choices: object) -> Run:
    chosen = {"tasks": {task: TASKS.load(task).Config() for task in ("semseg", "depth", "saliency")}} | choices
    return replace(
        rooms(), dataset=Rooms.Config(size=(32, 64), val_frames=2, test_frames=2), size=(32, 64),
        backbone=backbone("shared"), steps=4, batch_size=2, loading=Loading(check=0),
        execution=Execution(device=device, precision=precision),
        monitoring=Monitoring(log_every=4, validate_every=4, save_every=2, examples=0, trivial_samples=2), **chosen)


class Going:
    """A trainer and its batches."""

    def __init__(self, run: Run, folder: Path, resume: bool = False):
        self.trainer = Trainer(run, folder, resume)
        self.batches = iter(self.trainer.batches)

    def step(self) -> None:
        self.trainer.step([next(self.batches) for _ in range(self.trainer.run.accumulate)])

    def result(self) -> dict[str, Tensor]:
        self.trainer._save()
        self.trainer.held.close()
        return load_file(self.trainer.last)


WAYS = {
    "plain": {},
    "everything": {"ema": 0.9, "clip": 1.0, "accumulate": 2},
    "sgd": {"optimizer": Optimizer(kind="sgd")},
    "adamw": {"optimizer": Optimizer(kind="adamw")},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16", "clip": 1.0},
    "famo": {"balancer": BALANCERS.load("famo").Config()},
    "mgda": {"balancer": BALANCERS.load("mgda").Config()},
}
FAST_WAYS = ("everything", "float16")


@pytest.mark.parametrize("way", [way if way in FAST_WAYS else pytest.param(way, marks=pytest.mark.slow)
                                 for way in WAYS])
def test_a_step_of_a_run_does_not_wait(way, machine, tmp_path):
    going = Going(small(**WAYS[way]), tmp_path / "run")
    going.step()
    machine.waits.clear()
    going.step()
    most = (WAITS_OF_FLOAT16 if way == "float16" else 0) + (1 if way == "mgda" else 0)
    assert sum(machine.waits.values()) <= most, machine.waits
    going.result()


def test_a_resumed_run_draws_what_the_whole_one_draws_on_its_own_device(machine, tmp_path):
    """On another device than the current one, with a network that draws; the states of other devices stay."""
    others = machine.generators[0].get_state()
    run = small(balancer=BALANCERS.load("famo").Config())
    run = replace(run, decoder=DECODERS.load("heads").Config())

    def dropping(going: Going) -> Going:
        going.trainer.state.network.encoder.register_forward_hook(
            lambda _, args, out: replace(out, tasks={
                task: replace(f, maps=tuple(nn.functional.dropout(x, 0.3) for x in f.maps))
                for task, f in out.tasks.items()}))
        return going

    whole = dropping(Going(run, tmp_path / "whole"))
    after_building = machine.generators[0].get_state()
    for _ in range(2):
        whole.step()
    whole.trainer._save()
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    for name in ("run.json", "checkpoints/last.safetensors"):
        (tmp_path / "again" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    for _ in range(2):
        whole.step()
    machine.generators[1].manual_seed(99)  # whatever was drawn elsewhere in the meantime
    expected = whole.result()
    again = dropping(Going(run, tmp_path / "again", resume=True))
    for _ in range(2):
        again.step()
    found = again.result()
    differ = [name for name, value in expected.items() if not torch.equal(value, found[name])
              and name not in ("random.cuda",)]
    assert differ == []
    assert torch.equal(after_building, machine.generators[0].get_state()) and others is not None


def test_a_run_on_the_cpu_does_not_start_the_accelerator(machine, tmp_path):
    going = Going(small(device="cpu", ema=0.9), tmp_path / "run")
    going.step()
    going.trainer.evaluator.evaluate(going.trainer.state.network, "val")
    assert "random.cuda" not in going.result()
    assert machine.started == [] and machine.waits == {}


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_evaluation_and_resume_on_every_kind_of_device(kind, tmp_path):
    """MPS has no float64 at all: whatever is summed up in it is summed up elsewhere."""
    with Pretended(kind, devices=1) as machine:
        going = Going(small(device="auto", ema=0.9), tmp_path / "run")
        assert going.trainer.device.type == kind
        going.step()
        machine.waits.clear()
        going.step()
        assert machine.waits == {}
        found = going.trainer.evaluator.evaluate(going.trainer.state.average, "val", final=True)
        assert all(math.isfinite(task.headline_value) for task in found.tasks.values())
        going.trainer._save()
        going.trainer.held.close()
        again = Going(small(device="auto", ema=0.9), tmp_path / "run", resume=True)
        again.step()
        again.result()
        assert kind != "mps" or machine.doubles == {}
