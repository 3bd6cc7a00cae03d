"""What a run records during training: metrics.jsonl, TensorBoard events on request, and the environment."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from polyptych import devices
from polyptych.data.files import require_plain
from polyptych.errors import InputError
from polyptych.record import flat, whole_file, writing


class Logbook:
    """``metrics.jsonl``: one JSON object per line, in order of step. On resume, lines after the checkpoint are dropped,
    so that an interrupted run leaves the same log as an uninterrupted one.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, folder: Path, resumed_at: int, tensorboard: bool):
        self._path = folder / "metrics.jsonl"
        # After a power failure the last block of a file may hold anything.
        kept = (line for line in _lines(self._path) if _step(line) <= resumed_at) if resumed_at else ()
        with whole_file(self._path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(line.rstrip("\n") + "\n" for line in kept)
        self._board = _tensorboard(folder, resumed_at) if tensorboard else None

    def write(self, event: str, step: int, **values: Any) -> None:
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in flat(values, f"{event}/", "/"):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _lines(path: Path) -> Iterator[str]:
    """The lines of the log, with their line breaks; none if there is no file."""
    if path.exists():
        require_plain(path, "the log of a run")
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            yield from file


def _step(line: str) -> float:
    """The step of a line; infinite for half a line, as a killed process or a full disk leaves it, so that it is
    dropped."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return math.inf
    step = event.get("step") if isinstance(event, dict) else None
    return step if isinstance(step, int) else math.inf


def read_events(path: Path) -> list[dict[str, Any]]:
    """All lines of ``metrics.jsonl``, see :func:`each_event`."""
    return list(each_event(path))


def each_event(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` one by one (a million of them take gigabytes together); none when there is no such
    file.

    Half a line at the very end, as a killed process leaves it, is ignored.

    Raises:
        InputError: a line is not a JSON object with a step; the message names the line.
    """
    for number, line in enumerate(_lines(path), 1):
        try:
            event = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            if not line.endswith("\n"):  # the last one: even its line break is missing
                break
            raise _damaged(path, number, f"a line that is not JSON ({error})") from None
        if event is None:
            continue
        if not isinstance(event, dict) or not isinstance(event.get("step"), (int, float)):
            raise _damaged(path, number, "a line without a step")
        yield event


def _damaged(path: Path, line: int, got: str) -> InputError:
    return InputError(f"{path}, line {line}", got, "one JSON object with a step on each line",
                      "remove the line, or restore the file")


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--monitoring.tensorboard", "no tensorboard package", "the log extra",
                         "run `pip install 'polyptych[log]'`") from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def environment(device: torch.device | None = None) -> dict[str, str | int]:
    """What a result depends on besides run.json when computed on this device (by default the CPU): versions and
    hardware."""
    device = device or torch.device("cpu")
    return {
        "command": shlex.join(["polyptych", *sys.argv[1:]]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "accelerator": devices.name_of(device) if device.type != "cpu" else "none",
    }


def _commit() -> str:
    """The commit of the installed source, with a + where it was changed; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "--", "."], cwd=here, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "") if commit.returncode == 0 else ""


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
