"""Two real processes make the same step as one on the whole batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from polyptych.checkpoint import read_tensors

PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from safetensors.torch import save_file
from polyptych import distributed
from polyptych.backbones.timm import Timm
from polyptych.balancers._base import CATALOG
from polyptych.datasets.rooms import Rooms
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.decoders.heads import Heads
from polyptych.optim import Optimizer, Schedule
from polyptych.recipes.rooms import rooms
from polyptych.run import Execution, Loading, Monitoring, with_components, with_tasks
from polyptych.training import Trainer

out, batch_size, balancer, decoder, model, encoder, until = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
decoder = DECODERS.load(decoder).Config() if decoder in DECODERS.names() else Heads.Config(head=decoder)
frozen = {"freeze": "all", "freeze_until": int(until)} if until else {}
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # or rounding grows from step to step until nothing could be compared
tasks = ["semseg", "depth", "parts", "saliency"]
run = replace(with_tasks(with_components(rooms(), {"encoder": encoder}), tasks), size=(48, 64),
              dataset=Rooms.Config(size=(48, 64), val_frames=3), backbone=Timm.Config(model=model, **frozen),
              decoder=decoder, balancer=CATALOG.load(balancer).Config(), batch_size=batch_size, steps=3,
              accumulate=2,
              optimizer=Optimizer(kind="sgd", learning_rate=0.1, weight_decay=0.0, momentum=0.9),
              schedule=Schedule(kind="constant"), loading=Loading(), execution=Execution(device="cpu"))
with distributed.group(torch.device("cpu")):
    trainer = Trainer(run, out / "run", resume=False)
    network = trainer.state.network
    network.train = lambda mode=True: network
    for module in network.modules():
        module.training = False  # batch statistics would differ between half and whole batches
    batches = iter(trainer.batches)
    for _ in range(3):
        trainer.step([next(batches) for _ in range(2)])
    result = trainer.evaluator.evaluate(network, "val")
    if distributed.is_main():
        metrics = {f"metric.{t}.{m}": torch.tensor(v, dtype=torch.float64)
                   for t, e in result.tasks.items() for m, v in e.metrics.items()}
        save_file({k: v.contiguous() for k, v in network.state_dict().items()} | metrics, out / "weights.safetensors")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("balancer", "decoder", "model", "encoder", "until"), [
    ("equal", "fused", "test_resnet", "shared", ""),
    ("equal", "aspp", "hrnet_w18_small", "shared", ""),  # three of its four maps, and what makes only them, are unused
    ("nash_mtl", "fused", "test_resnet", "shared", ""),
    ("equal", "fused", "test_resnet", "shared", "1"),  # frozen for a step
    ("equal", "fused", "test_vit", "mtlora", ""),
    ("nash_mtl", "fused", "test_vit", "mtlora", ""),
    ("equal", "atrc", "test_resnet", "shared", ""),
    ("equal", "mlore", "test_resnet", "shared", ""),
    ("equal", "mtmamba", "test_resnet", "shared", ""),
])
def test_two_processes_equal_one(balancer: str, decoder: str, model: str, encoder: str, until: str,
                                 tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    choices = [balancer, decoder, model, encoder, until]
    subprocess.run([sys.executable, tmp_path / "program.py", tmp_path / "one", "4", *choices], check=True,
                   env=environment, timeout=240)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    tmp_path / "program.py", tmp_path / "two", "2", *choices], check=True, env=environment, timeout=240)
    one, two = (load_file(tmp_path / folder / "weights.safetensors") for folder in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        # A pixel may lie on the threshold of a metric.
        loose = {"rtol": 1e-2, "atol": 0.1} if name.startswith("metric.") else {"rtol": 1e-9, "atol": 1e-12}
        torch.testing.assert_close(two[name], one[name], **loose, equal_nan=True, msg=name)


ARGUMENTS = ["--batch-size", "2", "--size", "48", "64", "--dataset.size", "48", "64", "--dataset.val-frames", "2",
             "--dataset.test-frames", "2", "--backbone.model", "test_resnet", "--monitoring.save-every", "2",
             "--monitoring.validate-every", "1000", "--monitoring.log-every", "1", "--monitoring.examples", "1",
             "--monitoring.trivial-samples", "4", "--execution.device", "cpu"]


def children_of(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


@pytest.mark.slow
@pytest.mark.parametrize("balancer", ["equal", "nash_mtl"])
def test_a_dead_process_ends_the_run_and_it_resumes(balancer: str, tmp_path: Path) -> None:
    folder, environment = tmp_path / "run", {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "polyptych"]
    with (tmp_path / "said").open("w") as said:
        job = subprocess.Popen([*launch, "train", "rooms", "--balancer", balancer, "--out", folder, "--steps", "100000",
                                *ARGUMENTS], env=environment, stdout=said, stderr=said)
    deadline = time.monotonic() + 180
    while not (folder / "checkpoints" / "last.safetensors").exists():
        assert job.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
        time.sleep(0.05)
    os.kill(max(children_of(job.pid)), signal.SIGKILL)
    died = time.monotonic()
    assert job.wait(timeout=60) != 0
    assert time.monotonic() - died < 60
    text = (tmp_path / "said").read_text()
    assert "polyptych resume" in text, text

    record = json.loads((folder / "run.json").read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    record["run"]["steps"] = json.loads(lines[-1])["step"] + 3
    (folder / "run.json").write_text(json.dumps(record))
    subprocess.run([*launch, "resume", folder], check=True, env=environment, timeout=180)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
             if '"train"' in line]
    assert steps == list(range(1, record["run"]["steps"] + 1))


RESUME = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from polyptych import distributed
from polyptych.backbones.timm import Timm
from polyptych.balancers._base import CATALOG
from polyptych.datasets.rooms import Rooms
from polyptych.decoders.heads import Heads
from polyptych.interruption import Interrupted, StopFlag
from polyptych.recipes.rooms import rooms
from polyptych.run import Execution, Loading, Monitoring, with_tasks
from polyptych.training import Trainer

out, balancer = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
run = replace(with_tasks(rooms(), ["semseg", "depth"]), dataset=Rooms.Config(size=(48, 64), val_frames=2),
              size=(48, 64), backbone=Timm.Config(model="test_resnet", drop_path=0.3), ema=0.9,
              decoder=Heads.Config(head="aspp"), balancer=CATALOG.load(balancer).Config(), batch_size=2,
              steps=6, accumulate=2, loading=Loading(),
              monitoring=Monitoring(log_every=1, validate_every=100, save_every=3, trivial_samples=2),
              execution=Execution(device="cpu"))
with distributed.group(torch.device("cpu")):
    Trainer(run, out / "whole", resume=False).fit(StopFlag())
    (out / f"seed{distributed.rank()}").write_text(str(torch.initial_seed()))
    trainer, stop = Trainer(run, out / "half", resume=False), StopFlag()
    step = trainer.step
    def stopping(batches):
        stop.asked = trainer.state.step == 2
        return step(batches)
    trainer.step = stopping
    try:
        trainer.fit(stop)
    except Interrupted:
        torch.manual_seed(99)
    Trainer(run, out / "half", resume=True).fit(StopFlag())
"""


@pytest.mark.slow
@pytest.mark.parametrize("balancer", ["equal", "nash_mtl"])
def test_two_processes_resume_exactly(balancer: str, tmp_path: Path) -> None:
    """With dropout and batch statistics, which differ between the processes."""
    (tmp_path / "program.py").write_text(RESUME)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    tmp_path / "program.py", tmp_path, balancer], check=True,
                   env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240)
    whole, half = (read_tensors(tmp_path / name / "checkpoints" / "last.safetensors") for name in ("whole", "half"))
    assert whole[1]["step"] == half[1]["step"] == 6 and whole[1]["progress"]["epoch"] == half[1]["progress"]["epoch"]
    assert whole[0].keys() == half[0].keys()
    assert [name for name in whole[0] if not torch.equal(whole[0][name], half[0][name])] == []
    assert (tmp_path / "seed0").read_text() != (tmp_path / "seed1").read_text()  # each its own dropout
