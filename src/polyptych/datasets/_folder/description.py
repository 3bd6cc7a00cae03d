"""The file ``dataset.toml`` in which users describe their own data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyptych.datasets._folder.class_names import read_class_names
from polyptych.datasets._folder.labels import Labels
from polyptych.datasets._folder.maps import BinaryMaps, ClassMaps, NormalMaps
from polyptych.datasets._folder.objects import ImageClasses, KeypointLabels
from polyptych.datasets._folder.patterns import Pattern
from polyptych.datasets._folder.splits import Splits
from polyptych.datasets._folder.values import DepthMaps, InverseDepthMaps, ResponseMaps
from polyptych.datasets._toml import decode_toml, read_toml
from polyptych.errors import InputError, nearest
from polyptych.record import decode
from polyptych.tasks._names import check_task_name

KINDS: Mapping[str, type[Labels]] = {
    "semseg": ClassMaps, "parts": ClassMaps, "depth": DepthMaps, "normals": NormalMaps, "boundaries": BinaryMaps,
    "saliency": BinaryMaps, "keypoints": KeypointLabels, "classification": ImageClasses,
    "inverse_depth": InverseDepthMaps, "edge_texture": ResponseMaps, "keypoints2d": ResponseMaps,
}
"""How the labels of each kind of task are described."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The file as it is written."""

    image: str
    """Where the images lie, for instance photos/{id}.jpg."""
    tasks: dict[str, dict[str, Any]]
    """A table for each task."""
    name: str = ""
    """What the data set is called in titles, tables and folders of runs; without it, the name of its folder."""
    image_key: str = ""
    """Name of the variable, where images are arrays in files with several."""
    splits: Splits = field(default_factory=Splits)
    """Which images are for training, validation and testing; without it, by `{split}` in `image` where it has that."""


@dataclass(frozen=True)
class FolderSpec:
    """What the file says.

    Attributes:
        path: of the file.
        name: what the data set is called, empty where the file does not say it.
        image: where the images lie.
        image_key: name of the variable, where they are arrays in files with several.
        kinds: kind of every task.
        splits: None where ``{split}`` in the pattern of the images says them.
        digest: of all that the file says, in eight letters.
    """

    path: Path
    name: str
    image: Pattern
    image_key: str
    splits: Splits | None
    tasks: dict[str, Labels]
    kinds: dict[str, str]
    digest: str

    def where(self, task: str) -> str:
        """The place of a task's table, for messages."""
        return f"{self.path}: tasks.{task}"


def read_description(path: Path, root: Path) -> FolderSpec:
    """
    Args:
        root: the folder of the data, where files with names of classes lie.

    Raises:
        InputError: the file is missing, is not TOML, or has an unknown, missing or wrong entry, which is named.
    """
    raw = read_toml(path, "the description of a dataset (see `polyptych data info folder`)")
    contents = decode_toml(Contents, raw, path)
    tasks, kinds = {}, {}
    for name, table in contents.tasks.items():
        where = f"{path}: tasks.{name}"
        check_task_name(name, where)
        kind = table.get("task", name)
        if not isinstance(kind, str) or kind not in KINDS:
            raise InputError(f"{where}.task", repr(kind), nearest(str(kind), KINDS),
                             "name the table like its kind of task, or add task = \"...\"")
        if isinstance(table.get("classes"), str):
            table["classes"] = list(read_class_names(root / table["classes"], f"{where}.classes"))
        tasks[name], kinds[name] = decode(KINDS[kind], table, where), kind
    if not tasks:
        raise InputError(f"{path}: tasks", "none", "at least one table like [tasks.semseg]", "add it")
    if not contents.name.isprintable() or len(contents.name) > 100:
        raise InputError(f"{path}: name", repr(contents.name[:120]), "at most 100 characters in one line", "correct it")
    image = Pattern(contents.image, f"{path}: image")
    splits = None if "splits" not in raw and "split" in image.parts else contents.splits
    # With the names that a file of classes holds, because they are part of what numbers mean.
    text = json.dumps(raw | {"tasks": contents.tasks}, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return FolderSpec(path, contents.name, image, contents.image_key, splits, tasks, kinds, digest)
