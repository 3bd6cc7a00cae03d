"""The file ``dataset.toml`` in which users describe their own data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    tasks: dict[str, dict[str, Any]]
    image_key: str = ""
    splits: Splits = field(default_factory=Splits)


@dataclass(frozen=True)
class FolderSpec:
    """What the file says.

    Attributes:
        path: of the file.
        image: where the images lie.
        image_key: name of the variable, where they are arrays in files with several.
        kinds: kind of every task.
        digest: of all that the file says, in eight letters.
    """

    path: Path
    image: Pattern
    image_key: str
    splits: Splits
    tasks: dict[str, Labels]
    kinds: dict[str, str]
    digest: str

    def where(self, task: str) -> str:
        """The place of a task's table, for messages."""
        return f"{self.path}: tasks.{task}"


def read_description(path: Path) -> FolderSpec:
    """
    Raises:
        InputError: the file is missing, is not TOML, or has an unknown, missing or wrong entry, which is named.
    """
    raw = read_toml(path, "the description of a dataset (see `polyptych.datasets.folder`)")
    contents = decode_toml(Contents, raw, path)
    tasks, kinds = {}, {}
    for name, table in contents.tasks.items():
        where = f"{path}: tasks.{name}"
        check_task_name(name, where)
        kind = table.get("task", name)
        if not isinstance(kind, str) or kind not in KINDS:
            raise InputError(f"{where}.task", repr(kind), nearest(str(kind), KINDS),
                             "name the table like its kind of task, or add task = \"...\"")
        tasks[name], kinds[name] = decode(KINDS[kind], table, where), kind
    if not tasks:
        raise InputError(f"{path}: tasks", "none", "at least one table like [tasks.semseg]", "add it")
    text = json.dumps(raw, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return FolderSpec(path, Pattern(contents.image, f"{path}: image"), contents.image_key, contents.splits, tasks,
                       kinds, digest)
