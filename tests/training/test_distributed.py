"""Two real processes make the same step as one on the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from safetensors.torch import save_file
from polyptych import distributed
from polyptych.backbones.timm import Timm
from polyptych.datasets.rooms import Rooms
from polyptych.optim import Optimizer, Schedule
from polyptych.recipes.rooms import rooms
from polyptych.run import Execution, Loading, Monitoring, with_tasks
from polyptych.training import Trainer

out, batch_size = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
run = replace(with_tasks(rooms(), ["semseg", "depth", "parts"]), dataset=Rooms.Config(size=(48, 64), val_frames=3),
              size=(48, 64), backbone=Timm.Config(model="test_resnet"), batch_size=batch_size, steps=3, accumulate=2,
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
                   for t, e in result["tasks"].items() for m, v in e["metrics"].items()}
        save_file({k: v.contiguous() for k, v in network.state_dict().items()} | metrics, out / "weights.safetensors")
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    subprocess.run([sys.executable, tmp_path / "program.py", tmp_path / "one", "4"], check=True, env=environment,
                   timeout=240)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    tmp_path / "program.py", tmp_path / "two", "2"], check=True, env=environment, timeout=240)
    one, two = (load_file(tmp_path / folder / "weights.safetensors") for folder in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5, equal_nan=True, msg=name)
