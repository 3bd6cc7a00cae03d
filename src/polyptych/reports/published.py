"""Published rows next to a run's own, only for protocols that the run's numbers follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from polyptych.metrics._accumulation import shown_name
from polyptych.protocols.catalog import find
from polyptych.protocols.published import TAGS, Table, of_protocol
from polyptych.reports.cells import ARROWS, signed
from polyptych.reports.tables import ABSENT, escape_markdown, format_pair, is_number

Scores = Mapping[str, Mapping[str, float | None]]
"""Values by task and name of the number."""


@dataclass(frozen=True)
class PublishedRow:
    """One row: the user's ``own``, or a published one with its backbone and how reliable it is."""

    method: str
    backbone: str
    cells: tuple[str, ...]
    tag: str = ""
    own: bool = False


@dataclass(frozen=True)
class PublishedTable:
    """What papers print under one protocol, below the user's numbers.

    Attributes:
        columns: titles with arrows, task by task; the last one is the aggregate, if papers print one.
        notes: what still differs, sources, and what the tags mean.
    """

    protocol: str
    data: str
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    notes: tuple[str, ...]

    @property
    def markdown(self) -> Markup:
        lines = ["| method | backbone | " + " | ".join(map(escape_markdown, self.columns)) + " | source |",
                 "|---|---|" + "---:|" * len(self.columns) + "---|"]
        for row in self.rows:
            method = f"**{escape_markdown(row.method)}**" if row.own else escape_markdown(row.method)
            lines.append(f"| {method} | {escape_markdown(row.backbone)} | {' | '.join(row.cells)} | {row.tag} |")
        return Markup("\n".join([*lines, "", *(f"- {escape_markdown(note)}" for note in self.notes), ""]))


def published_tables(own: Mapping[str, Scores], qualified: Mapping[str, Sequence[str]]) -> list[PublishedTable]:
    """A table for every protocol that the numbers follow and that has published rows with the same metrics.

    Args:
        own: the user's rows by name.
        qualified: ``protocols`` of the evaluation: notes by id.
    """
    found = [_table(name, own, notes) for name, notes in qualified.items()]
    return [table for table in found if table is not None]


def _table(name: str, own: Mapping[str, Scores], notes: Sequence[str]) -> PublishedTable | None:
    """The rows of one protocol below the user's; None if they have no metric in common."""
    protocol, published = find(name), of_protocol(name)
    columns = [(task, number) for task, numbers in protocol.numbers.items() for number in numbers
               if any(number in scores.get(task, {}) for scores in own.values())
               and any(f"{task}/{number}" in table.columns for table in published)]
    if not columns:
        return None
    aggregates = list(dict.fromkeys(table.aggregate for table in published if table.aggregate))
    theirs = [(table, row, table.scores(row)) for table in published for row in table.rows]
    everyone: list[Scores] = [*own.values(), *(scores for _, _, scores in theirs)]
    largest = {(task, number): max((abs(value) for scores in everyone
                                    if is_number(value := scores.get(task, {}).get(number))), default=0.0)
               for task, number in columns}

    def cells(scores: Scores, delta: float | None = None) -> tuple[str, ...]:
        values = [format_pair(scores.get(task, {}).get(number), largest[task, number])[0] for task, number in columns]
        return (*values, *(ABSENT if delta is None else signed(delta) for _ in aggregates))

    rows = [PublishedRow(label, "", cells(scores), own=True) for label, scores in own.items()]
    rows += [PublishedRow(row.method, row.backbone or table.backbone, cells(scores, row.delta), row.tag)
             for table, row, scores in theirs]
    titles = [f"{task} {shown_name(number)} {ARROWS[protocol.numbers[task][number]]}" for task, number in columns]
    titles += [f"{name} %, as printed {ARROWS[name != 'delta_m']}" for name in aggregates]
    return PublishedTable(name, protocol.data, tuple(titles), tuple(rows), (*notes, *_remarks(published)))


def _remarks(published: Sequence[Table]) -> list[str]:
    """Remarks on the rows, their sources, and the meaning of the tags; each only once."""
    rows = [row for table in published for row in table.rows]
    sources = dict.fromkeys(table.source for table in published)
    tags = dict.fromkeys(row.tag for row in rows)
    remarks = [*(f"{row.method}: {row.note}" for row in rows if row.note),
               *(f"{table.backbone}: {table.note}" for table in published if table.note),
               f"sources: {'; '.join(sources)}", "; ".join(f"{tag}: {TAGS[tag]}" for tag in tags)]
    return list(dict.fromkeys(remarks))
