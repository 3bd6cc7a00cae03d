"""Published rows: what papers print, with the protocol that every number belongs to.

The rows are data, ``published.json`` beside this file. Values are in the units of our metrics: percent, meters,
degrees; raw where a protocol's inverse depth has no unit.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from polyptych.errors import InputError

TAGS = {
    "V": "read in a public source",
    "R": "recalled from the paper, not read again",
    "R-delta": "recalled, and consistent with the paper's own aggregate",
}


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One method.

    Attributes:
        values: in the order of the table's columns; None where the source has none.
        tag: how sure the numbers are, see :data:`TAGS`.
        delta: the aggregate as printed, in percent.
        backbone: where it differs from the table's.
    """

    method: str
    tag: Literal["V", "R", "R-delta"]
    values: tuple[float | None, ...]
    delta: float | None = None
    backbone: str = ""
    note: str = ""


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows that share protocol, backbone and columns.

    Attributes:
        columns: ``TASK/NUMBER``; the name of a number says its accumulation unless that is global.
        aggregate: what ``delta`` of the rows is.
        reference: the row that the aggregate is relative to; empty where it is not in the table.
    """

    protocol: str
    backbone: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    aggregate: Literal["", "delta_mtl", "delta_m"] = ""
    reference: str = ""
    note: str = ""

    def scores(self, row: Row) -> dict[str, dict[str, float]]:
        """The values of a row that are there, by task and number."""
        found: dict[str, dict[str, float]] = {}
        for column, value in zip(self.columns, row.values, strict=True):
            task, _, number = column.partition("/")
            if value is not None:
                found.setdefault(task, {})[number] = value
        return found


@cache
def tables() -> tuple[Table, ...]:
    """All published tables.

    Raises:
        InputError: the file does not hold together; the message names the field.
    """
    path = files("polyptych.protocols") / "published.json"
    return read(path.read_bytes(), str(path))


def read(data: bytes, where: str) -> tuple[Table, ...]:
    """Tables from JSON, read strictly.

    Raises:
        InputError: a field is unknown or of the wrong type, a row does not fit the columns, or the reference is not
            among the rows.
    """
    try:
        found = msgspec.json.decode(data, type=tuple[Table, ...])
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise InputError(where, f"a table that does not fit ({error})", "published rows", "correct the field") from None
    for table in found:
        for row in table.rows:
            if len(row.values) != len(table.columns):
                raise InputError(f"{where}: {table.protocol}, {row.method}", f"{len(row.values)} values",
                                 f"{len(table.columns)}, one per column", "add what is missing, null where unknown")
        if table.reference and table.reference not in (row.method for row in table.rows):
            raise InputError(f"{where}: {table.protocol}", f"the reference '{table.reference}'",
                             "a method of the table", "name a method of its rows")
    return found


def of_protocol(name: str) -> list[Table]:
    """The tables of one protocol."""
    return [table for table in tables() if table.protocol == name]
