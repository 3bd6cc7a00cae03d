"""Two processes that keep half of every parameter make the steps of two that keep all of it, and share checkpoints with
everybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROGRAM = """
import shutil
import sys
from dataclasses import replace
from pathlib import Path
import torch
from polyptych import distributed, training
from polyptych.backbones.timm import Timm
from polyptych.balancers._base import CATALOG
from polyptych.datasets.rooms import Rooms
from polyptych.decoders.heads import Heads
from polyptych.recipes.rooms import rooms
from polyptych.run import Execution, Loading, Monitoring, with_tasks
from polyptych.training import Trainer

out = Path(sys.argv[1])
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # or what is rounded otherwise grows from step to step
training.SHARDED = 1000
run = replace(with_tasks(rooms(), ["semseg", "depth", "saliency"]), size=(48, 64),
              dataset=Rooms.Config(size=(48, 64), val_frames=3), backbone=Timm.Config(model="test_resnet"),
              decoder=Heads.Config(head="fused"), balancer=CATALOG.load(sys.argv[2]).Config(), batch_size=2,
              steps=4, accumulate=2, ema=0.9, clip=1.0, loading=Loading(check=0),
              monitoring=Monitoring(trivial_samples=2))


def train(name, steps, resume=False, **execution):
    trainer = Trainer(replace(run, execution=Execution(device="cpu", **execution)), out / name, resume)
    batches = iter(trainer.batches)
    for _ in range(steps):
        trainer.step([next(batches) for _ in range(2)])
    if steps:
        trainer._validate()
    trainer._save()
    trainer.held.close()
    kept = sum(getattr(p, "_local_tensor", p).numel() for p in trainer.state.network.parameters())
    return kept / sum(p.numel() for p in trainer.state.network.parameters())


def copied(name, other):
    if distributed.is_main():
        (out / other / "checkpoints").mkdir(parents=True)
        for part in ("run.json", "checkpoints/last.safetensors"):
            shutil.copy(out / name / part, out / other / part)
    distributed.barrier()


with distributed.group(torch.device("cpu")):
    if distributed.world() == 1:
        train("again", 1, resume=True, shard=True)
    else:
        assert train("whole", 2) == 1
        assert train("sharded", 2, shard=True, recompute=True) < 0.6
        copied("whole", "taken over")
        train("taken over", 0, resume=True, shard=True)
        copied("sharded", "continued")
        train("continued", 1, resume=True, shard=True)
        copied("sharded", "again")
"""


@pytest.mark.slow
@pytest.mark.parametrize("balancer", ["uncertainty", "famo"])  # the one has parameters, the other looks again
def test_sharded_processes_make_the_same_steps_and_share_checkpoints(balancer: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    tmp_path / "program.py", tmp_path, balancer], check=True, env=environment, timeout=500)
    subprocess.run([sys.executable, tmp_path / "program.py", tmp_path, balancer], check=True, env=environment,
                   timeout=500)

    def state(name: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / name / "checkpoints" / "last.safetensors")

    whole, sharded, taken, again = map(state, ("whole", "sharded", "taken over", "again"))
    assert whole.keys() == sharded.keys() == taken.keys() == again.keys()
    for name, value in whole.items():
        if name.startswith("random."):
            continue
        torch.testing.assert_close(sharded[name], value, rtol=1e-9, atol=1e-12, msg=name)
        assert torch.equal(taken[name], value), name
    # The best weights, which the validation of a sharded network keeps, are whole ones too.
    best = [load_file(tmp_path / name / "checkpoints" / "best.safetensors") for name in ("whole", "sharded")]
    assert all(x.shape == best[1][name].shape for name, x in best[0].items())
    # One process continues what two have begun: the moments of the optimizer go on from where they were.
    steps = {name for name in again if name.startswith("optimizer.") and name.endswith(".step")}
    assert steps and all(int(again[name]) == 3 for name in steps)
