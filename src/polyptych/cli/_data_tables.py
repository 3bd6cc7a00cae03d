"""What `polyptych data` shows."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyptych.data.preparation.facts import about, configure, fixtures, offered, with_files
from polyptych.data.preparation.verification import Verification, merged
from polyptych.datasets._about import About
from polyptych.datasets._base import CATALOG, SPLITS
from polyptych.errors import InputError

_SHOWN = 50  # rows of faults; more are counted
_CLASSES = 20  # rows of a table of classes


def dataset_table() -> Table:
    """Every dataset with its tasks, license and source."""
    table = _table("name", "what", "tasks", "license", "where", lines=True)
    table.expand, table.columns[0].no_wrap = True, True
    for column, ratio in zip(table.columns[1:], (16, 16, 23, 28), strict=True):  # so that an address fits on a line
        column.ratio = ratio
    for name in CATALOG.names():
        stated = about(name)
        title = re.split(r" \(|: ", CATALOG.describe(name).summary if stated is None else stated.title)[0]
        license, where = ("", "") if stated is None else (stated.license, _pages(stated))
        table.add_row(f"[bold]{name}", *map(escape, (title, ", ".join(tasks_of(name)) or "as described", license,
                                                     where)))
    return table


def tasks_of(name: str) -> list[str]:
    """The tasks that a dataset has labels for in any layout, as its miniatures show; those of its class without any."""
    found: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as folder:
        for layout, write in fixtures(name).items() if name in with_files() else ():
            root = Path(folder) / layout
            root.mkdir()
            write(root)
            with suppress(InputError):  # a layout may need an option, such as its number of classes
                found.update(dict.fromkeys(offered(configure(name, root)).labels))
    return list(found or getattr(CATALOG.load(name), "labels", {}))


def print_reference(console: Console) -> None:
    """Every key of ``dataset.toml``."""
    from polyptych.datasets._folder.reference import sections

    console.print("[bold]dataset.toml describes a folder of your own images and labels.")
    console.print(escape("`polyptych data describe DIR` writes a first one; `polyptych data verify folder --root DIR` "
                         "checks it; `polyptych train DIR` trains on it. Paths are relative to the folder."))
    for section in sections():
        table = _table("key", "values", "without it", "meaning", title=escape(section.title), lines=True)
        for key in section.keys:
            table.add_row(*map(escape, (key.name, key.kind, key.default or "must be given", key.meaning)))
        console.print("", table)
        if section.about:
            console.print(escape(section.about))


def print_info(name: str, console: Console) -> None:
    """Downloads, layouts, counts and notes of one dataset.

    Raises:
        InputError: there is nothing to download.
    """
    stated = about(name)
    if stated is None:
        raise InputError(f"dataset {name}", "one that is not downloaded", f"one of {', '.join(with_files())}",
                         f"see `polyptych train RECIPE --dataset {name} --help`")
    console.print(f"[bold]{escape(stated.title)}")
    console.print(escape(f"License: {stated.license}"))
    if stated.downloads:
        files = _table("file", "from", "size", title="downloads")
        for file in stated.downloads:
            known = [file.page, file.url, f"sha256 {file.sha256}" if file.sha256 else ""]
            files.add_row(*map(escape, (file.file, "\n".join(filter(None, known)), file.size or "not stated")))
        console.print("", files)
        if not any(file.sha256 for file in stated.downloads):
            console.print("No checksums are known.")
    layouts = _table("layout", "looks for", "official images", "note", title="layouts on disk", lines=True)
    for layout, facts in stated.layouts.items():
        counts = "\n".join(f"{split} {count}" for split, count in facts.counts.items())
        layouts.add_row(*map(escape, (layout, facts.looks_for, counts or "not known", facts.note)))
    console.print("", layouts)
    for note in stated.notes:
        console.print(escape(f"- {note}"))


def print_verification(config: Any, found: Verification, console: Console) -> None:
    """What was found at a root, and everything that is wrong."""
    layout = f", layout {found.layout}" if found.layout else ""
    console.print(escape(f"{config.name} at {config.root}{layout}"), style="bold", soft_wrap=True)
    if found.protocol:
        console.print(escape(f"protocol {found.protocol}"), soft_wrap=True)
    partial = [task for task in found.tasks if any(task in found.labelled[split] and found.labelled[split][task] < count
                                                   for split, count in found.counts.items())]
    counts = _table("", *SPLITS)
    counts.add_row("images", *(str(found.counts.get(split, "none")) for split in SPLITS))
    for task in partial:
        counts.add_row(escape(f"labels of {task}"), *(
            f"{found.labelled[split][task]} of {found.counts[split]}" if task in found.labelled.get(split, ()) else ""
            for split in SPLITS))
    console.print(counts)
    for split, (here, published) in found.official.items():
        console.print(f"official {split}: {here} of {published} images")
    for table in _class_tables(found):
        console.print(table)
    for task in found.tasks:
        for split, inspection in found.inspections.items():
            facts = inspection.tasks.get(task)
            if facts is not None and not len(facts.amounts) and (words := facts.in_words()):
                console.print(escape(f"{task}, {split}: {words}"), soft_wrap=True)
    for doubt in found.doubts:
        console.print(escape(f"- {doubt}"), soft_wrap=True)
    some = {task: sum(labelled.get(task, 0) for labelled in found.labelled.values()) for task in found.tasks}
    total = sum(found.counts.values())
    told = ", ".join(task if count == total else f"{task} ({count} of {total} labeled)"
                     for task, count in some.items())
    console.print(escape(f"{found.opened} of {total} opened with {told}"))
    if not found.faults:
        console.print("[green]no faults")
        return
    table = _table("where", "found", "needed", "what to do", title="damaged or missing")
    rows = merged(found.faults)
    for fault, count in rows[:_SHOWN]:
        cells = [text.replace(f"{config.root}/", "") for text in (fault.where, fault.got, fault.needs, fault.do)]
        cells[0] += f" and {count - 1} more" if count > 1 else ""
        table.add_row(*map(escape, cells))
    console.print(table)
    if len(rows) > _SHOWN:
        console.print(f"and {sum(count for _, count in rows[_SHOWN:])} more")


def _class_tables(found: Verification) -> Iterator[Table]:
    """The share of every class in every split, the most frequent first; the end of a long table is counted."""
    for task in found.tasks:
        facts = {split: inspection.tasks[task] for split, inspection in found.inspections.items()
                 if task in inspection.tasks and inspection.tasks[task].images}
        if not facts or not len((some := next(iter(facts.values()))).amounts):
            continue
        table = _table(f"class of {task}", *facts)
        total = sum((each.amounts for each in facts.values()), np.zeros_like(some.amounts))
        order = sorted(range(len(total)), key=lambda index: -total[index])
        for index in order[:_CLASSES]:
            shares = [each.shares[index] for each in facts.values()]
            table.add_row(*map(escape, (some.labels.classes[index], *(_share(share) for share in shares))))
        if len(order) > _CLASSES:
            table.add_row(f"and {len(order) - _CLASSES} more")
        yield table


def _share(share: float) -> str:
    return "-" if not share > 0 else "< 0.01%" if share < 0.0001 else f"{100 * share:.2f}%"


def _table(*titles: str, title: str | None = None, lines: bool = False) -> Table:
    """A table without vertical lines, whose long paths and addresses are folded, never cut."""
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS, show_lines=lines, pad_edge=False)
    for column in titles:
        table.add_column(column, overflow="fold")
    return table


def _pages(stated: About) -> str:
    """Each page once, without the text after its address."""
    pages = (file.page.partition(",")[0].removeprefix("https://") for file in stated.downloads)
    return "; ".join(dict.fromkeys(pages)) or "not released"
