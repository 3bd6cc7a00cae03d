"""How much of each image each class covers, as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from polyptych.errors import InputError
from polyptych.prediction.scene import Scene
from polyptych.record import write_whole
from polyptych.tasks._base import Task
from polyptych.tasks._class_map import ClassMap


class ClassShares:
    """The share of each class in the pixels of every image, for all tasks that are class maps.

    Args:
        path: a .csv file (a row for each image, task, and class) or a .json file (``{image: {task: {class: share}}}``),
            written at the end.

    Raises:
        InputError: the file has another extension, or no task is a class map.
    """

    def __init__(self, path: Path, tasks: Mapping[str, Task]):
        self.path = path
        self.tasks = [name for name, task in tasks.items() if isinstance(task, ClassMap)]
        self.found: dict[str, dict[str, dict[str, float]]] = {}
        if path.suffix.lower() not in (".csv", ".json"):
            raise InputError("--shares", str(path), "a file ending in .csv or .json", "name one")
        if not self.tasks:
            raise InputError("--shares", f"a model of {', '.join(tasks)}", "a task that gives every pixel a class",
                             "use a model with such a task")

    def add(self, image: str, scene: Scene) -> None:
        self.found[image] = {}
        for task in self.tasks:
            areas = scene.areas(task)
            assert areas is not None  # of a map of classes
            self.found[image][task] = {name: int(area) / scene[task].size
                                       for name, area in zip(scene.classes(task), areas, strict=True)}

    def write(self) -> Path:
        """Write the table, completely or not at all."""
        if self.path.suffix.lower() == ".json":
            text = json.dumps(self.found, indent=1, ensure_ascii=False) + "\n"
        else:
            table = io.StringIO()
            rows = csv.writer(table, lineterminator="\n")
            rows.writerow(["image", "task", "class", "share"])
            rows.writerows([image, task, name, f"{share:.6f}"] for image, tasks in self.found.items()
                           for task, shares in tasks.items() for name, share in shares.items())
            text = table.getvalue()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, text.encode("utf-8", "backslashreplace"))  # names of files need not be text
        return self.path
