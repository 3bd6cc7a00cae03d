"""A comparison of existing run folders: which may share a table, and what its rows are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from polyptych.comparison.grid import Entry, Method, refuse_repeats
from polyptych.comparison.results import Finished, refuse_other_protocols
from polyptych.comparison.specification import spell
from polyptych.errors import InputError
from polyptych.hub import local_folder
from polyptych.record import first_difference
from polyptych.run import Run, read_run

WITHOUT_EFFECT = ("loading", "monitoring", "reasons")  # settings that do not change what is learned


def gather(folders: Sequence[Path]) -> list[Entry]:
    """The entries of a comparison, the single-task reference first.

    The first single-task run (encoder ``single``) decides which method is the reference.

    Raises:
        InputError: as :func:`polyptych.compare_runs`.
    """
    folders = [local_folder(folder) for folder in folders]
    runs = {folder: read_run(folder)[0] for folder in folders}
    refuse_repeats("--from", [folder.resolve() for folder in folders])
    found = [_entry(folder, run) for folder, run in runs.items()]
    for entry in found:
        if not entry.tested:
            raise InputError(entry.folder, "a run that is not finished", "a run with evaluation/test.json",
                             f"continue with `polyptych resume {entry.folder}`")
    refuse_other_protocols([Finished.read(entry) for entry in found])
    _refuse_other_recipes(found)
    return _in_rows(found)


def _entry(folder: Path, run: Run) -> Entry:
    return Entry(Method(spell(run.encoder, run.decoder), spell(run.balancer), run), run.seed, folder)


def _refuse_other_recipes(entries: Sequence[Entry]) -> None:
    """Refuse runs that differ in more than the encoder, the decoder, the balancer, and the seed."""
    first = entries[0]
    for other in entries[1:]:
        same = dataclasses.replace(other.run, **{name: getattr(first.run, name) for name in
                                                 ("encoder", "decoder", "balancer", "seed", *WITHOUT_EFFECT)})
        if difference := first_difference(first.run.located(), same.located()):
            name, needed, got = difference
            raise InputError(other.folder, f"a run of another recipe ({name} is {got})",
                             f"{name} {needed}, as {first.folder} has", "compare runs of one recipe only")


def _in_rows(entries: Sequence[Entry]) -> list[Entry]:
    rows: dict[str, list[Entry]] = {}
    for entry in entries:
        rows.setdefault(entry.method.label, []).append(entry)
    for label, runs in rows.items():
        refuse_repeats(f"seeds of {label}", [run.seed for run in runs])
    singles = [label for label, runs in rows.items() if runs[0].run.encoder.name == "single"]
    if not singles:
        raise InputError("--from", "no single-task reference", "runs with --encoder single, one for every seed",
                         "add them, or train them with `polyptych compare`")
    reference = rows[singles[0]]
    for label, runs in rows.items():
        if missing := sorted({run.seed for run in runs} - {run.seed for run in reference}):
            raise InputError(f"seed {missing[0]} of {label}", "no single-task reference with that seed",
                             f"a run of {singles[0]} with --seed {missing[0]}", "add it, or leave the run out")
    ordered = [singles[0], *(label for label in rows if label != singles[0])]
    return [dataclasses.replace(entry, method=method) for label in ordered
            for method in [dataclasses.replace(rows[label][0].method, reference=label == singles[0])]
            for entry in rows[label]]
