# ruff: noqa: RUF001
"""The report page: complete, self-contained, safe against hostile names, and plain about what is missing."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyptych.errors import InputError
from polyptych.logbook import read_events
from polyptych.reports import page
from polyptych.reports.page import write_report

HOSTILE = '"><script>alert(1)</script>|<img src=x onerror=alert(2)>'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of its own for a test that changes it; its log is short because drawing takes time."""
    log = [{"event": "train", "step": step, "losses": {"semseg": 2.0}} for step in (200, 400)]
    return make_run(tmp_path / "a run", log)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tags, str, Path]:
    """The report of a whole run, for the tests that only read: its tags, its text and its folder."""
    log = [
        {
            "event": "train",
            "step": step,
            "losses": {"semseg": 2.0 / step, "depth": 1.0},
            "weights": {"semseg": 1.0, "depth": 1.0},
            "learning_rate": 0.001,
            "images_per_second": 30.0,
            "seconds": 0.31 * step,
        }
        for step in range(20, 401, 20)
    ]
    log += [
        {
            "event": "validation",
            "step": step,
            "metrics": {"semseg": {"mIoU": 30.0}, "depth": {"RMSE": 1.2}},
            "skill": 0.3,
        }
        for step in (200, 400)
    ]
    run = make_run(tmp_path_factory.mktemp("runs") / "a run", log)
    return *written(run), run


def make_run(run: Path, log: list[dict]) -> Path:
    (run / "evaluation").mkdir(parents=True)
    (run / "panels").mkdir()
    parts = {
        slot: {"name": name}
        for slot, name in (
            ("backbone", "timm"),
            ("encoder", "mtan"),
            ("decoder", "ema_net"),
            ("balancer", "uncertainty"),
        )
    }
    save(
        run / "run.json",
        {
            "version": "0.1.0",
            "run": {
                "dataset": {"name": "rooms"},
                "tasks": {"semseg": {"name": "semseg"}, "depth": {"name": "depth"}},
                **parts,
                "size": [128, 160],
                "steps": 400,
                "clip": 0.0,
                "optimizer": {"kind": "adamw", "rate": 0.001},
            },
            "facts": {
                "protocol": "rooms-1-128x160",
                "labels": {
                    "semseg": {"classes": ["wall", "bed"], "colors": [[10, 20, 30], [40, 50, 60]]},
                    "depth": {"unit": "m"},
                },
            },
        },
    )
    save(
        run / "environment.json",
        {
            "python": "3.11",
            "torch": "2.15",
            "cores": 2,
            "accelerator": "none",
            "processor": "Some CPU",
            "command": "polyptych train rooms --steps 400 && echo",
        },
    )
    evaluation = {
        "protocol": "rooms-1-128x160",
        "split": "test",
        "step": 400,
        "images": 128,
        "weights": "ema",
        "input_size": [128, 160],
        "skill": 0.35,
        "tasks": {
            "semseg": {
                "headline": "mIoU",
                "metrics": {"mIoU": 31.0},
                "trivial": {"mIoU": 3.1},
                "higher_is_better": {"mIoU": True},
                "skill": 0.29,
                "unit": "",
                "note": "",
                "classes": {"wall": 71.2, "bed": float("nan")},
            },
            "depth": {
                "headline": "RMSE",
                "metrics": {"RMSE": 1.2},
                "trivial": {"RMSE": 1.0},
                "higher_is_better": {"RMSE": False},
                "skill": -0.2,
                "unit": "m",
                "note": "synthetic",
            },
        },
    }
    save(run / "evaluation" / "test.json", evaluation)
    save(run / "evaluation" / "val.json", evaluation | {"split": "val", "images": 16})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    for index in range(2):
        Image.fromarray(np.full((30, 50 + index, 3), 90, np.uint8)).save(run / "panels" / f"{index:03}.png")
    return run


def save(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


class Tags(HTMLParser):
    """Collects tags with attributes, and checks that every tag that opens also closes."""

    VOID = ("meta", "img", "input", "br", "link", "hr")

    def __init__(self, html: str):
        super().__init__()
        self.seen: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.seen if name == tag]


def written(folder: Path) -> tuple[Tags, str]:
    path = write_report(folder)
    assert path == folder / "report.html"
    html = path.read_text(encoding="utf-8")
    return Tags(html), html


def test_the_page_shows_results_with_the_trivial_baseline(full: tuple[Tags, str, Path]) -> None:
    tags, html, _ = full
    rows = [re.sub(r"<[^>]+>|\s+", " ", row).split() for row in re.findall(r"<tr.*?</tr>", html, re.S)]
    assert ["semseg", "mIoU", "↑", "31.00", "3.10", "0.290"] in rows
    assert ["depth", "m", "RMSE", "↓", "1.200", "1.000", "−0.200"] in rows
    assert "protocol rooms-1-128x160" in tags.text and "128 images" in tags.text
    assert html.count("width: 29.0%") == 2 and 'class="bar below"' in html  # on test and on val
    assert "Results on the val split" in tags.text and "16 images" in tags.text
    assert "depth synthetic" in re.sub(r"\s+", " ", tags.text)


def test_the_summary_says_what_where_and_how_well(full: tuple[Tags, str, Path]) -> None:
    tags, _, _ = full
    assert (
        "semseg and depth on rooms with timm backbone, mtan encoder, ema_net decoder and uncertainty balancer"
        in tags.text
    )
    assert "400 steps in 2 min 4 s on Some CPU, protocol rooms-1-128x160" in tags.text
    assert (
        "mean skill 0.350 on 128 test images: semseg mIoU 31.00 (trivial 3.10), "
        "depth RMSE 1.200 m (trivial 1.000)" in tags.text
    )


def test_the_page_needs_nothing_else(full: tuple[Tags, str, Path]) -> None:
    tags, html, _ = full
    for tag, attributes in tags.seen:
        for name in ("src", "href", "xlink:href", "data", "action"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name])
    assert not tags.all("script") and not tags.all("link") and "@import" not in html
    # Beside data and fragments of its own drawings, nothing is fetched from a style either.
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)'\"]*)", html))


def test_pictures_are_embedded_whole(full: tuple[Tags, str, Path]) -> None:
    tags, _, _ = full
    images = tags.all("img")
    assert len(images) == 2
    for index, attributes in enumerate(images):
        content = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"), validate=True)
        assert Image.open(io.BytesIO(content)).size == (50 + index, 30)
        assert (attributes["width"], attributes["height"]) == (str(50 + index), "30")
        assert attributes["alt"].startswith(f"Example {index + 1}:")


def test_the_page_begins_with_a_picture_and_its_legend(full: tuple[Tags, str, Path]) -> None:
    _, html, run = full
    assert html.index("Example 1") < html.index("<h2>Results") < html.index("Example 2") < html.index("<h2>Curves")
    markdown = (run / "report.md").read_text()
    assert markdown.index("panels/000.png") < markdown.index("## Results") < markdown.index("panels/001.png")


@pytest.mark.parametrize(("areas", "shown"), [
    (None, ["wall", "bed"]),  # a run of an older version
    ({"semseg": {"bed": 90, "wall": 10}}, ["bed", "wall"]),
    ({"semseg": {"bed": 90}}, ["bed"]),
])
def test_the_legend_shows_what_occurs_the_largest_area_first(folder: Path, areas: dict | None, shown: list) -> None:
    if areas:
        save(folder / "panels/areas.json", areas)
    _, html = written(folder)
    legend = re.search(r'<ul class="legend" aria-label="Colors of semseg">(.*?)</ul>', html, re.S)[1]
    assert re.findall(r"</span>(\w+)</li>", legend) == shown


def test_a_run_without_colors_has_those_of_its_pictures(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["facts"]["labels"]["semseg"] = {"classes": ["background", "bed"]}
    save(folder / "run.json", record)
    legend = re.search(r'<ul class="legend".*?</ul>', written(folder)[1], re.S)[0]
    assert "rgb(0, 0, 0)\"></span>background" in legend and legend.count("swatch") == 2


def test_curves_classes_settings_and_commands(full: tuple[Tags, str, Path]) -> None:
    tags, html, _ = full
    labels = [attributes["aria-label"] for attributes in tags.all("figure")]
    assert any(label.startswith("Training loss: semseg loss over 20 points") for label in labels)
    assert len(labels) == len([tag for tag, _ in tags.seen if tag == "svg"]) - 1 == 7  # one more is the mark
    assert html.count("background: rgb(10, 20, 30)") == 2  # in the legend and in the table of classes
    assert re.search(r"wall</span>.*?71\.2%.*?71\.2</span>", html) and re.search(r"bed</span>.*?–</span>", html)
    assert "128, 160" in tags.text and "0.001" in tags.text
    assert "polyptych train rooms --steps 400 && echo" in tags.text
    assert "polyptych train --from 'a run' --out 'a run-again'" in tags.text
    assert all(attributes.get("scope") in ("row", "col") for attributes in tags.all("th"))


def test_names_from_outside_cannot_inject(folder: Path) -> None:
    text = json.dumps(HOSTILE)[1:-1]
    for name in ("evaluation/test.json", "run.json", "metrics.jsonl", "environment.json"):
        path = folder / name
        for word in ("semseg", "mIoU", "wall", "uncertainty", "Some CPU", "polyptych train rooms"):
            path.write_text(path.read_text().replace(f'"{word}', f'"{word}{text}'))
    tags, html = written(folder)
    assert not tags.all("script") and len(tags.all("img")) == 2
    assert HOSTILE in tags.text and "<script" not in html
    assert not [name for _, attributes in tags.seen for name in attributes if name.startswith("on")]
    markdown = (folder / "report.md").read_text()
    code = [line for line in markdown.splitlines() if line.startswith("    ")]  # shown as it is
    assert len(code) == 2
    assert not [line for line in markdown.splitlines() if "<" in line and line not in code]


def test_hostile_file_names(folder: Path) -> None:
    shutil.copy(folder / "panels" / "000.png", folder / "panels" / "x\" onload='y') &.png")
    tags, _ = written(folder)
    assert [attributes["title"] for attributes in tags.all("img")] == [
        "Example 1",
        "Example 2",
        "x\" onload='y') &",
    ]
    assert "](panels/x%22%20onload%3D%27y%27%29%20%26.png)" in (folder / "report.md").read_text()


def test_markdown_links_exist_and_hold_the_numbers(full: tuple[Tags, str, Path]) -> None:
    folder = full[2]
    markdown = (folder / "report.md").read_text()
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown)
    assert links == ["panels/000.png", "panels/001.png", "curves.svg"]
    assert all((folder / link).is_file() for link in links)
    assert "| **semseg** | **mIoU** ↑ | **31.00** | 3.10 | 0.290 |" in markdown
    assert "| wall | 71.2 |" in markdown and "| bed | – |" in markdown and "### On the val split" in markdown
    assert "    polyptych train rooms --steps 400 && echo\n" in markdown
    assert "\n\n\n\n" not in markdown and "&amp;amp;" not in markdown


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("evaluation", "Nothing has been evaluated yet"),
        ("panels", "There are no example pictures."),
        ("metrics.jsonl", "There is no training log."),
        ("run.json", "The settings were not recorded"),
        ("environment.json", "The environment was not recorded."),
    ],
)
def test_what_is_missing_is_left_out_and_said(folder: Path, missing: str, sentence: str) -> None:
    assert sentence not in written(folder)[0].text
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert sentence in written(folder)[0].text
    assert sentence in (folder / "report.md").read_text()


def test_an_empty_folder_gives_a_page(tmp_path: Path) -> None:
    tags, _ = written(tmp_path)
    assert len(re.findall("no |not |Nothing", tags.text)) >= 6 and not tags.all("img")


def test_only_a_validation_result(folder: Path) -> None:
    (folder / "evaluation" / "test.json").unlink()
    assert "mean skill 0.350 on 16 val images" in written(folder)[0].text


def test_a_damaged_line_is_named(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    lines = 4 * path.read_text().splitlines(keepends=True)
    lines[2] = '{"event": "train", "step": \n'
    path.write_text("".join(lines))
    with pytest.raises(InputError) as error:
        write_report(folder)
    assert re.fullmatch(
        re.escape(f"{path}, line 3: got a line that is not JSON (") + r".*\); needs one JSON object "
        r"with a step on each line; remove the line, or restore the file",
        str(error.value),
    )
    lines[2] = "[1]\n"
    path.write_text("".join(lines))
    with pytest.raises(InputError, match=r"line 3: got a line without a step"):
        write_report(folder)


def test_half_a_line_at_the_end_is_passed_over(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    whole = read_events(path)
    path.write_text(path.read_text() + '{"event": "train", "st')
    assert read_events(path) == whole


def test_nan_in_files_is_read_and_shown(folder: Path) -> None:
    path = folder / "evaluation" / "test.json"
    path.write_text(path.read_text().replace("31.0", "NaN").replace("0.29", "NaN").replace("0.35", "null"))
    tags, _ = written(folder)
    assert "semseg mIoU – (trivial 3.100)" in tags.text and "mean skill – on" in tags.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", r"run\.json: got a file that is not JSON \(.*line 1"),
        ("run.json", "[]", r"run\.json: got list; needs a JSON object"),
        ("evaluation/test.json", "{}", r"test\.json: got a field that does not fit"),
        ("panels/000.png", "no picture", r"000\.png: got a file that is not a picture; needs a PNG"),
    ],
)
def test_damaged_files_are_named(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message):
        write_report(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: got no such folder; needs the folder of a run; check the path"):
        write_report(tmp_path / "nowhere")


def test_many_examples_are_cut_with_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_PANELS", 1)
    tags, _ = written(folder)
    assert len(tags.all("img")) == 1 and "The first 1 of 2 examples" in tags.text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the program chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(folder: Path, tmp_path: Path, dark: bool) -> None:
    picture = tmp_path / "page.png"
    subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={picture}",
            "--window-size=1000,1200",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            write_report(folder).as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    shown = np.array(Image.open(picture).convert("L"))
    ground = shown[2, 2]
    assert (ground < 60) if dark else (ground > 220)
    assert abs(int(shown[40:400, 60:600].min()) - int(shown[40:400, 60:600].max())) > 150  # text is readable
