# ruff: noqa: RUF001
"""Published rows: beside a run of their protocol, and only there."""

from __future__ import annotations

import json
from pathlib import Path

from polyptych.reports.page import write_report
from polyptych.reports.published import published_tables

OWN = {"mine": {"semseg": {"mIoU": 41.234, "pixel_accuracy": 66.0, "mean_accuracy": 50.0},
                "depth": {"abs_per_batch": 0.5, "rel_per_batch": None}}}


def test_the_rows_of_the_protocol_below_ones_own() -> None:
    table, = published_tables(OWN, {"CAG": ["a note"]})
    # Only numbers that both have, and the printed aggregate; normals were not measured here.
    assert table.columns == ("semseg mIoU ↑", "semseg pixel accuracy ↑", "depth abs per batch ↓",
                             "depth rel per batch ↓", "delta_m %, as printed ↓")
    assert table.rows[0].own and table.rows[0].cells == ("41.23", "66.00", "0.5000", "–", "–")
    nash = next(row for row in table.rows if row.method == "Nash-MTL")
    assert nash.cells == ("40.13", "65.93", "0.5261", "0.2171", "−4.04")
    assert (nash.backbone, nash.tag, nash.own) == ("SegNet-MTAN", "V", False)
    assert table.notes[0] == "a note" and "IMTL-G: the source rounds depth" in table.notes
    assert any(note.startswith("V: read in a public source") for note in table.notes)


def test_a_protocol_without_rows_or_common_numbers_has_no_table() -> None:
    assert published_tables(OWN, {"MTAN-20": []}) == []  # its papers print it under the name of CAG
    assert published_tables({"mine": {"depth": {"delta1": 80.0}}}, {"CAG": []}) == []


def run_folder(tmp_path: Path, **more) -> Path:
    tasks = {name: {"metrics": values, "headline": next(iter(values)), "accumulation": "global"}
             for name, values in OWN["mine"].items()}
    (tmp_path / "evaluation").mkdir()
    record = {"split": "test", "protocol": "nyuv2-13-288x384-mtan", "tasks": tasks, **more}
    (tmp_path / "evaluation" / "test.json").write_text(json.dumps(record))
    return tmp_path


def test_the_report_of_a_run(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, protocols={"CAG": ["final <weights>"]}, other_protocols={"AUTOL": "a|reason <b>"})
    page = write_report(folder).read_text()
    text = (folder / "report.md").read_text()
    for part in ("Published under protocol CAG", "Nash-MTL", "arXiv 2203.14338"):
        assert part in page and part in text
    assert "final &lt;weights&gt;" in page and "a|reason &lt;b&gt;" in page and "a\\|reason &lt;b&gt;" in text
    assert f"| **{escaped(folder.name)}** |" in text
    assert "comparable with CAG" in text


def test_the_report_of_a_run_that_nobody_can_compare(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path)).read_text()
    assert "Published" not in page and "Published" not in (tmp_path / "report.md").read_text()


def escaped(text: str) -> str:
    return text.replace("_", "\\_")
