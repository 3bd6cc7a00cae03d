"""Small runs, and folders that look as if such runs had been trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from polyptych.comparison.grid import Entry
from polyptych.datasets.rooms import Rooms
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.run import Facts, Run, with_tasks, write_run

PROTOCOL = "rooms-1-48x64"


def two_tasks(run: Run) -> Run:
    """Semseg and depth only, plain heads, two steps."""
    return replace(with_tasks(run, ["semseg", "depth"]), encoder=Shared.Config(), decoder=Heads.Config(), steps=2)


def pretend_finished(entry: Entry, miou: float, rmse: float, protocol: str = PROTOCOL, images: int = 4) -> Path:
    """Write what a finished run leaves behind (but for weights and pictures)."""
    folder, run = entry.folder, entry.run
    (folder / "evaluation").mkdir(parents=True)
    dataset = Rooms.Config(size=(48, 64)).build(split="test", tasks=tuple(run.tasks))
    write_run(folder / "run.json", run, Facts.of(dataset))
    tasks = {
        "semseg": {"headline": "mIoU", "metrics": {"mIoU": miou, "accuracy": 2 * miou},
                   "trivial": {"mIoU": 2.0, "accuracy": 20.0}, "higher_is_better": {"mIoU": True, "accuracy": True}},
        "depth": {"headline": "RMSE", "metrics": {"RMSE": rmse}, "trivial": {"RMSE": 1.5},
                  "higher_is_better": {"RMSE": False}, "unit": "m", "note": "along the axis"},
    }
    record = {"protocol": protocol, "split": "test", "images": images, "skipped": [], "tasks": tasks, "skill": 0.1}
    (folder / "evaluation" / "test.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text(json.dumps({"event": "train", "step": 2, "seconds": 12.5}) + "\n")
    (folder / "environment.json").write_text(json.dumps(
        {"processor": "a processor", "cores": 2, "accelerator": "none", "commit": "0123456789ab"}))
    (folder / "report.html").write_text("")
    return folder
