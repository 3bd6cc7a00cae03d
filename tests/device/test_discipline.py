"""What the first run on a real accelerator would stumble over, found without one: everything is computed on ``cuda:1``
of a machine with two pretended devices, where tensors of two devices do not mix and every wait of the host is counted.

The host may wait where the lists below say so, with the reason. Everywhere else a wait in a step fails here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretended import Pretended
from safetensors.torch import load_file
from torch import Tensor, nn

from polyptych import devices, distributed
from polyptych.balancers._base import CATALOG as BALANCERS
from polyptych.balancers._gradients import JacobianBalancer
from polyptych.balancers._weighing import LossBalancer
from polyptych.data.transforms import collate, resize_image
from polyptych.datasets.rooms import Rooms
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.ops.deform import deformable_convolution, has_kernels
from polyptych.optim import Optimizer
from polyptych.passes import total_loss
from polyptych.prediction.model import RunModel
from polyptych.prediction.predictor import Inference, Predictor
from polyptych.recipes.rooms import rooms
from polyptych.run import Execution, Loading, Monitoring, Run
from polyptych.search.procedure.automtl import AlternatingTrainer, PretrainTrainer
from polyptych.search.procedure.phases import phase_run
from polyptych.search.procedure.settings import Search
from polyptych.tasks._base import CATALOG as TASKS
from polyptych.training import Trainer
from polyptych.types import Features, Output, TaskFeatures
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
    every_step_waits_no_more(name, options, machine, (2,))


@pytest.mark.parametrize("name", BALANCERS.names())
def test_a_balancers_step_where_there_is_no_float64(name):
    """Tensors on MPS refuse it; the host solves the small problems in it all the same."""
    with Pretended("mps", devices=1) as machine:
        every_step_waits_no_more(name, {}, machine, (1,), torch.device("mps", 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", BALANCERS.names())
def test_nor_do_steps_of_other_sizes_and_tasks(name, machine):
    every_step_waits_no_more(name, {}, machine, (1, 2, 2, 1))


def every_step_waits_no_more(name: str, options: dict[str, object], machine: Pretended, steps: tuple[int, ...],
                             place: torch.device = OWN) -> None:
    """``steps``: how many micro-batches each has; in the third one task has no label."""
    torch.manual_seed(0)
    network = Tiny().to(place)
    kind = BALANCERS.load(name)
    likelihoods = {"likelihoods": {}} if name == "uncertainty" else {}
    balancer = kind.Config(**options).build(standard_weights=dict.fromkeys(TINY, 1.0), **likelihoods).to(place)
    optimizer = Optimizer(kind="adam").build(network, balancer)
    images = [torch.randn(2, 3, 6, 6).to(place) for _ in range(2 * getattr(balancer, "splits", 1))]

    def forward(image: Tensor) -> tuple[dict[str, Tensor], Output]:
        output = network(image)
        return {task: x.square().mean() for task, x in output.final.items()}, output

    counted = []
    for step, parts in enumerate(steps):
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
    by_itself = issubclass(kind, JacobianBalancer) and balancer.config.level == "representation"
    per_copy = 2 if by_itself else 1  # each micro-batch is combined by itself
    most = [allowed(name) * (per_copy if parts > 1 else 1) for parts in steps]
    assert all(sum(found.values()) <= most for found, most in zip(counted, most, strict=True)), counted


def test_the_page_of_balancers_says_how_often_each_waits():
    page = (Path(__file__).parents[2] / "docs" / "balancers.md").read_text(encoding="utf-8")
    table = page.partition("| balancers | before | now |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [row.split("|")[1:4] for row in table]
    said = {name: int(now) for names_of_row, _, now in rows for name in re.findall(r"`(\w+)`", names_of_row)}
    assert said == {name: allowed(name) for name in BALANCERS.names()}


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
    "fused": {"optimizer": Optimizer(fused=True)},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16", "clip": 1.0},
    "float16 mgda": {"precision": "float16", "balancer": BALANCERS.load("mgda").Config()},
    "famo": {"balancer": BALANCERS.load("famo").Config()},
    "mgda": {"balancer": BALANCERS.load("mgda").Config()},
}
FAST_WAYS = ("everything",)


@pytest.mark.parametrize("way", [way if way in FAST_WAYS else pytest.param(way, marks=pytest.mark.slow)
                                 for way in WAYS])
def test_a_step_of_a_run_does_not_wait(way, machine, tmp_path):
    going = Going(small(**WAYS[way]), tmp_path / "run")
    going.step()
    machine.waits.clear()
    going.step()
    most = WAITS_OF_FLOAT16 * ("float16" in way) + ("mgda" in way)
    assert sum(machine.waits.values()) <= most, machine.waits
    going.result()


def test_a_resumed_run_draws_what_the_whole_one_draws_on_its_own_device(machine, tmp_path):
    """On another device than the current one, with a network that draws; the states of other devices stay."""
    run = small(balancer=BALANCERS.load("famo").Config())

    def dropping(going: Going) -> Going:
        going.trainer.state.network.encoder.register_forward_hook(
            lambda _, args, out: TaskFeatures({
                task: Features(tuple(nn.functional.dropout(x, 0.3) for x in f.maps)) for task, f in out.items()},
                shared=out.shared))
        return going

    whole = dropping(Going(run, tmp_path / "whole"))
    of_another = machine.generators[0].get_state()
    for _ in range(2):
        whole.step()
    whole.trainer._save()
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    for name in ("run.json", "checkpoints/last.safetensors"):
        (tmp_path / "again" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    for _ in range(2):
        whole.step()
    expected = whole.result()
    assert torch.equal(of_another, machine.generators[0].get_state())
    again = dropping(Going(run, tmp_path / "again", resume=True))
    for _ in range(2):
        again.step()
    found = again.result()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def test_random_states_are_those_of_the_device_that_is_named(machine):
    first, second = (generator.get_state() for generator in machine.generators)
    assert torch.equal(devices.random_state(OWN), second) and not torch.equal(first, second)
    with devices.same_random([OWN]):
        devices.set_random_state(OWN, first)
        assert torch.equal(machine.generators[1].get_state(), first)
    assert torch.equal(machine.generators[0].get_state(), first)
    assert torch.equal(machine.generators[1].get_state(), second)


def test_a_run_on_the_cpu_does_not_start_the_accelerator(machine, tmp_path):
    going = Going(small(device="cpu", ema=0.9), tmp_path / "run")
    going.step()
    going.trainer.evaluator.evaluate(going.trainer.state.network, "val")
    assert "random.cuda" not in going.result()
    assert machine.started == [] and machine.waits == {}


@pytest.mark.parametrize("kind", ["mps", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("cuda", "xpu"))])
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


# -- parts -------------------------------------------------------------------------------------------------------

PAIRS = [*((e, "heads") for e in names()), *(("shared", d) for d in DECODERS.names() if d != "heads")]
FAST_PAIRS = (("cross_stitch", "heads"), ("shared", "pap_net"))


@pytest.mark.parametrize(("encoder", "decoder"), [
    pytest.param(*pair, marks=() if pair in FAST_PAIRS else pytest.mark.slow) for pair in PAIRS])
def test_a_network_stays_on_its_device_and_nobody_waits(encoder, decoder, machine):
    torch.manual_seed(0)
    network = Network.build(backbone(encoder), ENCODERS.load(encoder).Config(), DECODERS.load(decoder).Config(), TINY)
    network.to(OWN).train()
    image = torch.rand(2, 3, 33, 70).to(OWN)
    for step in range(2):
        if step:
            machine.waits.clear()
        output = network(image)
        ends = [*output.final.values(), *(x for extra in output.auxiliary for x in extra.prediction.values())]
        torch.stack([x.square().mean() for x in ends]).sum().backward()
    assert machine.waits == {} and machine.doubles == {}
    assert {p.grad.device for p in network.parameters() if p.grad is not None} == {OWN}
    with torch.no_grad():
        network.eval()(image[:1])
    assert machine.waits == {}


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_losses_and_metrics_of_every_task_of_rooms(kind):
    """Metrics gather on the device and are read at the end; where there is no float64, on the host."""
    every = tuple(rooms().tasks)
    dataset = Rooms.Config(size=(32, 64), val_frames=2).build(split="val", tasks=every)
    tasks = replace(small(), tasks=rooms().tasks).build_tasks(dataset.labels)
    batch = collate([resize_image(dataset.read(i), None) for i in range(2)], tasks)
    with Pretended(kind, devices=1) as machine:
        there = torch.device(kind, 0)
        moved, place = batch.to(there), devices.for_metrics(there)
        machine.waits.clear()
        for name, task in tasks.items():
            raw = torch.randn(2, task.channels, 32, 64).to(there, non_blocking=True).requires_grad_()
            output = Output({name: raw}, shared=())
            sums = devices.sent(task.label_sums(batch.target[name], batch.valid[name]), there, devices.widest(there))
            total_loss(task, name, output, moved, sums).sum.backward()
            assert machine.waits == {}, name
            decoded = task.decode(raw.detach())
            task.zoomed(task.mirrored(task.from_mean(task.to_mean(raw.detach()))), 2.0)  # what flips and scales do
            assert machine.waits == {}, name
            metric = task.metric()
            metric.update(decoded.to(place), moved.target[name].to(place), moved.valid[name].to(place))
            assert kind == "mps" or machine.waits == {} or name in WAITS_OF_METRICS, (name, machine.waits)
            assert metric.compute()
            machine.waits.clear()


WAITS_OF_METRICS: dict[str, str] = {}
"""Tasks whose metric looks at the predictions on the host, and why."""


@pytest.mark.slow
def test_prediction_with_windows_and_mirror_images(machine):
    torch.manual_seed(0)
    run = small()
    dataset = Rooms.Config(size=(32, 64), val_frames=2).build(split="val", tasks=tuple(run.tasks))
    tasks = run.build_tasks(dataset.labels)
    model = RunModel(run.build_network(tasks, pretrained=False).to(OWN).eval(), tasks, (32, 64), "a network")
    picture = dataset.read(0).image.permute(1, 2, 0).numpy()
    for inference in (Inference(), Inference(flip=True, scales=(1.0, 2.0)), Inference(tile=(32, 32), native=True)):
        machine.waits.clear()
        scene = Predictor(model, inference).predict(picture)
        assert set(scene.tasks) == set(tasks)
        # One for all predictions of an image together. Rows of a tiled image leave the device as they are completed,
        # because all of them might not fit.
        most = 2 * len(tasks) if inference.tile else 1
        assert sum(machine.waits.values()) <= most, machine.waits


@pytest.mark.slow
def test_a_profile_is_of_the_device_that_was_asked_for(machine):
    from polyptych.profiling.profile import profile

    network = Network.build(backbone("shared"), ENCODERS.load("shared").Config(), DECODERS.load("heads").Config(), TINY)
    found = profile(network, size=(32, 64), device="cuda:1", repeats=1, seconds=0.01)
    assert found.setting.device == "cuda:1" and found.setting.hardware == "pretended cuda"


def test_a_device_without_a_kernel_samples_by_itself():
    """torchvision has no deformable convolution for MPS (or XPU): the plain way gives the same numbers."""
    x, offset, weight = torch.rand(1, 4, 5, 6), torch.randn(1, 2, 5, 6), torch.rand(2, 4, 1, 1)
    expected = deformable_convolution(x, offset, weight)
    assert has_kernels("cpu") and not has_kernels("mps")
    with Pretended("mps", devices=1):
        found = deformable_convolution(x.to("mps"), offset.to("mps"), weight.to("mps"))
        assert found.device.type == "mps"
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.slow
def test_the_phases_of_a_search_stay_on_their_device(machine, tmp_path):
    choices = Search(space="automtl", granularity="stage", network_steps=1, policy_steps=1)
    run = phase_run(small(balancer=BALANCERS.load("equal").Config()), 4)
    trainer = PretrainTrainer(run, choices, tmp_path / "warmup")
    batches = iter(trainer.batches)
    for _ in range(2):
        machine.waits.clear()
        trainer.step([next(batches)])
    assert machine.waits == {}
    trainer._save()
    trainer.held.close()
    alternating = AlternatingTrainer(run, choices, tmp_path / "sampling", tmp_path / "warmup")
    batches, costs = iter(alternating.batches), []
    for _ in range(4):
        machine.waits.clear()
        alternating.step([next(batches)])
        costs.append(sum(machine.waits.values()))
    # A step of the policy asks its own Adam how many steps there were.
    assert max(costs) <= 1, (costs, machine.waits)
    alternating._save()
    alternating.held.close()


# -- which device ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("surroundings", "expected"), [
    ({}, "cuda"),
    ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cuda:1"),
    ({"WORLD_SIZE": "4", "RANK": "3"}, "cuda:1"),  # two machines of two
    ({"WORLD_SIZE": "4", "RANK": "2", "SLURM_LOCALID": "1"}, "cuda:1"),
    ({"WORLD_SIZE": "1", "RANK": "0"}, "cuda"),
])
def test_each_of_several_processes_takes_its_own(surroundings, expected, machine, monkeypatch):
    for name in (*devices.LOCAL_RANKS, *devices.VISIBLE, "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    assert str(distributed.local_device("auto")) == expected
    assert str(distributed.local_device("cuda:0")) == "cuda:0"
    assert machine.started == []


def test_a_launcher_may_show_one_device_only(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with Pretended("cuda", devices=1):
        assert str(distributed.local_device("auto")) == "cuda:0"


@pytest.mark.parametrize("name", ["cuda:2", "xpu", "mps", "rocm", "meta", "gpu"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name, machine):
    with pytest.raises(InputError, match="one of auto, cpu, cuda, cuda:0, cuda:1") as refused:
        distributed.local_device(name)
    assert "\n" not in str(refused.value)


def test_several_processes_that_cannot_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="without RANK, MASTER_ADDR, MASTER_PORT"), \
            distributed.group(torch.device("cpu")):
        pass


def test_a_precision_that_the_device_lacks_is_refused(machine, monkeypatch):
    devices.check_precision(OWN, "bfloat16")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("unsupported autocast type")

    monkeypatch.setattr(torch, "ones", refuse)
    with pytest.raises(InputError, match="float16, which cuda:1 does not have"):
        devices.check_precision(OWN, "float16")
