"""Which published protocols an evaluation belongs to, and the published rows themselves."""

from __future__ import annotations

import copy
import json

import pytest

from polyptych.errors import InputError
from polyptych.evaluation_record import Evaluation
from polyptych.protocols.catalog import PROTOCOLS, find
from polyptych.protocols.published import read, tables
from polyptych.protocols.qualification import Qualification, qualify
from polyptych.tasks._base import CATALOG
from polyptych.types import LabelInfo


def judged(record: dict) -> Qualification:
    return qualify(Evaluation.read(record))


def entry(accumulation: str, *metrics: str, **options) -> dict:
    return {"accumulation": accumulation, "metrics": dict.fromkeys(metrics, 1.0), "options": options}


def libmtl() -> dict:
    """An evaluation as LIBMTL measures."""
    angles = ("mean", "median", "RMSE", "within_11.25", "within_22.5", "within_30")
    return {"protocol": "nyuv2-13-288x384-mtan", "split": "test", "images": 654, "skipped": [], "input_size": None,
            "label_size": [288, 384], "batch_size": 8, "processes": 1, "weights": "last",
            "tasks": {"semseg": entry("global", "mIoU", "pixel_accuracy", absent="skip", require_tp=False,
                                      union_unlabeled=False),
                      "depth": entry("global", "abs", "rel"), "normals": entry("global", *angles)}}


def cag() -> dict:
    record = libmtl() | {"batch_size": 2}
    record["tasks"]["depth"] = entry("batch", "abs_per_batch", "rel_per_batch")
    record["tasks"]["normals"]["accumulation"] = "batch"
    return record


def test_the_same_network_belongs_to_what_it_is_measured_like() -> None:
    assert set(judged(libmtl()).notes) == {"LIBMTL", "AUTOL", "EMA"}
    found = judged(cag())
    assert set(found.notes) == {"MTAN-20", "CAG"}
    assert found.reasons["MTAN-19"] == "semseg: accumulation global instead of image"
    assert found.reasons["LIBMTL"] == "depth: accumulation batch instead of global"
    assert found.reasons["SURV-N"] == "classes 13 instead of 40"


@pytest.mark.parametrize(("change", "reason"), [
    ({"protocol": "nyuv2-13-480x640-frames"}, "native size 480x640 instead of 288x384"),
    ({"protocol": "nyuv2-13-288x384-frames"}, "layout frames instead of mtan"),
    ({"protocol": "nyuv2-40-288x384-mtan"}, "classes 40 instead of 13"),
    ({"protocol": "nyuv2-13-288x384-mtan-raw"}, "data changed by 'raw'"),
    ({"protocol": "nyuv2-13"}, "data 'nyuv2-13' instead of 'nyuv2-13-288x384-mtan'"),
    ({"split": "val"}, "val split instead of test"),
    ({"images": 65}, "65 images instead of 654"),
    ({"skipped": ["a", "b"]}, "2 images skipped"),
    ({"input_size": [240, 320]}, "input 240x320 instead of 288x384"),
    ({"label_size": None}, "images of several sizes or of an unknown one instead of input 288x384"),
    ({"batch_size": 4}, "depth: means over batches of 4 instead of 2 images"),
    ({"processes": 2}, "depth: batches of 2 processes instead of one"),
    ({"tasks": {"boundaries": entry("global", "F")}}, "none of its tasks (semseg, depth, normals)"),
])
def test_the_first_difference_is_the_reason(change: dict, reason: str) -> None:
    found = judged(cag() | change)
    assert "CAG" not in found.notes and found.reasons["CAG"] == reason


@pytest.mark.parametrize(("task", "change", "reason"), [
    ("semseg", {"options": {"require_tp": True, "union_unlabeled": False}}, "semseg: require_tp True instead of False"),
    ("depth", {"accumulation": "image"}, "depth: accumulation image instead of batch"),
    ("normals", {"accumulation": ""}, "normals: accumulation not recorded, evaluate the run again"),
])
def test_how_a_task_is_measured_counts(task: str, change: dict, reason: str) -> None:
    record = copy.deepcopy(cag())
    record["tasks"][task] |= change
    assert judged(record).reasons["CAG"] == reason


def test_what_is_not_checked_is_said() -> None:
    record = cag()
    del record["tasks"]["normals"]
    record["weights"] = "best"
    notes = judged(record).notes["CAG"]
    assert notes[0].startswith("weights best on validation images carved out of train here, mean over the last 10")
    assert "trained there: 200 epochs of SegNet-MTAN" in notes[1]
    assert "without normals, so that aggregates over tasks cannot be compared" in notes


def test_an_absent_measure_is_a_note() -> None:
    record = {"protocol": "pascal_context-21-native-pascal_mt", "split": "test", "images": 5105, "weights": "last",
              "tasks": {"semseg": entry("global", "mIoU", require_tp=False, union_unlabeled=False),
                        "boundaries": entry("global", "F")}}
    found = judged(record)
    assert set(found.notes) == {"ATRC-P", "INVPT-P"}
    assert "boundaries: odsF not measured here" in found.notes["ATRC-P"]
    # At 512x512 it is what ASTMT does; the double sigmoid separates InvPT from ATRC.
    record["input_size"] = [512, 512]
    record["tasks"]["saliency"] = entry("global", "maxF", "mIoU_per_image", double_sigmoid=True)
    assert set(judged(record).notes) == {"ASTMT-P", "SURV-P"}
    assert set(judged(record | {"input_size": None}).notes) == {"INVPT-P"}


@pytest.mark.parametrize(("size", "benchmark", "ids"), [
    ([512, 512], "pascal_survey", {"SURV-P"}), (None, "pascal", {"ATRC-P", "INVPT-P"}),
    ([512, 512], "pascal", {"ASTMT-P"}),
])
def test_odsf_of_all_images_is_not_that_of_the_edge_tool(size, benchmark: str, ids: set[str]) -> None:
    """The tool takes 2498 of the 5105 images; mIoU of all of them still belongs to the protocol."""
    record = {"protocol": "pascal_context-21-native-pascal_mt", "split": "test", "images": 5105, "weights": "last",
              "input_size": size,
              "tasks": {"semseg": entry("global", "mIoU", require_tp=False, union_unlabeled=False),
                        "boundaries": entry("global", "odsF", "F", benchmark=benchmark)}}
    notes = judged(record).notes
    assert set(notes) == ids
    said = "boundaries: odsF of 5105 images does not belong to it; there it is of 2498 of them"
    assert all((said in lines) == (name != "ASTMT-P") for name, lines in notes.items())
    del record["tasks"]["boundaries"]
    assert not any("2498" in line for lines in judged(record).notes.values() for line in lines
                   if line.startswith("boundaries"))


def test_data_of_nobody_belongs_to_nothing() -> None:
    assert judged(libmtl() | {"protocol": "rooms-1-128x160"}) == judged({"tasks": {}})


def test_what_no_run_can_reproduce_says_why() -> None:
    record = libmtl() | {"protocol": "nyuv2-40-480x640-adashare", "label_size": [480, 640]}
    assert "angles between raw 8-bit vectors" in judged(record).reasons["ADA-N"]


def test_old_records_belong_to_nothing() -> None:
    old = {"protocol": "nyuv2-13-288x384-mtan", "split": "test", "images": 654,
           "tasks": {"semseg": {"metrics": {"mIoU": 30.0}}}}
    assert not judged(old).notes


def test_ids_are_unique_and_an_unknown_one_is_refused() -> None:
    assert all(name == protocol.id for name, protocol in PROTOCOLS.items())
    with pytest.raises(InputError, match=r"protocol 'CAGG': got an unknown id; needs one of .*nearest: CAG"):
        find("CAGG")


@pytest.mark.parametrize("name", CATALOG.names())
def test_directions_are_those_of_the_tasks(name: str) -> None:
    directions = CATALOG.load(name).Config().build(labels=LabelInfo(classes=("a", "b"))).higher_is_better
    for protocol in PROTOCOLS.values():
        if name in protocol.tasks and not protocol.obstacle:
            shared = {metric: higher for metric, higher in protocol.tasks[name].metrics.items() if metric in directions}
            assert shared == {metric: directions[metric] for metric in shared}
            assert shared or name == "boundaries", (protocol.id, name)


# -- rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", tables(), ids=lambda table: f"{table.protocol}-{table.backbone}")
def test_columns_are_numbers_of_the_protocol(table) -> None:
    numbers = find(table.protocol).numbers
    for column in table.columns:
        task, _, number = column.partition("/")
        assert number in numbers[task]
    for row in table.rows:
        assert any(value is not None for value in row.values)
        # A shifted digit or column shows: shares are percent, errors are not.
        for column, value in zip(table.columns, row.values, strict=True):
            share = any(word in column for word in ("IoU", "accuracy", "within", "delta", "odsF", "maxF"))
            if value is not None and share:
                assert 10 < value < 100, (row.method, column)


def test_rows_are_found_by_their_numbers() -> None:
    by_name = {row.method: table.scores(row) for table in tables() if table.protocol == "CAG" for row in table.rows}
    assert by_name["Nash-MTL"]["depth"] == {"abs_per_batch": 0.5261, "rel_per_batch": 0.2171}
    unknown = next(table.scores(row) for table in tables() if (table.protocol, table.backbone) == ("ATRC-N", "HRNet-18")
                   for row in table.rows if row.method == "MTL baseline")
    assert "depth" not in unknown and unknown["semseg"] == {"mIoU": 36.35}


TABLE = {"protocol": "CAG", "backbone": "b", "source": "s", "columns": ["semseg/mIoU"],
         "rows": [{"method": "m", "tag": "V", "values": [1.0]}]}


@pytest.mark.parametrize(("change", "said"), [
    ({"colums": []}, "unknown field `colums`"),
    ({"rows": [{"method": "m", "tag": "X", "values": [1.0]}]}, "tag"),
    ({"rows": [{"method": "m", "tag": "V", "values": [1.0, 2.0]}]}, "2 values; needs 1, one per column"),
    ({"reference": "nobody"}, "the reference 'nobody'"),
])
def test_the_file_is_read_strictly(change: dict, said: str) -> None:
    assert len(read(json.dumps([TABLE]).encode(), "rows.json")) == 1
    with pytest.raises(InputError) as caught:
        read(json.dumps([TABLE | change]).encode(), "rows.json")
    assert said in str(caught.value) and str(caught.value).startswith("rows.json") and "\n" not in str(caught.value)
