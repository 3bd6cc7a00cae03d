"""Activation checkpointing gives the gradients of an ordinary step, to the last bit, and needs less memory."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from pretended import Pretended
from torch import Tensor, nn

from polyptych.balancers._base import CATALOG as BALANCERS
from polyptych.balancers._engine import predictions
from polyptych.balancers._gradients import JacobianBalancer
from polyptych.balancers._weighing import LossBalancer
from polyptych.datasets.rooms import Rooms
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.profiling.memory import StorageWatch
from polyptych.recipes.rooms import rooms
from polyptych.recomputation import blocks, recompute
from polyptych.run import Execution, Loading, Monitoring
from polyptych.training import Trainer
from polyptych.types import Output
from trying_encoders import backbone, names

TINY = {"semseg": 4, "depth": 1, "normals": 3}


class Block(nn.Module):
    """Everything that could come out otherwise the second time: it draws, and batch statistics move."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Dropout(0.3),
                                    nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x).relu()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 1), Block(4), Block(4))
        self.heads = nn.ModuleDict({task: nn.Sequential(Block(4), nn.Conv2d(4, c, 1)) for task, c in TINY.items()})

    def forward(self, x: Tensor) -> Output:
        z = self.trunk(x)
        return Output({task: head(z) for task, head in self.heads.items()}, shared=(z,))


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Gradients, parameters and batch statistics."""
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) and (p.grad is None or torch.equal(p.grad, q.grad)), name
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def options(name: str) -> list[dict[str, object]]:
    kind = BALANCERS.load(name)
    if issubclass(kind, LossBalancer):
        return [{}]
    if issubclass(kind, JacobianBalancer):
        return [{}, *([{"level": "representation"}] if "combine_maps" in vars(kind) else [])]
    return [{"level": level} for level in ("representation", "parameters", "layer")]


@pytest.mark.parametrize(("name", "chosen"), [
    pytest.param(name, chosen, id=f"{name}-{'-'.join(map(str, chosen.values()))}",
                 marks=[pytest.mark.slow] if number else [])
    for name in BALANCERS.names() for number, chosen in enumerate(options(name))])
def test_every_balancer_gets_the_same_gradients(name: str, chosen: dict[str, object]) -> None:
    torch.manual_seed(0)
    stored = Small()
    twice = copy.deepcopy(stored)
    assert recompute(twice) == 5
    images = [torch.randn(1, 3, 5, 5) for _ in range(3)]
    ends = []
    for network in (stored, twice):
        torch.manual_seed(1)
        likelihoods = {"likelihoods": {}} if name == "uncertainty" else {}
        balancer = BALANCERS.load(name).Config(**chosen).build(standard_weights=dict.fromkeys(TINY, 1.0), **likelihoods)

        def forward(image: Tensor, network: nn.Module = network) -> tuple[dict[str, Tensor], Output]:
            output = network(image)
            return {task: x.square().mean() for task, x in output.final.items()}, output

        weights = {}
        for _ in range(2):
            _, weights = balancer.accumulate([lambda image=image: forward(image) for image in images], network)
        ends.append(({task: float(weight) for task, weight in weights.items()}, torch.get_rng_state()))
    assert ends[0][0] == ends[1][0] and torch.equal(ends[0][1], ends[1][1])
    assert_same(stored, twice)


PAIRS = [*((e, "heads") for e in names()), *(("shared", d) for d in DECODERS.names() if d != "heads"),
         ("task_prompter", "task_prompter")]
FAST_PAIRS = (("mtan", "heads"), ("task_prompter", "heads"))


@pytest.mark.parametrize(("encoder", "decoder"), [
    pytest.param(*pair, marks=() if pair in FAST_PAIRS else pytest.mark.slow) for pair in PAIRS])
def test_every_network_gets_the_same_gradients(encoder: str, decoder: str) -> None:
    torch.manual_seed(0)
    stored = Network.build(backbone(encoder), ENCODERS.load(encoder).Config(), DECODERS.load(decoder).Config(), TINY)
    twice = copy.deepcopy(stored.train())
    assert recompute(twice) > 2
    image = torch.rand(2, 3, 33, 70)
    for network in (stored, twice):
        torch.manual_seed(1)
        ends = [x for of_task in predictions(network(image)).values() for x in of_task]
        torch.stack([x.square().mean() for x in ends]).sum().backward()
    assert_same(stored, twice)


def peak(network: nn.Module, image: Tensor) -> int:
    with StorageWatch() as watch:
        output = network(image)
        torch.stack([x.square().mean() for x in output.final.values()]).sum().backward()
    return watch.peak


@pytest.mark.parametrize("encoder", ["shared", "task_prompter"])
def test_less_memory(encoder: str) -> None:
    torch.manual_seed(0)
    stored = Network.build(backbone(encoder), ENCODERS.load(encoder).Config(), DECODERS.load("heads").Config(), TINY)
    twice = copy.deepcopy(stored)
    recompute(twice)
    image = torch.rand(4, 3, 96, 128)
    assert peak(twice, image) < 0.7 * peak(stored, image)


def test_blocks_are_the_smallest_repeated_parts() -> None:
    network = Small()
    assert [type(block) for block in blocks(network)] == [Block] * 5
    # In a head that is no more than layers in a row, that row is the block; a single layer is none.
    heads = nn.ModuleDict({"depth": nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1)),
                           "edges": nn.Conv2d(4, 1, 1)})
    assert blocks(heads) == [heads["depth"]]


def test_it_draws_again_on_the_devices_own_generator(monkeypatch) -> None:
    # Inside the hooks of autograd nobody is asked where a pretended tensor is.
    monkeypatch.setitem(torch.utils.checkpoint._allowed_determinism_checks_to_fns, "default",
                        lambda x: (x.shape, x.dtype))
    with Pretended("cuda", devices=2) as machine:
        torch.manual_seed(0)
        stored = Small()
        twice = copy.deepcopy(stored)
        recompute(twice)
        image = torch.randn(2, 3, 5, 5).to("cuda:1")
        ends = []
        for network in (stored.to("cuda:1"), twice.to("cuda:1")):
            machine.generators[1].manual_seed(7)
            machine.waits.clear()
            torch.stack([x.mean() for x in network(image).final.values()]).sum().backward()
            assert machine.waits == {}
            ends.append(machine.generators[1].get_state())
        assert torch.equal(*ends)
        assert_same(stored, twice)


def test_a_run_is_the_same_run_and_its_checkpoint_is_anybodys(tmp_path) -> None:
    run = replace(rooms(), dataset=Rooms.Config(size=(32, 64), val_frames=2), size=(32, 64), ema=0.9, steps=2,
                  backbone=backbone("shared"), batch_size=2, loading=Loading(check=0),
                  monitoring=Monitoring(examples=0, trivial_samples=2))
    states = []
    for name, chosen in (("stored", False), ("twice", True)):
        trainer = Trainer(replace(run, execution=Execution(device="cpu", recompute=chosen)), tmp_path / name, False)
        batches = iter(trainer.batches)
        for _ in range(2):
            trainer.step([next(batches)])
        trainer.held.close()
        states.append(trainer.state.network.state_dict() | {
            f"average.{name}": x for name, x in trainer.state.average.state_dict().items()})
        # The average makes no gradients, and is what everyone else would build.
        assert type(trainer.state.average.encoder) is ENCODERS.load("shared")
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


@pytest.mark.parametrize(("chosen", "said"), [
    ({"recompute": True, "compile": True}, "--execution.recompute: got a compiled network"),
    ({"shard": True, "compile": True}, "--execution.shard: got a compiled network"),
    ({"shard": True, "precision": "float16"}, "--execution.shard: got float16"),
])
def test_what_does_not_go_together(chosen: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Execution(**chosen)


@pytest.mark.parametrize("name", BALANCERS.names())
def test_sharding_refuses_balancers_that_need_whole_gradients_by_name(name: str) -> None:
    kind = BALANCERS.load(name)
    run = replace(rooms(), balancer=kind.Config())
    if kind.one_backward:
        replace(run, execution=Execution(shard=True))
        return
    with pytest.raises(InputError, match=f"--execution.shard: got balancer {name}, which compares"):
        replace(run, execution=Execution(shard=True))
