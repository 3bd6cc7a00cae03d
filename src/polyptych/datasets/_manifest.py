"""``prepared.json``: the contents of a prepared folder; nothing else is needed to train on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyptych.errors import InputError
from polyptych.record import decode, encode, read_json, write_json
from polyptych.types import LabelInfo

NAME = "prepared.json"
VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """The contents of ``prepared.json``.

    Attributes:
        dataset: options of the prepared dataset, as in run.json.
        protocol: protocol of the prepared copy.
        labels: label information of every task.
        splits: the folder of each split.
        files: size of every file in bytes, to detect truncated copies.
        kinds: kinds of the tasks whose names are not those of their kinds.
        version: version of this format.
    """

    dataset: dict[str, Any]
    protocol: str
    labels: dict[str, LabelInfo]
    splits: dict[str, str]
    files: dict[str, int]
    kinds: dict[str, str] = field(default_factory=dict)
    version: int = VERSION


def read_manifest(root: Path) -> Manifest:
    """Read the manifest, and check that the folder is complete.

    Raises:
        InputError: the folder was not written by ``polyptych data prepare``, or only in part.
    """
    path = root / NAME
    if not path.is_file():
        raise InputError(path, "no such file", "a folder written by `polyptych data prepare`",
                         "prepare the dataset (again), or check the path")
    manifest: Manifest = decode(Manifest, read_json(path), str(path))
    if manifest.version != VERSION:
        raise InputError(path, f"version {manifest.version}", f"version {VERSION}", "prepare the dataset again")
    for name, size in manifest.files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(path, f"the file '{name}'", "files inside the folder", "prepare the dataset again")
        file = root / name
        if not file.is_file() or file.stat().st_size != size:
            raise InputError(file, f"{file.stat().st_size} bytes" if file.is_file() else "no such file",
                             f"{size} bytes", "copy the prepared folder again, or prepare the dataset again")
    return manifest


def write_manifest(root: Path, manifest: Manifest) -> None:
    write_json(root / NAME, encode(manifest))
