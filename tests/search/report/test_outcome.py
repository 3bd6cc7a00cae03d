"""The numbers of a report, by hand, and the page that shows them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats
from search_folder import SKILLS, evaluation, write_search

from polyptych.errors import InputError
from polyptych.record import write_json
from polyptych.search.procedure.folder import Ranking, SearchSetup, begin, read_networks, run_folder
from polyptych.search.procedure.networks import encoder_for
from polyptych.search.procedure.settings import Search
from polyptych.search.report.outcome import Versus, _versus, gather, winner
from polyptych.search.report.page import write_search_report


def test_the_outcome_by_hand(tmp_path: Path, small_run) -> None:
    plan = write_search(tmp_path, small_run)
    assert SearchSetup.read(tmp_path) == plan
    assert winner(read_networks(tmp_path), tmp_path, (0, 1, 2)) == "searched-1"
    found = gather(tmp_path)
    by_name = {network.name: network for network in found.networks}
    assert found.searched is by_name["searched-1"] and by_name["conflict"].skill == found.searched.skill
    assert found.searched.skill.mean == pytest.approx(0.41) and found.searched.test.mean == pytest.approx(0.36)
    assert winner(read_networks(tmp_path), tmp_path, (0,)) == "searched-2"  # which the other seeds do not bear out
    assert by_name["single"].relative["multiply_adds"] == 2 and by_name["shared"].relative["parameters"] == 1
    # Per seed the mean of (mIoU - single) / single and (single - RMSE) / single.
    expected = [50 * ((a - b) / b + (a - b) / (1 - b)) for a, b in zip([0.40, 0.42, 0.41], [0.30, 0.32, 0.31],
                                                                         strict=True)]
    assert list(found.searched.delta.by_seed.values()) == pytest.approx(expected)
    test, val = found.versus
    # Medians of the three trees: 0.36, 0.41, 0.39.
    assert (test.split, val.split) == ("test", "val")
    assert list(val.differences.values()) == pytest.approx([0.04, 0.01, 0.02]) and val.better == 3
    assert "beats the random-tree median in every seed" in val.verdict and "val split" in val.verdict
    policies = tuple(replace(network, kind="op") if network.kind == "tree" else network for network in found.networks)
    assert _versus(policies, "val") == replace(val, median="median of the random policies")
    pairs = [(score, sum(skills) / len(skills)) for score, skills in SKILLS.values()]
    assert found.correlation.policies == len(pairs)
    assert found.correlation.spearman == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    assert found.correlation.kendall == pytest.approx(stats.kendalltau(*zip(*pairs, strict=True)).statistic)


@pytest.mark.parametrize(("differences", "said"), [
    ([0.1, 0.2, 0.1], "beats the random-tree median in every seed"),
    ([0.1], "fewer than 3 seeds"),
    ([0.1, -0.01, 0.1], "in 2 of 3 seeds: this is no clear win"),
    ([-0.1, 0.01, -0.1], "does not beat the random-tree median (-0.0633 skill on the test split over 3 "
                         "seeds; better in 1 of 3)"),
])
def test_a_win_is_called_one_only_where_it_is(differences: list[float], said: str) -> None:
    mean = sum(differences) / len(differences)
    versus = Versus("test", dict(enumerate(differences)), mean, None, sum(d > 0 for d in differences))
    assert said in versus.verdict


def test_the_report_says_it_all(tmp_path: Path, small_run) -> None:
    write_search(tmp_path, small_run)
    page = write_search_report(tmp_path).read_text()
    text = (tmp_path / "search.md").read_text()
    for part in ("beats the random-tree median in every seed", "Spearman +0.", "searched-2", "bottom-3"):
        assert part in page and part in text
    assert page.count("<figure") == 3 and not re.search(r"""(src|href|url)\s*[=(]\s*["']?(http|file)""", page)
    assert "8 policies (at least 10 are needed" in " ".join(page.split())
    for name in ("front.svg", "ranks.svg", "sharing.png"):
        assert (tmp_path / name).stat().st_size > 1000 and name in text
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert [n["label"] for n in numbers["networks"]][:2] == ["searched", "searched-2"]
    assert numbers["versus"][0]["verdict"] in text.replace("\\", "")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the program chromium")
def test_no_table_is_cut_off_in_a_browser(tmp_path: Path, small_run) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    write_search(tmp_path, small_run, timed=True)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(write_search_report(tmp_path).as_uri())
        widths = page.eval_on_selector_all(".wide", "all => all.map(e => [e.scrollWidth, e.clientWidth])")
        heads = page.eval_on_selector_all(".wide thead", "all => all.map(e => e.innerText)")
        browser.close()
    assert len(widths) == 3 and all(content <= room for content, room in widths)
    assert "supermodel" in heads[0] and "latency" in heads[1]


def test_a_report_before_the_end_says_what_is_missing(tmp_path: Path, small_run) -> None:
    write_search(tmp_path, small_run)
    (run_folder(tmp_path, "tree-1", 0) / "evaluation" / "val.json").unlink()
    with pytest.raises(InputError, match="tree-1--seed0"):
        write_search_report(tmp_path)


def test_another_finalist_may_win(tmp_path: Path, small_run) -> None:
    write_search(tmp_path, small_run)
    write_json(run_folder(tmp_path, "searched-2", 0) / "evaluation" / "val.json", evaluation(0.6))
    assert gather(tmp_path).searched.name == "searched-2"


def test_a_folder_belongs_to_one_search(tmp_path: Path, small_run) -> None:
    plan = write_search(tmp_path / "s", small_run)
    begin(plan, tmp_path / "s")  # the same again goes on
    for other in (replace(plan, search=Search(candidates=7)), replace(plan, seeds=(4,)),
                  replace(plan, run=replace(plan.run, steps=99))):
        with pytest.raises(InputError, match="a search with other choices"):
            begin(other, tmp_path / "s")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        begin(plan, tmp_path / "used")


def test_records_are_read_as_they_were_written(tmp_path: Path, small_run) -> None:
    write_search(tmp_path, small_run)
    networks = read_networks(tmp_path)
    assert [n.candidate.name for n in networks] == [*SKILLS, "conflict"]
    ranking = Ranking.read(tmp_path / "ranking.json")
    assert not ranking.scores
    for network in networks[:3]:
        ranking.add(network.candidate.policy, network.scores)
    again = Ranking.read(tmp_path / "ranking.json")
    assert again.scores == ranking.scores and list(again.judged().scores.values()) == pytest.approx([0.5, 0.6, 0.1])
    (tmp_path / "ranking.json").write_text("{}")
    with pytest.raises(InputError, match="not a list"):
        Ranking.read(tmp_path / "ranking.json")


def test_every_candidate_has_the_encoder_of_its_kind(tmp_path: Path, small_run) -> None:
    write_search(tmp_path, small_run)
    encoders = {n.candidate.name: encoder_for(n.candidate).name for n in read_networks(tmp_path)}
    assert encoders["single"] == "single" and encoders["shared"] == "shared" and encoders["tree-0"] == "searched"


def test_a_skill_that_is_not_a_number_never_wins(tmp_path: Path, small_run) -> None:
    for first in ("searched-1", "searched-2"):  # in whatever order comparison would meet it
        folder = tmp_path / first
        write_search(folder, small_run)
        write_json(run_folder(folder, first, 1) / "evaluation" / "val.json", evaluation(float("nan")))
        other = {"searched-1": "searched-2", "searched-2": "searched-1"}[first]
        assert winner(read_networks(folder), folder, (0, 1, 2)) == other
