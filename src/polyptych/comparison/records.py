"""Finished runs as small files (``polyptych compare --records FOLDER``): everything but weights and pictures.

A record is JSON that one can read in a diff and commit. A run that has one counts as finished wherever the folder goes,
so that a comparison begun on one machine continues on another and makes the same page. Numbers are taken from a record
only if this code would give the run the same numbers: its choices are those of the grid, and the generation of its
numbers (:func:`polyptych.run.numerics`) is today's. Commit and machine are written down beside them but do not decide:
most commits move no number.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from polyptych.errors import InputError
from polyptych.evaluation_record import Evaluation
from polyptych.logbook import each_event
from polyptych.record import decode, encode, first_difference, put_in_place, read_json
from polyptych.run import Execution, Loading, Monitoring, Run, numerics, read_run

FORMAT = 1
MACHINE = ("processor", "cores", "accelerator", "platform", "python", "torch")
DIGITS = 6  # of curves and replicates, which are shown and never compared to the last bit


@dataclass(frozen=True)
class Record:
    """The results of one run.

    Attributes:
        network, balancer: labels of its row.
        run: its settings as JSON, with only the last part of paths, because locations differ between machines.
        numerics: generation of its numbers.
        commit: commit of the source, with a + if files had been changed; empty outside a checkout.
        machine: processor, cores, accelerator, versions.
        started: start of its last process, UTC.
        seconds: time spent in optimizer steps, with ``processor_seconds`` of all cores; None if not recorded.
        curve: step, mean skill and headlines by task at every validation.
        val, test: the contents of ``evaluation/*.json``; a trial has no test.
        resampled: test headlines under random weightings of the images (:mod:`polyptych.metrics._resampling`).
        error: why a trial has no result.
    """

    network: str
    balancer: str
    run: dict[str, Any]
    numerics: dict[str, int] = field(default_factory=lambda: {"polyptych": 1})
    commit: str = ""
    machine: dict[str, str | int] = field(default_factory=dict)
    started: str = ""
    seconds: float | None = None
    processor_seconds: float | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    val: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    resampled: dict[str, Any] | None = None
    error: str = ""

    @staticmethod
    def of_folder(folder: Path, network: str, balancer: str, error: str = "") -> Record:
        """The record of a run folder; one of an older version lacks some fields."""
        environment = _read(folder / "environment.json") or {}
        run = read_run(folder)[0]
        headlines = {name: task.owner.headline for name, task in run.tasks.items()}
        curve, spent = [], dict[str, Any]()
        for event in each_event(folder / "metrics.jsonl"):
            if event.get("event") == "validation":
                curve.append(_point(event, headlines))
            elif event.get("event") == "train":
                spent = event
        evaluation = folder / "evaluation"
        return Record(
            network, balancer, encode(run, _last_part),
            numerics=environment.get("numerics", {"polyptych": 1}), commit=str(environment.get("commit", "")),
            machine={name: environment[name] for name in MACHINE if name in environment},
            started=str(environment.get("started", "")), seconds=spent.get("seconds"),
            processor_seconds=spent.get("processor_seconds"),
            curve=curve,
            val=_read(evaluation / "val.json"), test=_read(evaluation / "test.json"),
            resampled=_rounded(_read(evaluation / "resampled" / "test.json")), error=error)

    @staticmethod
    def read(path: Path) -> Record:
        """
        Raises:
            InputError: the file is no record, or comes from a newer version.
        """
        data = read_json(path)
        if not isinstance(data, dict) or data.get("record") != FORMAT:
            got = f"a record of format {data['record']}" if isinstance(data, dict) and "record" in data \
                else "a file that is no record"
            raise InputError(path, got, f"a record of format {FORMAT} written by `polyptych compare --records`",
                             "remove the file, or use the version that wrote it")
        try:
            return msgspec.convert({key: value for key, value in data.items() if key != "record"}, Record)
        except msgspec.ValidationError as error:
            raise InputError(path, f"a field that does not fit ({error})", "a record as polyptych writes it",
                             "restore the file, or remove it so that the run is trained again") from None

    def write(self, path: Path) -> None:
        """Write the record atomically; the same record always gives the same bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".partial")
        text = _readable({"record": FORMAT, **plain(dataclasses.asdict(self))}) + "\n"
        temporary.write_bytes(text.encode())  # the same line endings on Windows
        put_in_place(temporary, path)

    def evaluation(self, where: Path) -> Evaluation:
        """On the test split."""
        return Evaluation.read(self.test or {}, where)

    @property
    def replicates(self) -> dict[str, list[float]]:
        """Test headlines by task, one for each of the same random weightings of the images."""
        found: dict[str, list[float | None]] = (self.resampled or {}).get("headlines", {})
        return {task: [math.nan if value is None else value for value in values] for task, values in found.items()}

    @property
    def skill(self) -> float:
        """Mean skill on the validation split of the weights that the run would test: the last or the best."""
        skills = [point["skill"] for point in self.curve if point["skill"] is not None]
        if not skills or self.error or (self.run.get("select") != "best" and self.curve[-1]["skill"] is None):
            return -math.inf
        return float(max(skills) if self.run.get("select") == "best" else skills[-1])

    def choices(self, where: Path) -> Run:
        return decode(Run, self.run, f"{where}: run")


def check(path: Path, run: Run) -> Record:
    """The record of a planned run.

    Raises:
        InputError: it is of a run with other choices, or this code would give the run other numbers.
    """
    record = Record.read(path)
    if difference := first_difference(essence(run), essence(record.choices(path))):
        name, needed, got = difference
        raise InputError(path, f"the record of another run ({name} is {got})", f"{name} {needed}",
                         "choose another --records folder, or remove the file so that the run is trained again")
    refuse_other_numbers(path, record.numerics, run)
    return record


def refuse_other_numbers(path: Path, found: Mapping[str, int], run: Run) -> None:
    """Refuse numbers from code that would give the run different numbers than this code."""
    needed = numerics(run)
    for name in {**needed, **found}:
        if found.get(name, 1) != needed.get(name, 1):
            raise InputError(path, f"numbers of generation {found.get(name, 1)} of {name}",
                             f"generation {needed.get(name, 1)}, that of this code",
                             "remove it so that the run is trained again, or use the code that trained it")


def essence(run: Run) -> dict[str, Any]:
    """The choices that decide the numbers, in the same words on every machine: without places of files, how batches
    are loaded, what is watched, on which device and how its memory is used. (Of weights the name of the file
    remains.)"""
    kept = Monitoring(validate_every=run.monitoring.validate_every if run.select == "best" else 1,
                      trivial_samples=run.monitoring.trivial_samples)
    execution = dataclasses.replace(run.execution, device=Execution.device, recompute=False, shard=False)
    plain = dataclasses.replace(run, loading=Loading(), monitoring=kept,
                                reasons={}, execution=execution)
    encoded: dict[str, Any] = encode(plain, _last_part)
    return encoded | {"dataset": encode(run.dataset, lambda path: "")}


def _last_part(path: Path) -> str:
    return path.name


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def _point(event: Mapping[str, Any], headlines: Mapping[str, str]) -> dict[str, Any]:
    """A validation as a point of the curve."""
    values = {task: event["metrics"][task].get(name) for task, name in headlines.items()}
    return _rounded({"step": event["step"], "skill": event.get("skill"), "headlines": values})


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def plain(value: Any) -> Any:
    """What a number is not (NaN) is null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _readable(value: Any, indent: int = 0) -> str:
    """JSON with one field per line, but lists and small objects of plain values on one line."""
    if not isinstance(value, dict) or not value or (indent >= 2 and _short(value)):
        return json.dumps(value, ensure_ascii=False)
    inner = " " * (indent + 1)
    lines = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_readable(item, indent + 1)}"
             for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{' ' * indent}}}"


def _short(value: dict[str, Any]) -> bool:
    return len(value) <= 8 and not any(isinstance(item, dict | list) for item in value.values())
