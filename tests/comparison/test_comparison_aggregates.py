"""Aggregates: the numbers that papers print follow from their rows, and protocols are never mixed."""

from __future__ import annotations

import pytest

from polyptych.comparison.aggregates import (
    Scores,
    delta_m,
    delta_mtl,
    gains,
)
from polyptych.errors import InputError
from polyptych.protocols.catalog import PROTOCOLS
from polyptych.protocols.published import tables

# How far a printed aggregate may be from that of the printed rows, which are rounded.
TOLERANCE = {"CAG": 0.165, "CAG-CS": 0.11, "AUTOL": 0.02, "ASTMT-P": 0.015, "ASTMT-N": 0.15, "SURV-N": 0.12,
             "SURV-P": 0.12}
PRINTED = [pytest.param(table, row, id=f"{table.protocol}-{table.backbone}-{row.method}") for table in tables()
           for row in table.rows if row.delta is not None]


def scores(table, row) -> Scores:
    return Scores(row.method, table.protocol, table.scores(row))


@pytest.mark.parametrize(("table", "row"), PRINTED)
def test_printed_aggregates_follow_from_the_rows(table, row) -> None:
    reference = next(other for other in table.rows if other.method == table.reference)
    directions = PROTOCOLS[table.protocol].numbers
    if table.aggregate == "delta_m":
        found = delta_m(scores(table, row), scores(table, reference), directions)
    else:
        headlines = dict(column.split("/") for column in table.columns)
        found = delta_mtl(scores(table, row), scores(table, reference), directions, headlines)
    assert found == pytest.approx(row.delta, abs=TOLERANCE[table.protocol])


def test_every_family_of_printed_aggregates_is_covered() -> None:
    assert {param.values[0].protocol for param in PRINTED} == set(TOLERANCE) and len(PRINTED) > 45


A = Scores("a", "P", {"semseg": {"mIoU": 40.0, "acc": 60.0}, "depth": {"rel": 0.2}})
B = Scores("b", "P", {"semseg": {"mIoU": 44.0, "acc": 54.0}, "depth": {"rel": 0.1}})
BETTER = {"semseg": {"mIoU": True, "acc": True}, "depth": {"rel": False}}


def test_aggregates_weigh_differently() -> None:
    assert gains(B, A, BETTER) == {"semseg": pytest.approx({"mIoU": 10, "acc": -10}),
                                   "depth": pytest.approx({"rel": 50})}
    assert delta_mtl(B, A, BETTER, {"semseg": "mIoU", "depth": "rel"}) == pytest.approx(30)
    assert delta_m(B, A, BETTER) == pytest.approx(-50 / 3)  # all metrics alike, and a drop


def test_protocols_are_never_mixed() -> None:
    other = Scores("b", "Q", B.values)
    with pytest.raises(InputError, match="scores of a: got numbers of protocol P; needs protocol Q, that of b"):
        delta_m(other, A, BETTER)
    with pytest.raises(InputError, match="numbers of protocol P"):
        delta_mtl(other, A, BETTER, {"semseg": "mIoU"})


def test_what_is_missing_is_named() -> None:
    lacking = Scores("c", "P", {"semseg": {"mIoU": 40.0}})
    with pytest.raises(InputError, match="reference c: got no acc of semseg"):
        delta_m(B, lacking, BETTER)
    with pytest.raises(InputError, match="rel of depth: got no direction"):
        delta_m(B, A, {"semseg": BETTER["semseg"]})
    with pytest.raises(InputError, match="scores of c: got no rel of depth"):
        delta_mtl(lacking, A, BETTER, {"semseg": "mIoU", "depth": "rel"})
