"""From finished runs to the table and its files; no run is trained here."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparison_runs import pretend_finished, two_tasks

from polyptych.comparison.gather import gather
from polyptych.comparison.grid import Grid, make_grid
from polyptych.comparison.pictures import Example, ExamplePicture
from polyptych.comparison.report import Page, terminal_table, write_comparison
from polyptych.comparison.results import Comparison, collect
from polyptych.comparison.statistics import half_width, p_value
from polyptych.errors import InputError
from polyptych.profiling.profile import Cost

VALUES = {  # (mIoU, RMSE) by network and seed
    "single": {0: (40.0, 0.50), 1: (44.0, 0.60)},
    "shared": {0: (42.0, 0.45), 1: (44.0, 0.66)},
    "shared+heads:head=aspp": {0: (36.0, 0.50), 1: (44.0, 0.54)},
}


@pytest.fixture
def grid(small_run, tmp_path: Path) -> Grid:
    return make_grid(two_tasks(small_run), tmp_path, list(VALUES), [], [0, 1])


@pytest.fixture
def finished(grid: Grid) -> Grid:
    for entry in grid.entries:
        pretend_finished(entry, *VALUES[entry.method.network][entry.seed])
    return grid


def with_costs(comparison: Comparison) -> Comparison:
    made = [Cost(10**6 * n, 10**9 * n, 10**7 * n, 3 * 10**7 * n, 0.01 * n, 100.0 / n, 10**5) for n in (3, 1, 2)]
    return replace(comparison, methods=tuple(
        replace(method, cost=cost) for method, cost in zip(comparison.methods, made, strict=True)))


def example() -> Example:
    def cell(value: int) -> ExamplePicture:
        return ExamplePicture(np.full((6, 8, 3), value, np.uint8), f"picture {value}")

    rows = {label: {"semseg": cell(9), "depth": cell(99)} for label in ("truth", "single · fixed", "shared · fixed")}
    return Example("test/<0>", cell(50), rows)


def test_means_deltas_and_ranks(finished: Grid) -> None:
    found = collect(finished.entries, {})
    assert (found.protocol, found.split, found.images, found.seeds) == ("rooms-1-48x64", "test", 4, (0, 1))
    single, shared, aspp = found.methods
    assert single.reference and found.reference is single and not shared.reference
    assert shared.metrics["semseg"]["mIoU"].mean == 43 and shared.metrics["semseg"]["accuracy"].mean == 86
    assert shared.metrics["depth"]["RMSE"].half_width == pytest.approx(half_width([0.45, 0.66]))
    assert shared.deltas["semseg"].by_seed == pytest.approx({0: 5.0, 1: 0.0})
    assert shared.deltas["depth"].by_seed == pytest.approx({0: 10.0, 1: -10.0})
    assert shared.delta_mtl.by_seed == pytest.approx({0: 7.5, 1: -5.0})
    assert shared.delta_mtl.mean == pytest.approx(1.25)
    assert shared.delta_mtl.half_width == pytest.approx(half_width([7.5, -5.0]))
    assert single.delta_mtl.mean == 0
    # Means: mIoU 42, 43, 40 and RMSE 0.55, 0.555, 0.52.
    assert [method.mean_rank for method in found.methods] == [2.0, 2.0, 2.0]
    assert aspp.training_seconds.mean == 12.5 and found.machines == ("a processor, 2 cores",)


def test_pairing_by_seed_is_not_the_delta_of_means(finished: Grid) -> None:
    shared = collect(finished.entries, {}).methods[1]
    of_means = (100 * (43 - 42) / 42 - 100 * (0.555 - 0.55) / 0.55) / 2
    assert abs(shared.delta_mtl.mean - of_means) > 0.1


def test_a_method_whose_reference_seed_failed_uses_the_other_seeds(grid: Grid) -> None:
    for entry in grid.entries:
        if not (entry.method.reference and entry.seed == 1):
            pretend_finished(entry, *VALUES[entry.method.network][entry.seed])
    found = collect(grid.entries, {"single · fixed · seed 1": "out of memory"})
    shared = found.methods[1]
    assert shared.delta_mtl.by_seed == pytest.approx({0: 7.5}) and shared.delta_mtl.half_width is None
    assert shared.seeds == (0, 1) and found.methods[0].seeds == (0,)


def test_a_method_without_any_reference_has_no_delta(grid: Grid) -> None:
    for entry in grid.entries:
        if not entry.method.reference:
            pretend_finished(entry, *VALUES[entry.method.network][entry.seed])
    found = collect(grid.entries, {})
    assert found.reference is None and found.methods[0].delta_mtl is None
    assert found.methods[0].deltas == {"semseg": None, "depth": None}


def test_nothing_finished_is_an_error_that_says_why(grid: Grid) -> None:
    with pytest.raises(InputError, match=r"no finished run \(disk is full\)"):
        collect(grid.entries, {"single": "disk is full"})


def test_the_files_hold_the_same_numbers(finished: Grid, tmp_path: Path) -> None:
    comparison = with_costs(collect(finished.entries, {}))
    write_comparison(comparison, [example()], tmp_path)
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["methods"][1]["delta_mtl"] == {
        "mean": pytest.approx(1.25), "half_width": pytest.approx(half_width([7.5, -5.0])),
        "by_seed": {"0": pytest.approx(7.5), "1": pytest.approx(-5.0)}}
    assert record["tasks"]["depth"] == {"headline": "RMSE", "higher_is_better": {"RMSE": False}, "unit": "m",
                                        "note": "along the axis", "trivial": {"RMSE": 1.5}}
    assert record["run"]["steps"] == 2 and record["methods"][0]["cost"]["multiply_adds"] == 3 * 10**9
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    row = next(row for row in rows if (row["network"], row["task"], row["metric"]) == ("shared", "depth", "RMSE"))
    assert (row["better"], float(row["mean"]), row["seeds"], row["by_seed"]) == ("lower", 0.555, "0 1", "0.45 0.66")
    assert {row["metric"] for row in rows if row["network"] == "shared" and not row["task"]} >= {
        "delta_mtl_percent", "mean_rank", "parameters", "multiply_adds", "latency_seconds", "training_seconds"}
    assert next(row["mean"] for row in rows if row["network"] == "trivial" and row["metric"] == "RMSE") == "1.5"
    text = (tmp_path / "comparison.md").read_text()
    assert "| network | balancer | semseg mIoU ↑ | depth RMSE, m ↓ | delta\\_mtl % ↑ | group | mean rank ↓ |" in text
    assert "| trivial | | 2.00 | 1.500 |" in text and "| single (reference) | fixed | 42.00 ± 25.41 |" in text
    assert "| shared | fixed | **43.00 ± 12.71** | 0.555 ± 1.334 | +1.25 ± 79.41 |" in text
    assert "pictures/000.png" in text and (tmp_path / "pictures" / "000.png").exists()
    assert (tmp_path / "scatter.svg").read_text().startswith("<?xml")


def test_the_page_needs_nothing_else_and_says_how_to_read_it(finished: Grid, tmp_path: Path) -> None:
    path = write_comparison(with_costs(collect(finished.entries, {})), [example()], tmp_path)
    text = path.read_text()
    for part in ("95% confidence interval", "Student t", "paired by seed", "evaluated once per run",
                 "protocol rooms-1-48x64", "0123456789ab", "2 seeds (0, 1)", "reference</span>",
                 "data:image/png;base64,", "<svg", "test/&lt;0&gt;", 'href="runs/shared--fixed--seed1/report.html"',
                 "along the axis", "multiply-adds"):
        assert part in text, part
    assert "src=\"http" not in text and "<script" not in text and "test/<0>" not in text


def test_one_seed_is_said_and_has_no_interval(small_run, tmp_path: Path) -> None:
    grid = make_grid(two_tasks(small_run), tmp_path, ["shared"], [], [0])
    for entry in grid.entries:
        pretend_finished(entry, *VALUES[entry.method.network][0])
    comparison = collect(grid.entries, {})
    write_comparison(comparison, [], tmp_path)
    for name in ("comparison.md", "comparison.html"):
        text = (tmp_path / name).read_text()
        assert "there is one seed, so there is no interval" in text and "one seed (0), so no interval" in text
        assert " ± " not in text and "Student" not in text
    assert all(method.delta_mtl.half_width is None for method in comparison.methods)


def test_failed_runs_stand_in_the_report(grid: Grid, tmp_path: Path) -> None:
    for entry in grid.entries[:3]:
        pretend_finished(entry, *VALUES[entry.method.network][entry.seed])
    write_comparison(collect(grid.entries, {"shared · seed 1": "no <room>"}), [], tmp_path)
    assert "no &lt;room&gt;" in (tmp_path / "comparison.html").read_text()
    assert "1 of 2 seeds" in (tmp_path / "comparison.html").read_text()


def test_values_that_are_not_numbers_are_dashes_and_null(grid: Grid, tmp_path: Path) -> None:
    for entry in grid.entries:
        miou, rmse = VALUES[entry.method.network][entry.seed]
        pretend_finished(entry, math.nan if entry.method.network == "shared" else miou, rmse)
    comparison = collect(grid.entries, {})
    write_comparison(comparison, [], tmp_path)
    assert math.isnan(comparison.methods[1].delta_mtl.mean) and math.isnan(comparison.methods[1].mean_rank)
    assert json.loads((tmp_path / "comparison.json").read_text())["methods"][1]["mean_rank"] is None
    assert "NaN" not in (tmp_path / "comparison.json").read_text()
    assert Page(comparison, (), tmp_path).best.network == "shared+heads:head=aspp"


def test_a_best_gain_that_may_be_chance_is_no_headline(grid: Grid, tmp_path: Path) -> None:
    """The only other row is above the reference with one seed and below it with the other; the least difference that
    the table could have shown is then large, and is written without an exponent."""
    two = make_grid(grid.base, tmp_path / "two", ["shared"], [], [0, 1])
    for entry in two.entries:
        pretend_finished(entry, 40 + (0 if entry.method.reference else 10 * (-1) ** entry.seed + 3), 0.5)
    comparison = collect(two.entries, {})
    write_comparison(comparison, [], tmp_path)
    page = " ".join((tmp_path / "comparison.html").read_text().split())
    assert comparison.detectable > 100 and f"A true difference of {comparison.detectable:.0f}% would" in page
    assert '<div class="score unsure"><b>' in page and "highest delta_mtl, %, which may be chance:" in page


def test_the_terminal_gets_what_fits(finished: Grid) -> None:
    comparison = collect(finished.entries, {})
    assert len(terminal_table(comparison, 200).columns) == 7
    assert len(terminal_table(comparison, 60).columns) == 5


def test_what_a_difference_is_worth(grid: Grid, tmp_path: Path) -> None:
    """Two rows: one is better by about 10% with every seed, the other by chance."""
    many = make_grid(grid.base, tmp_path / "many", list(VALUES), [], [0, 1, 2, 3, 4])
    for entry in many.entries:
        plus = {"single": 0.0, "shared": 4 + 0.2 * (-1) ** entry.seed, "shared+heads:head=aspp": (-1) ** entry.seed}
        level = 40 + entry.seed
        pretend_finished(entry, level + plus[entry.method.network], 0.5)
        folder = entry.folder / "evaluation" / "resampled"
        folder.mkdir()
        # Other images move both networks alike, and their difference by 1% of mIoU, which is half of delta_mtl.
        values = [level + plus[entry.method.network] + 0.1 * math.sin(index) + (
            0.01 * level * (-1) ** index if entry.method.network == "shared" else 0) for index in range(100)]
        (folder / "test.json").write_text(json.dumps(
            {"images_in_block": 2, "headlines": {"semseg": values, "depth": [0.5] * 100}}))
    comparison = collect(many.entries, {})
    single, shared, aspp = comparison.methods
    assert single.p_value is None and not single.differs and shared.differs and not aspp.differs
    assert shared.p_value == pytest.approx(p_value(list(shared.delta_mtl.by_seed.values())))
    assert shared.p_corrected == pytest.approx(2 * shared.p_value) and aspp.p_corrected == aspp.p_value
    assert (single.group, shared.group, aspp.group) == ("b", "a", "b")
    assert shared.image_deviation == pytest.approx(0.5, rel=0.1) and single.image_deviation is None
    assert single.ranks == {"semseg": 3.0, "depth": 2.0} and shared.ranks["semseg"] == 1.0
    assert 0 < comparison.detectable < 10
    write_comparison(comparison, [], tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert "shared · fixed differs from the reference beyond chance" in text and "in four of five repetitions" in text
    assert "| delta\\_mtl % ↑ | interval % | p corrected | group | images % |" in text
    page = (tmp_path / "comparison.html").read_text()
    assert page.count(" unsure") >= 2 and "Which differences are significant" in page and "&lt; 0.001" in page
    assert '<div class="score"><b>' in page and "which may be chance" not in page
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["methods"][1]["group"] == "a" and record["detectable"] == comparison.detectable
    with (tmp_path / "comparison.csv").open() as file:
        rows = {(row["network"], row["task"], row["metric"]): row for row in csv.DictReader(file)}
    assert rows["shared", "", "p_corrected"]["mean"] == repr(shared.p_corrected)
    assert rows["shared", "semseg", "rank"]["mean"] == "1.0" and rows["shared", "", "mean_rank"]["group"] == "a"


def test_one_seed_is_no_test(grid: Grid, tmp_path: Path) -> None:
    one = make_grid(grid.base, tmp_path / "one", ["shared"], [], [0])
    for entry in one.entries:
        pretend_finished(entry, *VALUES[entry.method.network][0])
    comparison = collect(one.entries, {})
    assert comparison.detectable is None and comparison.methods[1].p_corrected is None
    write_comparison(comparison, [], tmp_path)
    for name in ("comparison.md", "comparison.html"):
        assert "told apart" not in (tmp_path / name).read_text()


# -- from folders --------------------------------------------------------------------------------------------


def folders(grid: Grid) -> list[Path]:
    return [entry.folder for entry in grid.entries]


def test_a_table_from_folders_is_that_of_the_plan(finished: Grid) -> None:
    planned, found = collect(finished.entries, {}), collect(gather(folders(finished)[::-1]), {})
    assert found.reference.network == "single+heads"  # nobody typed a label here
    spelled = {"single": "single+heads", "shared": "shared+heads"}
    for method in planned.methods:
        other = next(m for m in found.methods if m.network == spelled.get(method.network, method.network))
        assert other.delta_mtl.mean == pytest.approx(method.delta_mtl.mean) and other.metrics == method.metrics


def leave_out_reference(grid: Grid) -> list[Path]:
    return folders(grid)[2:]


def leave_out_a_seed(grid: Grid) -> list[Path]:
    return folders(grid)[1:]


def list_twice(grid: Grid) -> list[Path]:
    return [*folders(grid), folders(grid)[0]]


def copy_under_another_name(grid: Grid) -> list[Path]:
    copy = replace(grid.entries[2], folder=grid.entries[2].folder.with_name("copy"))
    return [*folders(grid), pretend_finished(copy, 1.0, 1.0)]


def other_steps(grid: Grid) -> list[Path]:
    entry = grid.entries[2]
    other = replace(entry, method=replace(entry.method, run=replace(entry.method.run, steps=9)),
                    folder=entry.folder.with_name("other"))
    return [*folders(grid)[:2], pretend_finished(other, 1.0, 1.0)]


def other_protocol(grid: Grid) -> list[Path]:
    other = replace(grid.entries[2], folder=grid.entries[2].folder.with_name("other"))
    return [*folders(grid)[:2], pretend_finished(other, 1.0, 1.0, protocol="nyuv2-40")]


def not_finished(grid: Grid) -> list[Path]:
    (grid.entries[2].folder / "evaluation" / "test.json").unlink()
    return folders(grid)


@pytest.mark.parametrize(("choose", "said"), [
    (leave_out_reference, "--from: got no single-task reference; needs runs with --encoder single"),
    (leave_out_a_seed, "seed 0 of shared+heads · fixed: got no single-task reference with that seed"),
    (list_twice, "--from: got "),
    (copy_under_another_name, "seeds of shared+heads · fixed: got 0 twice"),
    (other_steps, "other: got a run of another recipe (steps is 9); needs steps 2"),
    (other_protocol, "other: got numbers of protocol nyuv2-40; needs protocol rooms-1-48x64"),
    (not_finished, "got a run that is not finished"),
])
def test_refusals(finished: Grid, choose: Callable[[Grid], list[Path]], said: str) -> None:
    chosen = choose(finished)
    with pytest.raises(InputError) as caught:
        gather(chosen)
    assert said in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_a_protocol_that_changed_between_runs_is_refused(grid: Grid) -> None:
    """For instance data that were rendered anew while a comparison was interrupted."""
    for index, entry in enumerate(grid.entries):
        pretend_finished(entry, 1.0, 1.0, protocol="rooms-1-48x64" if index else "rooms-2-48x64")
    with pytest.raises(InputError, match=r"numbers of protocol rooms-1-48x64; needs protocol rooms-2-48x64"):
        collect(grid.entries, {})


def rewrite(entry, **changes) -> None:
    """Add fields of newer evaluations to a finished run; ``depth`` and ``semseg`` go into the tasks."""
    path = entry.folder / "evaluation" / "test.json"
    record = json.loads(path.read_text())
    for task in record["tasks"]:
        record["tasks"][task] |= changes.pop(task, {})
    path.write_text(json.dumps(record | changes))


RULES = {"semseg": {"accumulation": "global", "ignores": "pixels without a label"}, "depth": {"accumulation": "global"}}


@pytest.mark.parametrize(("change", "said"), [
    ({"image_list": {"count": 4, "sha256": "b"}}, "numbers on other test images (evaluation/test.images.txt); needs"),
    ({"depth": {"accumulation": "image"}}, "depth with accumulation image; needs accumulation global, as "),
    ({"semseg": {"options": {"require_tp": True}}},
     "semseg with accumulation global, require tp True, ignoring pixels"),
])
def test_numbers_that_came_about_differently_are_refused(finished: Grid, change: dict, said: str) -> None:
    for entry in finished.entries:
        rewrite(entry, image_list={"count": 4, "sha256": "a"}, **RULES)
    assert collect(finished.entries, {}).rules["semseg"] == "accumulation global, ignoring pixels without a label"
    assert collect(finished.entries, {}).image_list.sha256 == "a"
    rewrite(finished.entries[3], **change)
    with pytest.raises(InputError) as caught:
        collect(finished.entries, {})
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(finished.entries[3].folder))


def test_evaluations_of_older_versions_still_make_a_table(finished: Grid) -> None:
    rewrite(finished.entries[0], image_list={"count": 4, "sha256": "a"}, **RULES)
    found = collect(finished.entries, {})
    assert len(found.methods) == 3 and found.protocols == {}


@pytest.mark.parametrize("newer", [0, 3])
def test_a_metric_that_older_runs_lack_is_left_out(finished: Grid, tmp_path: Path, newer: int) -> None:
    """A newer version measures more; a comparison that it goes on with shows what all runs have."""
    path = finished.entries[newer].folder / "evaluation" / "test.json"
    record = json.loads(path.read_text())
    for part, value in (("metrics", 0.1), ("trivial", 0.2), ("higher_is_better", False)):
        record["tasks"]["depth"][part]["new"] = value
    path.write_text(json.dumps(record))
    found = collect(finished.entries, {})
    assert all("new" not in method.metrics["depth"] for method in found.methods)
    write_comparison(found, [], tmp_path)


def test_published_rows_stand_below_methods_of_their_protocol_only(finished: Grid, tmp_path: Path) -> None:
    write_comparison(collect(finished.entries, {}), [], tmp_path)
    for name in ("comparison.md", "comparison.html"):
        assert "Published" not in (tmp_path / name).read_text()
    for entry in finished.entries:
        rewrite(entry, protocols={"SURV-N": ["RMSE over all pixels"]}, other_protocols={"INVPT-N": "input 4x4"})
    comparison = collect(finished.entries, {})
    write_comparison(comparison, [], tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert "## Published under protocol SURV-N" in text and "comparable with SURV-N" in text
    assert "| **shared · fixed** |  | 43.00 | 0.5550 | – |  |" in text  # noqa: RUF001
    assert "| cross-stitch | ResNet-50 | 44.20 | 0.5700 | +1.61 | R-delta |" in text
    assert "- RMSE over all pixels" in text and "input 4x4" in text
    page = (tmp_path / "comparison.html").read_text()
    assert "cross-stitch" in page and "arXiv 2004.13379" in page
    with (tmp_path / "comparison.csv").open() as file:
        assert {row["comparable_with"] for row in csv.DictReader(file)} == {"SURV-N"}
