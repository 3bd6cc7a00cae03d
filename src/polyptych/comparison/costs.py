"""What every network of a comparison costs, measured once on this machine and kept in ``costs/``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyptych.errors import InputError
from polyptych.logbook import environment
from polyptych.profiling.profile import Cost, cost
from polyptych.record import decode, encode, read_json, write_json
from polyptych.run import Facts, Run, read_run


def network_cost(folder: Path, kept: Path) -> Cost:
    """Cost of a finished run's network at the run's input size, on the run's device.

    Args:
        folder: of the run.
        kept: folder of earlier measurements. One holds for the same network, size, software and machine.
    """
    run, facts = read_run(folder)
    key = _key(run)
    path = kept / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"
    if path.exists():
        try:
            return decode(Cost, read_json(path)["cost"], str(path))
        except (InputError, KeyError, TypeError):
            pass  # written by another version: measure again
    found = _measure(run, facts)
    kept.mkdir(parents=True, exist_ok=True)
    write_json(path, {"of": key, "cost": asdict(found)})
    return found


def _key(run: Run) -> dict[str, Any]:
    """Everything that the cost depends on."""
    here = environment()
    parts = {name: encode(getattr(run, name)) for name in ("backbone", "encoder", "decoder", "size", "dataset")}
    return {**parts, "tasks": {name: encode(task) for name, task in run.tasks.items()},
            "device": run.execution.device, "precision": run.execution.precision,
            "machine": {name: here[name] for name in ("processor", "cores", "accelerator", "torch", "commit")}}


def _measure(run: Run, facts: Facts) -> Cost:
    network = run.build_network(run.build_tasks(facts.labels), pretrained=False)
    size = run.size or run.build_dataset("test").read(0).info.native
    return cost(network, size=size, device=run.execution.device, precision=run.execution.precision)
