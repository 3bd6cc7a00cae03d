"""Aggregates: the numbers that papers print follow from their rows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from polyptych.comparison.statistics import delta_mtl, deltas
from polyptych.protocols.catalog import PROTOCOLS
from polyptych.protocols.published import tables

# How far a printed aggregate may be from that of the printed rows, which are rounded.
TOLERANCE = {"CAG": 0.165, "CAG-CS": 0.11, "AUTOL": 0.02, "ASTMT-P": 0.015, "ASTMT-N": 0.15, "SURV-N": 0.12,
             "SURV-P": 0.12}
PRINTED = [pytest.param(table, row, id=f"{table.protocol}-{table.backbone}-{row.method}") for table in tables()
           for row in table.rows if row.delta is not None]
Scores = Mapping[str, Mapping[str, float]]


def delta_m(scores: Scores, reference: Scores, higher_is_better: Mapping[str, Mapping[str, bool]]) -> float:
    """Mean drop over all single metrics, in percent; lower is better (Liu et al., NeurIPS 2021, arXiv 2110.14048)."""
    gains = [gain for task, values in scores.items()
             for gain in deltas(values, reference[task], higher_is_better[task]).values()]
    return -math.fsum(gains) / len(gains)


def headlines(scores: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> dict[str, float]:
    return {task: scores[task][name] for task, name in names.items()}


@pytest.mark.parametrize(("table", "row"), PRINTED)
def test_printed_aggregates_follow_from_the_rows(table, row) -> None:
    reference = next(other for other in table.rows if other.method == table.reference)
    directions = PROTOCOLS[table.protocol].numbers
    if table.aggregate == "delta_m":
        found = delta_m(table.scores(row), table.scores(reference), directions)
    else:
        names = dict(column.split("/") for column in table.columns)
        found = delta_mtl(*(headlines(values, names) for values in (table.scores(row), table.scores(reference),
                                                                    directions)))
    assert found == pytest.approx(row.delta, abs=TOLERANCE[table.protocol])


def test_every_family_of_printed_aggregates_is_covered() -> None:
    assert {param.values[0].protocol for param in PRINTED} == set(TOLERANCE) and len(PRINTED) > 45


A = {"semseg": {"mIoU": 40.0, "acc": 60.0}, "depth": {"rel": 0.2}}
B = {"semseg": {"mIoU": 44.0, "acc": 54.0}, "depth": {"rel": 0.1}}
BETTER = {"semseg": {"mIoU": True, "acc": True}, "depth": {"rel": False}}


def test_aggregates_weigh_differently() -> None:
    names = {"semseg": "mIoU", "depth": "rel"}
    assert delta_mtl(headlines(B, names), headlines(A, names), headlines(BETTER, names)) == pytest.approx(30)
    assert delta_m(B, A, BETTER) == pytest.approx(-50 / 3)  # all metrics alike, and a drop
