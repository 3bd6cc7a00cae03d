"""Do the tasks help or hinder each other? Measured on a trained run, during training, or in a network of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from polyptych import __version__, distributed
from polyptych.data.loading import TrainingBatches
from polyptych.errors import InputError
from polyptych.folder_lock import hold
from polyptych.logbook import each_event
from polyptych.passes import Passes
from polyptych.prediction.model import load_network
from polyptych.ranges import check_range
from polyptych.record import write_json
from polyptych.reports.diagnosis import Findings, pictures, terminal
from polyptych.reports.page import DIAGNOSIS, write_report
from polyptych.task_gradients import Look, look
from polyptych.training import open_dataset, seed_everything


class Diagnosis:
    """Measurements (looks) of how tasks affect each other, and their summary. In a training loop of your own::

        diagnosis = polyptych.Diagnosis()
        for step, batch in enumerate(loader):
            if step % 100 == 0:
                diagnosis.sample(lambda: losses_of(batch), network, step=step)
            ...
        print(diagnosis)

    Attributes:
        looks: in order of step; see :class:`polyptych.task_gradients.Look`.
    """

    looks: list[Look]

    def __init__(self, looks: Sequence[Look] = (), first: Mapping[str, float] | None = None):
        self.looks, self._first = list(looks), dict(first or {})

    def sample(self, losses: Callable[[], Mapping[str, Tensor]], network: nn.Module, *, step: int | None = None,
               weights: Mapping[str, float] | None = None) -> Look:
        """Take one more look. It leaves the network, its gradients and all random states as they were, and takes about
        as long as one training step per task, plus one.

        Args:
            losses: runs a forward pass on one batch and returns a scalar loss by task; it is called once, and once more
                per task.
            step: optimizer steps done; by default the number of the look.
            weights: factors by which you multiply the losses; 1 by default.

        Raises:
            InputError: losses that are not scalars, or no two tasks that share a parameter.
        """
        found = look(losses, network, step=len(self.looks) if step is None else step, weights=weights)
        self.looks.append(found)
        return found

    @property
    def findings(self) -> Findings:
        """The numbers over all looks.

        Raises:
            InputError: no look was taken yet.
        """
        if not self.looks:
            raise InputError("diagnosis", "no look", "at least one", "call sample() in your training loop")
        return Findings(self.looks, self._first)

    def __str__(self) -> str:
        """Tables of 80 columns."""
        console = Console(width=80, color_system=None, force_terminal=False, force_jupyter=False)
        with console.capture() as captured:
            console.print(terminal(self.findings))
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON: the summary over all looks, and each of them."""
        return {"version": __version__, **self.findings.to_json(), "first": self._first,
                "samples": [one.to_json() for one in self.looks]}

    def write(self, folder: Path | str) -> Path:
        """Write ``diagnosis.json`` and figures (SVG) into a folder; returns the path of the JSON file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / DIAGNOSIS, self.to_json())
        for number, (_, drawing) in enumerate(pictures(self.findings, page=False)):
            (folder / f"diagnosis-{number}.svg").write_text(drawing, encoding="utf-8")
        return folder / DIAGNOSIS


def diagnose(folder: Path | str, *, batches: int = 8, weights: str = "", device: str = "auto") -> Diagnosis:
    """Diagnose the tasks of a trained run on batches of its training data, write ``diagnosis.json`` into its folder,
    and add the result to its report.

    The report also shows looks taken during training (``--monitoring.diagnose``). They are not in what is returned,
    because they saw other weights.

    Args:
        folder: folder of the run.
        batches: how many to look at; each takes about as long as one training step per task, plus one.
        weights: ``last`` or ``best``; by default what the run selects.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        InputError: no run, no data, or no two tasks that share a parameter.
    """
    folder = Path(folder)
    check_range("--batches", batches, 1, do="raise it")
    where = distributed.local_device(device, "--device")
    run, tasks, network, step = load_network(folder, weights, where)
    memory = torch.channels_last if run.execution.channels_last else torch.contiguous_format
    network.to(memory_format=memory).train()
    seed_everything(run.seed)
    dataset = open_dataset(run, "train")
    stream = TrainingBatches(dataset, tasks, run.augment, run.size or dataset.read(0).info.native, run.batch_size,
                             run.seed, start=step * run.accumulate, workers=run.loading.workers,
                             on_fault=run.loading.on_fault)
    begin, end = dict[str, Any](), dict[str, Any]()
    for event in each_event(folder / "metrics.jsonl"):
        if event.get("event") == "train":
            begin, end = begin or event, event
    shares = {task: float(weight) for task, weight in end.get("weights", {}).items()}
    first = {task: float(loss) for task, loss in begin.get("losses", {}).items() if loss}
    found = Diagnosis(first=first)
    precision = getattr(torch, run.execution.precision)
    # float16 needs a loss scale, which only training finds; bfloat16 costs the same and needs none.
    precision = torch.bfloat16 if precision is torch.float16 else precision
    for batch in islice(stream, batches):
        passes = Passes(network, network, tasks, [batch], where, memory, lambda: torch.autocast(
            where.type, precision, enabled=precision is not torch.float32))

        def losses(passes: Passes = passes) -> dict[str, Tensor]:
            return passes()[0]()[0]

        found.sample(losses, network, step=step, weights=shares)
    with hold(folder):
        write_json(folder / DIAGNOSIS, found.to_json())
        write_report(folder)
    return found
