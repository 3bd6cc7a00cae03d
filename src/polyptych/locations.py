"""Where the data of a run is: paths are recorded as absolute, and data is found again after it moved.

These functions work on the Config of a dataset, whose paths may be in its parts (``mixed``); they open no data.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from polyptych.datasets._base import Dataset

Value = TypeVar("Value")


def absolute(config: Dataset.Config) -> Dataset.Config:
    """The Config with absolute paths, so that the data is found from any working directory."""
    return _with_paths(config.whole(), lambda path: Path(os.path.abspath(path)))


def folders(config: Dataset.Config) -> list[Path]:
    """The folders of the data, including those of parts; none for a dataset that generates its samples."""
    config = config.whole()
    parts = getattr(config, "parts", None)
    if isinstance(parts, Mapping):
        return list(dict.fromkeys(folder for part in parts.values() for folder in folders(part)))
    if not hasattr(config, "root"):
        return []
    if config.root is not None:
        return [Path(config.root)]
    description = getattr(config, "description", None)
    return [] if description is None else [Path(description).parent]


def moved(config: Dataset.Config, to: Path) -> Dataset.Config:
    """The same data in another place. Of several folders only the missing ones move, and they keep their places
    relative to each other."""
    old = folders(absolute(config))
    gone = old if len(old) == 1 else [folder for folder in old if not folder.is_dir()]
    above = Path(os.path.commonpath(gone)) if gone else Path()
    return _replaced(config, {folder: to / folder.relative_to(above) for folder in gone})


def same_elsewhere(one: Dataset.Config, other: Dataset.Config) -> bool:
    """Whether two Configs differ in nothing but the folders of their data."""
    return _placeless(one) == _placeless(other)


def _placeless(config: Dataset.Config) -> Dataset.Config:
    return _replaced(config, {folder: Path(os.sep, str(place))
                              for place, folder in enumerate(folders(absolute(config)))})


def _replaced(config: Dataset.Config, places: Mapping[Path, Path]) -> Dataset.Config:
    """Move every path inside one of the folders (keys) to the same place in another folder (values)."""
    def replaced(path: Path) -> Path:
        for old, new in places.items():
            if path == old or old in path.parents:
                return new / path.relative_to(old)
        return path

    return _with_paths(absolute(config), replaced)


def _with_paths(value: Value, change: Callable[[Path], Path]) -> Value:
    found: Any = value
    if isinstance(value, Path):
        found = change(value)
    elif isinstance(value, dict):
        found = {name: _with_paths(item, change) for name, item in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = dataclasses.replace(value, **{field.name: _with_paths(getattr(value, field.name), change)
                                              for field in dataclasses.fields(value)})
    return found
