"""The file ``dataset.toml`` in which users describe their own data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyptych.data.files import spelled
from polyptych.datasets._folder.class_names import read_class_names, read_class_table
from polyptych.datasets._folder.colors import with_colors
from polyptych.datasets._folder.derived import DERIVED, FROM_INSTANCES, DerivedLabels
from polyptych.datasets._folder.labels import Labels, Source
from polyptych.datasets._folder.maps import BinaryMaps, ClassMaps, NormalMaps
from polyptych.datasets._folder.objects import ImageClasses, KeypointLabels
from polyptych.datasets._folder.patterns import Pattern
from polyptych.datasets._folder.splits import Splits
from polyptych.datasets._folder.values import DepthMaps, InverseDepthMaps, ResponseMaps
from polyptych.datasets._toml import decode_toml, read_toml
from polyptych.errors import InputError, nearest
from polyptych.record import decode
from polyptych.tasks._base import check_task_name

KINDS: Mapping[str, type[Labels]] = {
    "semseg": ClassMaps, "parts": ClassMaps, "depth": DepthMaps, "normals": NormalMaps, "boundaries": BinaryMaps,
    "saliency": BinaryMaps, "keypoints": KeypointLabels, "classification": ImageClasses,
    "inverse_depth": InverseDepthMaps, "edge_texture": ResponseMaps, "keypoints2d": ResponseMaps,
}
"""How the labels of each kind of task are described."""


_OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("segmentation", "semantic_segmentation", "semantic", "seg", "segm", "mask", "masks", "labels",
                     "classes"), "semseg"),
    **dict.fromkeys(("disparity", "inverse"), "inverse_depth"), "distance": "depth",
    **dict.fromkeys(("normal", "surface_normals", "surface_normal"), "normals"),
    **dict.fromkeys(("edges", "edge", "boundary", "contours"), "boundaries"),
    **dict.fromkeys(("salient", "foreground", "matte"), "saliency"),
    **dict.fromkeys(("human_parts", "part", "body_parts"), "parts"),
    **dict.fromkeys(("keypoint", "pose", "joints", "landmarks"), "keypoints"),
    **dict.fromkeys(("class", "label", "category", "scene"), "classification"),
}
"""Other common names of the kinds of tasks."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of the file."""

    image: str
    """Path pattern of the images, for instance photos/{id}.jpg."""
    tasks: dict[str, dict[str, Any]]
    """A table for each task."""
    name: str = ""
    """Name of the dataset in titles, tables and run folders; by default the name of its folder."""
    image_key: str = ""
    """Name of the variable, if images are arrays in files with several."""
    splits: Splits = field(default_factory=Splits)
    """Which images are for training, validation and testing; by default `{split}` in `image` decides, if it is
    there."""


@dataclass(frozen=True)
class FolderSpec:
    """The parsed description.

    Attributes:
        path: path of the file.
        name: name of the dataset; empty if the file does not give one.
        image: path pattern of the images.
        image_key: name of the variable, if they are arrays in files with several.
        kinds: kind of every task.
        origins: for tasks with derived labels, the task that they are derived from.
        splits: None if ``{split}`` in the pattern of the images determines them.
        digest: hash of the description, eight characters.
    """

    path: Path
    name: str
    image: Pattern
    image_key: str
    splits: Splits | None
    tasks: dict[str, Labels]
    kinds: dict[str, str]
    origins: dict[str, str]
    digest: str

    def where(self, task: str) -> str:
        """The place of a task's table, for messages."""
        return f"{self.path}: tasks.{task}"

    def open(self, task: str, root: Path) -> Source:
        """Find the labels of a task, or of the task that they are derived from.

        Raises:
            InputError: there are none in the place given.
        """
        labels, where = self.tasks[task], self.where(task)
        if not isinstance(labels, DerivedLabels):
            return labels.open(root, where)
        origin = self.origins[task]
        return labels.derive(self.open(origin, root), self.tasks[origin].info(root, self.where(origin)), where)


def read_description(path: Path, root: Path) -> FolderSpec:
    """Read and check a description.

    Args:
        root: the folder of the data, which also has the files with names and colors of classes.

    Raises:
        InputError: the file is missing, is not TOML, or has an unknown, missing or wrong entry, which is named.
    """
    raw = read_toml(path, "the description of a dataset (see `polyptych data info folder`)")
    contents = decode_toml(Contents, raw, path)
    tasks: dict[str, Labels] = {}
    kinds: dict[str, str] = {}
    origins: dict[str, str] = {}
    expanded = {}
    for name, table in contents.tasks.items():
        where = f"{path}: tasks.{name}"
        check_task_name(name, where)
        kind = table.get("task", name)
        if not isinstance(kind, str) or kind not in KINDS:
            meant = _OTHER_NAMES.get(str(kind).lower().replace("-", "_"))
            raise InputError(f"{where}.task", repr(kind), f"one of {', '.join(sorted(KINDS))}",
                             f"name the table [tasks.{meant}], or add task = \"{meant}\"" if meant else
                             "name the table like its kind of task, or add task = \"...\"")
        if isinstance(table.get("classes"), str):
            table = _with_classes(table, root / table["classes"], where)
        table = expanded[name] = with_colors(table, root, where)
        kinds[name] = kind
        if "from" in table:
            origins[name] = str(table["from"])
        tasks[name] = decode(_form(kind, table, where), {k: v for k, v in table.items() if k != "from"}, where)
    if not tasks:
        raise InputError(f"{path}: tasks", "none", "at least one table like [tasks.semseg]", "add one")
    for name, labels in tasks.items():
        if isinstance(labels, DerivedLabels):
            good = [other for other, kind in kinds.items() if kind in labels.sources and other not in origins]
            if origins[name] not in good:
                raise InputError(f"{path}: tasks.{name}.from", repr(origins[name]), nearest(origins[name], good) if good
                                 else f"a task of the kind {' or '.join(labels.sources)} in this file",
                                 "name such a task")
    if not contents.name.isprintable() or len(contents.name) > 100:
        raise InputError(f"{path}: name", repr(contents.name[:120]), "at most 100 characters in one line", "shorten it")
    image = Pattern(contents.image, f"{path}: image")
    splits = None if "splits" not in raw and "split" in image.parts else contents.splits
    # Includes names and colors from other files, because they are part of what the numbers mean.
    text = json.dumps(raw | {"tasks": expanded}, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    origins = {name: origin for name, origin in origins.items() if isinstance(tasks[name], DerivedLabels)}
    return FolderSpec(path, contents.name, image, contents.image_key, splits, tasks, kinds, origins, digest)


def _with_classes(table: dict[str, Any], path: Path, where: str) -> dict[str, Any]:
    """The table with the names from a file; also with ids and colors from that file, unless the table has its own."""
    found: dict[str, Any] = {"classes": list(read_class_names(path, f"{where}.classes"))}
    if path.suffix.lower() == ".csv":
        columns = read_class_table(spelled(path))
        if columns.ids and table.get("encoding") != "colors":
            found["ids"] = list(columns.ids)
        if columns.colors:
            found["colors"] = [list(color) for color in columns.colors]
    return found | {key: value for key, value in table.items() if key != "classes"}


def _form(kind: str, table: Mapping[str, Any], where: str) -> type[Labels]:
    """The form of a table: labels from files, or derived labels."""
    if "from" not in table:
        return KINDS[kind]
    if table["from"] == "instances" and kind in FROM_INSTANCES:
        return FROM_INSTANCES[kind]
    if kind not in DERIVED:
        raise InputError(f"{where}.from", f"labels of the kind {kind}", f"a kind that can be derived: "
                         f"{', '.join(DERIVED)}", "state `files`")
    return DERIVED[kind]
