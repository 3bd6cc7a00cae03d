"""What every network of a comparison costs, measured once and kept in ``costs/``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyptych.comparison.records import essence
from polyptych.distributed import local_device
from polyptych.errors import InputError
from polyptych.logbook import environment
from polyptych.profiling.profile import Cost, cost
from polyptych.record import decode, encode, read_json, write_json
from polyptych.run import Facts, Run


def network_cost(run: Run, facts: Facts | None, kept: Path, *, anywhere: bool = False) -> Cost | None:
    """Cost of a run's network at the run's input size, on the run's device.

    Args:
        facts: what the dataset reported about its labels; None asks the dataset.
        kept: folder of earlier measurements, each valid for one network, size, software, and machine.
        anywhere: accept a measurement from any machine and version, for a table of runs that were trained elsewhere;
            the result is None if there is neither one nor the data, which determines the channels of each task.
    """
    key = _key(run, anywhere)
    path = kept / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"
    if path.exists():
        try:
            return decode(Cost, read_json(path)["cost"], str(path))
        except (InputError, KeyError, TypeError):
            pass  # written by another version: measure again
    try:
        found = _measure(run, facts)
    except InputError:
        if anywhere:
            return None
        raise
    kept.mkdir(parents=True, exist_ok=True)
    write_json(path, {"of": key, "machine": _machine(run), "cost": asdict(found)})
    return found


def _key(run: Run, anywhere: bool) -> dict[str, Any]:
    """Everything that the cost depends on."""
    if anywhere:
        choices = essence(run)
        return {name: choices[name] for name in ("backbone", "encoder", "decoder", "size", "dataset", "tasks")}
    parts = {name: encode(getattr(run, name)) for name in ("backbone", "encoder", "decoder", "size", "dataset")}
    return {**parts, "tasks": {name: encode(task) for name, task in run.tasks.items()},
            "device": run.execution.device, "precision": run.execution.precision, "machine": _machine(run)}


def _machine(run: Run) -> dict[str, Any]:
    here = environment(local_device(run.execution.device))
    return {name: here[name] for name in ("processor", "cores", "accelerator", "torch", "commit")}


def _measure(run: Run, facts: Facts | None) -> Cost:
    labels = facts.labels if facts else run.build_dataset("test").labels
    network = run.build_network(run.build_tasks(labels), pretrained=False)
    size = run.size or run.build_dataset("test").read(0).info.native
    return cost(network, size=size, device=run.execution.device, precision=run.execution.precision)
