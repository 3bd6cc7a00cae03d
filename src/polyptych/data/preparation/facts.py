"""What each dataset says about itself: where it comes from, its layouts on disk, and a miniature of it."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from polyptych.datasets._about import About
from polyptych.datasets._base import CATALOG, Dataset
from polyptych.datasets._layouts import LayoutCatalog
from polyptych.errors import InputError, nearest


def about(name: str) -> About | None:
    """Where a dataset comes from (``ABOUT`` of ``datasets/_NAME/about.py``); None for one that is not downloaded."""
    module = _beside(name, "about")
    return None if module is None else module.ABOUT


def fixtures(name: str) -> Mapping[str, Callable[[Path], None]]:
    """A function that writes the dataset in miniature, by layout; empty if there is none."""
    module = _beside(name, "fixture")
    if module is not None:
        fixtures: Mapping[str, Callable[[Path], None]] = module.LAYOUTS
        return fixtures
    layouts: LayoutCatalog[Any] | None = getattr(CATALOG.load(name), "layouts", None)
    return {} if layouts is None else layouts.fixtures()


def camera(name: str) -> ModuleType | None:
    """The module ``datasets/_NAME/camera.py`` of a dataset whose missing normals can be computed."""
    return _beside(name, "camera")


def configure(name: str, root: Path | None = None) -> Any:
    """The options of a dataset, at ``root`` if given.

    Raises:
        InputError: there is no such dataset, or it has no files.
    """
    config: Any = CATALOG.load(name).Config()
    if "root" not in {field.name for field in dataclasses.fields(config)}:
        raise InputError(f"dataset {name}", "one without files of its own", f"one of {', '.join(with_files())}",
                         "choose one; parts of `mixed` are prepared one by one")
    return config if root is None else dataclasses.replace(config, root=root)


def with_files() -> list[str]:
    """Names of the datasets that state where they come from."""
    return [name for name in CATALOG.names() if _spec(name, "about")]


def offered(config: Dataset.Config, split: str = "train") -> Dataset:
    """The dataset without any task: it states the labels that it has."""
    return config.build(split=split, tasks=())


def _beside(name: str, what: str) -> ModuleType | None:
    if name not in CATALOG.names():
        raise InputError(f"dataset '{name}'", "an unknown name", nearest(name, CATALOG.names()),
                         "see `polyptych data list`")
    return importlib.import_module(_module(name, what)) if _spec(name, what) else None


def _spec(name: str, what: str) -> bool:
    try:
        return importlib.util.find_spec(_module(name, what)) is not None
    except ModuleNotFoundError:
        return False


def _module(name: str, what: str) -> str:
    return f"{CATALOG.package}._{name}.{what}"
