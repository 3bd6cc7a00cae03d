"""Every method of the catalog in a training loop: resume, several processes, micro-batches, bfloat16, compilation."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from method_loop import STANDARD, Loop
from safetensors.torch import load_file
from torch import Tensor

from polyptych.backbones.timm import Timm
from polyptych.balancers._base import CATALOG
from polyptych.balancers._gradients import GramBalancer, JacobianBalancer
from polyptych.checkpoint import load_state, save_state
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.encoders.shared import Shared
from polyptych.networks import Network
from polyptych.types import Output

METHODS = CATALOG.names()


@pytest.mark.parametrize("name", METHODS)
def test_ten_steps_are_five_and_five_more(name: str, tmp_path: Path) -> None:
    whole = Loop(name, drop=0.3)
    weights = [whole.step() for _ in range(10)]
    first = Loop(name, drop=0.3)
    again = [first.step() for _ in range(5)]
    save_state(tmp_path / "state.safetensors", first.state)
    torch.manual_seed(77)
    second = Loop(name, drop=0.3)
    load_state(tmp_path / "state.safetensors", second.state)
    again += [second.step() for _ in range(5)]
    assert again == weights
    expected, found = whole.result(), second.result()
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    moved = Loop(name, drop=0.3).result()
    assert not torch.equal(moved["network.first.weight"], expected["network.first.weight"])


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_are_one_batch(name: str) -> None:
    whole, parts = Loop(name), Loop(name, parts=2)
    if isinstance(whole.balancer, JacobianBalancer) and (whole.balancer.splits > 1
                                                         or whole.balancer.config.level == "representation"):
        pytest.skip("combines every micro-batch by itself")
    for step in range(4):
        expected, found = whole.step(), parts.step()
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9), step


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What two processes end with after four steps of every method."""
    out = tmp_path_factory.mktemp("two")
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    Path(__file__).with_name("method_loop.py"), out, "4"], check=True, timeout=240,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})
    return load_file(out / "0.safetensors"), load_file(out / "1.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one(name: str, processes) -> None:
    """Unequal numbers of valid pixels, a process without labels of a task, a task without labels in any process."""
    first, second = ({key.removeprefix(f"{name}/"): value for key, value in found.items()
                      if key.startswith(f"{name}/")} for found in processes)
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=0, equal_nan=True, msg=key)
    loop = Loop(name)
    for _ in range(4):
        loop.step()
    expected = loop.result()
    assert first.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(first[key], value, rtol=1e-8, atol=1e-8, equal_nan=True, msg=key)


# -- dense networks ------------------------------------------------------------------------------------------------


def dense(decoder: str) -> Network:
    torch.manual_seed(0)
    options = {"initial_width": 16} if decoder == "ema_net" else {"width": 16}
    return Network.build(Timm.Config(model="test_resnet"), Shared.Config(),
                         DECODERS.load(decoder).Config(**options), {"semseg": 4, "depth": 1, "normals": 3})


def dense_losses(network: Network, image: Tensor, autocast: bool) -> tuple[dict[str, Tensor], Output]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = network(image)
    everything = {task: [output.final[task], *(x.prediction[task] for x in output.auxiliary if task in x.prediction)]
                  for task in STANDARD}
    return {task: sum((x.float() - 0.3).pow(2).mean() for x in found) for task, found in everything.items()}, output


def levels(name: str) -> list[dict[str, str]]:
    """The levels that a method offers."""
    kind = CATALOG.load(name)
    if not issubclass(kind, GramBalancer):
        return [{}]
    if issubclass(kind, JacobianBalancer):
        return [{"level": "parameters"}] + ([{"level": "representation"}]
                                            if kind.combine_maps is not JacobianBalancer.combine_maps else [])
    return [{"level": level} for level in ("parameters", "representation", "layer")]


CASES = [pytest.param(name, options, id="-".join([name, *options.values()]))
         for name in METHODS for options in levels(name)]


@pytest.mark.parametrize("decoder", ["pad_net", "ema_net"])
@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.slow
def test_bfloat16_with_batch_norm_and_tasks_that_read_each_other(name: str, options: dict, decoder: str) -> None:
    network = dense(decoder)
    balancer = CATALOG.load(name).Config(**options).build(standard_weights=STANDARD)
    image = torch.rand(2, 3, 32, 32)
    passes = [partial(dense_losses, network, image, True)] * getattr(balancer, "splits", 1)
    for _ in range(2):
        network.zero_grad()
        losses, weights = balancer.accumulate(passes, network)
    assert all(math.isfinite(float(weight)) for weight in weights.values())
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert float(balancer.diagnostics.get("fallbacks", 0)) == 0
    for name_of, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name_of
        assert parameter.grad.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_compiled_network_has_the_same_gradients(name: str, options: dict) -> None:
    found = []
    for compiled in (False, True):
        network = dense("heads")
        balancer = CATALOG.load(name).Config(**options).build(standard_weights=STANDARD)
        image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            network(image)
        balancer.prepare(network, network(image))
        if compiled:
            for part in network.children():
                part.compile(backend="aot_eager")
        balancer.accumulate([partial(dense_losses, network, image, False)] * getattr(balancer, "splits", 1), network)
        found.append({key: p.grad for key, p in network.named_parameters()})
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=2e-3, atol=1e-4, msg=key)
