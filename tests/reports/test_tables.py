# ruff: noqa: RUF001
"""Tables: the numbers, their directions, the trivial baseline beside them, and the caption."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import pytest
from rich.console import Console

from polyptych.evaluation_record import Evaluation
from polyptych.reports.cells import estimated, signed
from polyptych.reports.tables import (
    class_rows,
    duration,
    escape_markdown,
    format_pair,
    format_skill,
    markdown_table,
    metric_table,
    terminal_table,
)


def evaluation() -> dict:
    return {
        "protocol": "rooms-1-128x160",
        "split": "test",
        "step": 1400,
        "images": 128,
        "weights": "ema",
        "input_size": [128, 160],
        "seconds": 3.0,
        "skill": 0.3761,
        "tasks": {
            "semseg": {
                "headline": "mIoU",
                "metrics": {"accuracy": 62.125, "mIoU": 31.041},
                "trivial": {"accuracy": 24.4, "mIoU": 3.104},
                "higher_is_better": {"accuracy": True, "mIoU": True},
                "skill": 0.2883,
                "unit": "",
                "note": "13 classes",
                "classes": {"wall": 71.2, "bed": math.nan},
            },
            "depth": {
                "headline": "RMSE",
                "metrics": {"RMSE": 0.58231, "delta1": math.nan},
                "trivial": {"RMSE": 1.0841, "delta1": 0.31},
                "higher_is_better": {"RMSE": False, "delta1": True},
                "skill": 0.4629,
                "unit": "m",
                "note": "",
            },
        },
    }


def printed(data: dict, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(terminal_table(Evaluation.read(data)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_rows_headline_first_with_direction_trivial_and_skill() -> None:
    rows = metric_table(Evaluation.read(evaluation())).rows
    assert [(r.task, r.metric, r.value, r.trivial, r.arrow, r.headline, r.skill_text) for r in rows] == [
        ("semseg", "mIoU", "31.04", "3.10", "↑", True, "0.288"),
        ("semseg", "accuracy", "62.12", "24.40", "↑", False, ""),
        ("depth", "RMSE", "0.582", "1.084", "↓", True, "0.463"),
        ("depth", "delta1", "–", "0.3100", "↑", False, ""),
    ]
    assert [r.title for r in rows] == ["semseg", "", "depth (m)", ""]


def test_caption_states_everything_that_makes_numbers_comparable() -> None:
    caption = metric_table(Evaluation.read(evaluation())).caption
    assert caption.startswith(
        "Protocol rooms-1-128x160, test split, 128 images, step 1,400, ema weights, input 128 × 160 (height × width)."
    )
    assert "0 = trivial, 1 = perfect" in caption
    assert metric_table(Evaluation(tasks={})).caption.startswith("Trivial:")


def test_terminal_table() -> None:
    text = printed(evaluation())
    lines = [[part.strip() for part in line.strip("│\n").split("│")] for line in text.splitlines() if "│" in line]
    assert lines[0] == ["task", "metric", "value", "trivial", "skill"]
    assert lines[1] == ["semseg", "mIoU ↑", "31.04", "3.10", "0.288"]
    assert lines[3] == ["depth (m)", "RMSE ↓", "0.582", "1.084", "0.463"]
    assert lines[-1] == ["mean", "", "", "", "0.376"]
    assert "rooms-1-128x160" in text


def test_terminal_names_are_text_not_markup() -> None:
    data = evaluation()
    data["tasks"]["[red]x[/red]"] = data["tasks"].pop("depth")
    assert "[red]x[/red]" in printed(data)


def test_markdown_table() -> None:
    lines = markdown_table(Evaluation.read(evaluation())).splitlines()
    assert lines[2] == "| **semseg** | **mIoU** ↑ | **31.04** | 3.10 | 0.288 |"
    assert lines[4] == "| **depth (m)** | **RMSE** ↓ | **0.582** | 1.084 | 0.463 |"
    assert "| mean | | | | 0.376 |" in lines


def test_markdown_cells_cannot_break_the_table() -> None:
    data = evaluation()
    data["tasks"]["a|b\n<script>"] = data["tasks"].pop("depth")
    table = markdown_table(Evaluation.read(data))
    assert "a\\|b &lt;script&gt;" in table and "<script" not in table
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 7
    assert escape_markdown("_a_ *b* [c](d) `e`") == "\\_a\\_ \\*b\\* \\[c\\](d) \\`e\\`"


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ((31.041, 3.1), ("31.04", "3.10")),
        ((0.5823, 0.9), ("0.5823", "0.9000")),
        ((0.5823, 1.084), ("0.582", "1.084")),
        ((100.0, 0.0), ("100.00", "0.00")),
        ((1234.56, 2.0), ("1234.6", "2.0")),
        ((123456.7, 1.0), ("123,457", "1")),
        ((2e-5, 1e-4), ("2.00e-05", "1.00e-04")),
        ((0.0, 0.0), ("0.000", "0.000")),
        ((None, math.inf), ("–", "–")),
        ((-12.5, math.nan), ("-12.50", "–")),
    ],
)
def test_digits(pair: tuple, expected: tuple) -> None:
    assert format_pair(*pair) == expected


def test_durations_read_like_speech() -> None:
    seconds = (0.4, 9.96, 20.4, 59.7, 60.0, 200.0, 3600.0, 7500.0)
    said = ["0.4 s", "10 s", "20 s", "1 min", "1 min", "3 min 20 s", "1 h", "2 h 5 min"]
    assert [duration(s) for s in seconds] == said


def test_skill_below_the_baseline_keeps_its_sign() -> None:
    assert format_skill(-0.25) == "−0.250" and format_skill(math.nan) == "–" and format_skill(None) == "–"


def test_class_rows_in_percent_and_as_fractions() -> None:
    rows = class_rows({"wall": 71.24, "bed": math.nan, "sky": 0.0})
    assert [(r.name, r.value, round(r.share, 4)) for r in rows] == [
        ("wall", "71.2", 0.7124),
        ("bed", "–", 0),
        ("sky", "0.0", 0),
    ]
    assert class_rows({"a": 0.25})[0].share == 0.25 and class_rows({"a": 0.25})[0].value == "0.250"


def test_a_missing_headline_falls_back_to_the_first_metric() -> None:
    rows = metric_table(Evaluation.read({"tasks": {"a": {"metrics": {"x": 1.0, "y": 2.0}}}})).rows
    assert [(r.metric, r.headline, r.trivial, r.arrow) for r in rows] == [
        ("x", True, "–", ""),
        ("y", False, "–", ""),
    ]


@dataclass(frozen=True)
class Mean:
    mean: float
    half_width: float | None


@pytest.mark.parametrize(("half", "bold", "faint"), [(0.4, [False, True], [False, False]),
                                                     (1.2, [False, False], [False, True]),
                                                     (None, [False, True], [False, False])])
def test_a_gain_that_may_be_chance_is_no_winner(half: float | None, bold: list, faint: list) -> None:
    column = estimated("delta_mtl", [Mean(0.0, None), Mean(1.0, half)], signed, "%", higher=True)
    assert [cell.best for cell in column.cells] == bold and [cell.unsure for cell in column.cells] == faint
    # A metric with a wide interval is no difference.
    column = estimated("depth", [Mean(0.5, 0.1), Mean(1.0, half)], lambda value: f"{value:.1f}", "RMSE", higher=True)
    assert [cell.best for cell in column.cells] == [False, True] and not any(cell.unsure for cell in column.cells)
