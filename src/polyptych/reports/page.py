"""The report of a run: one self-contained HTML file, and the same in Markdown."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from polyptych.errors import InputError
from polyptych.evaluation_record import Evaluation
from polyptych.logbook import read_events
from polyptych.record import decode, flat, read_json
from polyptych.reports import curves, tables, templates
from polyptych.reports.diagnosis import Findings, markdown, pictures, short, whole_percent
from polyptych.reports.label_sheet import NAME as SAMPLES
from polyptych.reports.published import PublishedTable, published_tables
from polyptych.task_gradients import Look
from polyptych.tasks._pictures import class_colors
from polyptych.types import LabelInfo

DIAGNOSIS = "diagnosis.json"  # what `polyptych diagnose` found
AREAS = "panels/areas.json"
"""In the folder of a run: how many pixels of its example pictures each class covers, largest first, by task."""
MOST_PANELS = 24  # that go into the page; it must stay a file that one can send

PARTS = ("backbone", "encoder", "decoder", "balancer")
ENVIRONMENT = {"started": "started", "accelerator": "accelerator", "processor": "processor", "cores": "cores",
               "platform": "platform", "python": "Python", "torch": "PyTorch", "commit": "commit"}


@dataclass(frozen=True)
class Panel:
    """One example picture in the page."""

    path: Path
    title: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()

    @property
    def link(self) -> str:
        """Relative to the run's folder."""
        return quote(f"{self.path.parent.name}/{self.path.name}")


@dataclass(frozen=True)
class ReportData:
    """The contents of a run's folder, and their presentation in the report. Missing files are empty here."""

    folder: Path
    record: Mapping[str, Any]
    environment: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    evaluations: Mapping[str, Evaluation]
    panels: Sequence[Panel]
    samples: Panel | None = None
    looks: Sequence[Look] = ()
    later_looks: Sequence[Look] = ()
    areas: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name of the run."""
        return self.folder.resolve().name

    @property
    def run(self) -> Mapping[str, Any]:
        return _mapping(self.record.get("run"))

    @property
    def labels(self) -> Mapping[str, Any]:
        return _mapping(_mapping(self.record.get("facts")).get("labels"))

    @cached_property
    def main(self) -> Evaluation | None:
        """The main evaluation of the report: that of the test split, if there is one."""
        return self.evaluations.get("test") or next(iter(self.evaluations.values()), None)

    @property
    def others(self) -> dict[str, tables.MetricTable]:
        return {split: tables.metric_table(found) for split, found in self.evaluations.items()
                if found is not self.main}

    @property
    def table(self) -> tables.MetricTable | None:
        return tables.metric_table(self.main) if self.main else None

    @cached_property
    def published(self) -> list[PublishedTable]:
        """Published rows next to this run's test numbers, for the protocols that these follow."""
        if not self.main:
            return []
        return published_tables({self.title: {name: task.metrics for name, task in self.main.tasks.items()}},
                                self.main.protocols)

    @property
    def unpublished(self) -> list[tuple[str, str]]:
        """Protocols of the same dataset that these numbers do not follow, and why."""
        return list(self.main.other_protocols.items()) if self.main else []

    @property
    def classes(self) -> dict[str, list[tables.ClassRow]]:
        """Per-class rows of every task that has classes."""
        found = self.main.tasks.items() if self.main else ()
        return {name: tables.class_rows(task.classes) for name, task in found if task.classes}

    @property
    def swatches(self) -> dict[str, dict[str, str]]:
        """CSS colors by task and class."""
        found = {}
        for task, label in self.labels.items():
            classes = tuple(map(str, _mapping(label).get("classes") or ()))
            stated = _mapping(label).get("colors") or ()
            colors = tuple((int(red), int(green), int(blue)) for red, green, blue in stated)
            painted = class_colors(LabelInfo(classes=classes, colors=colors))
            found[task] = {name: "rgb({:d}, {:d}, {:d})".format(*color)
                           for name, color in zip(classes, painted, strict=False)}
        return {task: colors for task, colors in found.items() if colors}

    @property
    def legends(self) -> dict[str, dict[str, str]]:
        """The colors of classes that occur in the example pictures, the largest areas first; all colors if areas are
        not recorded (some tasks, and runs of older versions)."""
        return {task: {name: colors[name] for name in (self.areas.get(task) or colors) if name in colors}
                for task, colors in self.swatches.items()}

    @cached_property
    def plots(self) -> list[curves.Plot]:
        # The training log uses the tasks' own metric names.
        headlines = {name: task.own_headline for name, task in self.main.tasks.items()} if self.main else {}
        return curves.plots(self.events, headlines)

    @property
    def without_curves(self) -> str:
        return "The training log is too short for a curve." if self.events else "There is no training log."

    @property
    def plot_groups(self) -> list[tuple[str, list[tuple[curves.Plot, Markup]]]]:
        end = curves.last_step(self.plots)
        return [(group, [(plot, Markup(curves.svg(plot, end))) for plot in plots])
                for group, plots in groupby(self.plots, key=lambda plot: plot.group)]

    @cached_property  # both forms of the report ask for it, several times
    def diagnoses(self) -> list[tuple[str, Findings, list[tuple[str, Markup]]]]:
        """How the tasks affected each other in training, and in later runs of ``polyptych diagnose``: when, the
        findings, and the figures with their titles."""
        first: Mapping[str, float] = next((event["losses"] for event in self.events if event.get("losses")), {})
        found = []
        for looks, when in ((self.looks, "While it trained, "), (self.later_looks, "With the weights of ")):
            if looks:
                steps = sorted({look.step for look in looks})
                span = f"step {steps[0]:,}" if len(steps) == 1 else f"steps {steps[0]:,} to {steps[-1]:,}"
                findings = Findings(looks, first)
                found.append((f"{when}{span}, {len(looks)} batch{'es' if len(looks) != 1 else ''}", findings,
                              [(title, Markup(drawing)) for title, drawing in pictures(findings, when=when)]))
        return found

    @property
    def summary(self) -> list[tuple[str, str]]:
        """What was trained, where, and how well: one line each."""
        lines = {"Trained": self._trained(), "Where": self._where(), "Result": self._result()}
        return [(label, line) for label, line in lines.items() if line]

    @property
    def settings(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Every field of the run in groups: plain fields first, then one group per part."""
        plain = [(key, _shown(value)) for key, value in self.run.items() if not isinstance(value, dict)]
        parts = [(key, [(name, _shown(item)) for name, item in flat(value)])
                 for key, value in self.run.items() if isinstance(value, dict) and value and key != "reasons"]
        return [("run", plain), *parts] if plain else parts

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Options that the recipe chose from the data, and why."""
        return [(str(option), str(reason)) for option, reason in _mapping(self.run.get("reasons")).items()]

    @property
    def surroundings(self) -> list[tuple[str, str]]:
        return [(title, str(self.environment[key])) for key, title in ENVIRONMENT.items()
                if self.environment.get(key)]

    @property
    def commands(self) -> list[tuple[str, str]]:
        """How to repeat the run: the original command, and from its record."""
        commands = []
        if command := self.environment.get("command"):
            commands.append(("The command that started it", str(command)))
        if self.run:
            again = shlex.join(["polyptych", "train", "--from", self.title, "--out", f"{self.title}-again"])
            commands.append(("The same choices, read back from run.json", again))
        return commands

    def _trained(self) -> str:
        tasks = list(self.run.get("tasks") or self.labels or (self.main.tasks if self.main else ()))
        parts = [f"{_part_name(self.run[slot])} {slot}" for slot in PARTS if _part_name(self.run.get(slot))]
        data = _mapping(self.record.get("facts")).get("dataset") or _part_name(self.run.get("dataset"))
        return " ".join(part for part in (_listed(tasks), f"on {data}" if data else "",
                                          f"with {_listed(parts)}" if parts else "") if part)

    def _where(self) -> str:
        seconds = max((event.get("seconds") or 0 for event in self.events), default=0)
        steps = max((event["step"] for event in self.events), default=0)
        accelerator = self.environment.get("accelerator")
        machine = accelerator if accelerator not in (None, "", "none") else self.environment.get("processor")
        parts = [
            f"{steps:,} steps" if steps else "",
            f"in {tables.duration(seconds)}" if seconds else "",
            f"on {machine}" if machine else "",
        ]
        line = " ".join(part for part in parts if part)
        measured = self.main.protocol if self.main else ""
        protocol = _mapping(self.record.get("facts")).get("protocol") or measured
        return ", ".join(part for part in (line, f"protocol {protocol}" if protocol else "") if part)

    def _result(self) -> str:
        if not self.main:
            return ""
        found = self.main
        heads = [row for row in tables.metric_table(found).rows if row.headline]
        listed = ", ".join(f"{row.task} {row.metric} {_with_unit(row)} "
                           f"(trivial {row.trivial})" for row in heads)
        on = " ".join(str(part) for part in (found.images, found.split, "images") if part not in (None, ""))
        return f"mean skill {tables.format_skill(found.skill)} on {on}: {listed}"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` (self-contained), ``report.md`` and ``curves.svg`` into a run's folder.

    A file of the run that is missing leaves out its section, and the report says so.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: the folder does not exist, or a file in it is damaged; the message names file and line.
    """
    folder = Path(folder)
    data = read_folder(folder)
    if data.plots:
        (folder / "curves.svg").write_text(curves.sheet(data.plots), encoding="utf-8")
    (folder / "report.md").write_text(_render("report.md.j2", data), encoding="utf-8")
    path = folder / "report.html"
    path.write_text(_render("report.html.j2", data), encoding="utf-8")
    return path


def read_folder(folder: Path) -> ReportData:
    """Read the contents of a run's folder.

    Raises:
        InputError: as :func:`write_report`.
    """
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "the folder of a run", "check the path")
    splits = sorted((folder / "evaluation").glob("*.json"), key=lambda path: (path.stem != "test", path.stem))
    evaluations = {path.stem: Evaluation.of_run(folder, path.stem) for path in splits}
    later = _object(folder / DIAGNOSIS).get("samples", [])
    events = read_events(folder / "metrics.jsonl")
    return ReportData(
        folder=folder, record=_object(folder / "run.json"), environment=_object(folder / "environment.json"),
        events=events, evaluations=evaluations,
        panels=[_panel(path) for path in sorted((folder / "panels").glob("*.png"))],
        samples=_panel(folder / SAMPLES) if (folder / SAMPLES).is_file() else None,
        looks=[_look(event, folder / "metrics.jsonl") for event in events if event.get("event") == "diagnosis"],
        later_looks=[_look(one, folder / DIAGNOSIS) for one in later],
        areas=_object(folder / AREAS))


def _object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(path, type(value).__name__, "a JSON object", "restore it or choose another run")
    return value


def _look(value: Mapping[str, Any], path: Path) -> Look:
    return decode(Look, {name: item for name, item in value.items() if name != "event"}, f"{path}: a look")


def _panel(path: Path) -> Panel:
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            width, height = picture.size
    except (UnidentifiedImageError, OSError):
        raise InputError(path, "a file that is not a picture", "a PNG",
                         "remove it and write the report again") from None
    return Panel(path, f"Example {int(path.stem) + 1}" if path.stem.isdecimal() else path.stem, width, height)


def _render(template: str, data: ReportData) -> str:
    helpers = {"most_panels": MOST_PANELS, "format_skill": tables.format_skill, "percent": _percent,
               "is_number": tables.is_number, "fenced": _fenced,
               "markdown_table": lambda evaluation: Markup(tables.markdown_table(evaluation)),
               "diagnosis_tables": lambda findings: Markup(markdown(findings)), "short": short,
               "whole_percent": whole_percent}
    return templates.render(template, helpers, page=data)


def _fenced(text: str) -> Markup:
    """A Markdown code block, indented rather than fenced, so that nothing in the text can end it."""
    return Markup("\n".join("    " + line for line in text.splitlines()))


def _percent(skill: float | None) -> str:
    return f"{100 * min(1.0, max(0.0, skill)):.1f}%" if tables.is_number(skill) else "0%"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _part_name(part: Any) -> str:
    """``timm (resnet18)``: the component's name, with the one option that names something further."""
    if not isinstance(part, Mapping) or "name" not in part:
        return ""
    further = next((value for key, value in part.items() if key in ("network", "model", "variant")
                    and isinstance(value, str) and value), "")
    return f"{part['name']} ({further})" if further else str(part["name"])


def _with_unit(row: tables.Row) -> str:
    return f"{row.value}{'' if row.unit in ('', '°', '%') else ' '}{row.unit}"


def _shown(value: Any) -> str:
    if value is None or value == "" or value == []:
        return tables.ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)
