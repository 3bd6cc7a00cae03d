"""Labels that a dataset lacks but its other labels determine: surface normals from depth.

(Boundaries need no files: datasets derive them from their segmentation as they read it, with the mask of where they are
known; :mod:`polyptych.data._contours`.)
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from polyptych import __version__
from polyptych.data.arrays import write_npy
from polyptych.data.preparation.derived import RECORD
from polyptych.data.preparation.facts import camera, offered
from polyptych.data.preparation.normals import METHOD, PlaneFit, normals_from_depth
from polyptych.datasets._base import SPLITS, Dataset
from polyptych.errors import InputError
from polyptych.record import write_json
from polyptych.types import Intrinsics


def lacks_normals(config: Dataset.Config) -> bool:
    """Whether the dataset has depth and a known place for normals, but none there."""
    return camera(config.name) is not None and "depth" in (labels := offered(config).labels) and "normals" not in labels


def find_camera(config: Dataset.Config) -> Intrinsics:
    """The camera of a dataset that :func:`lacks_normals`, for its depth maps as they are stored.

    Raises:
        InputError: the camera is not known for frames of this size.
    """
    knows = _camera(config)
    lens: Intrinsics = knows.intrinsics(_splits(knows.frames_as_stored(config))[0].read(0).info.native)
    return lens


def derive_normals(config: Dataset.Config, fit: PlaneFit, lens: Intrinsics,
                   progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Write normals for all frames where the dataset's layout looks for them, with ``derived.json``.

    PNG files hold v = 127.5 (n + 1), rounded, which turns a normal by 0.2 degrees on average; arrays hold float16
    (h w 3). Unknown normals are zero. The folder appears when it is complete.

    Args:
        config: the options of a dataset that :func:`lacks_normals`.
        lens: the camera, for instance the result of :func:`find_camera`.

    Returns:
        The folder.

    Raises:
        InputError: a frame cannot be read or has another size than the first, or the disk is full.
    """
    knows = _camera(config)
    splits = _splits(knows.frames_as_stored(config))
    first = splits[0].read(0).info
    final = knows.place(splits[0], first.id).parent
    partial = final.with_name(final.name + ".partial")
    if final.exists():
        raise InputError(final, "a folder that exists without normals for all frames",
                         "normals for all frames, or no folder", "complete it, or remove it")
    total = sum(map(len, splits))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for done, _ in enumerate(_in_threads(_jobs(splits, first.native, lens, fit, partial, knows.place)), 1):
            progress(done, total)
        write_json(partial / RECORD, {
            "label": "normals", "method": METHOD, "parameters": dataclasses.asdict(fit),
            "intrinsics": dataclasses.asdict(lens), "size": first.native, "frames": total,
            "from": splits[0].protocol, "version": __version__})
        os.rename(partial, final)
    except OSError as error:
        raise InputError(partial, f"{error.strerror or error} while writing", "a writable folder with enough room",
                         "free some space, then repeat the command") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _camera(config: Dataset.Config) -> ModuleType:
    knows = camera(config.name)
    if knows is None:
        raise InputError(f"dataset {config.name}", "a dataset without known camera intrinsics",
                         "intrinsics, to derive normals from depth", "leave normals out")
    return knows


def _splits(config: Dataset.Config) -> list[Dataset]:
    return [config.build(split=split, tasks=("depth",)) for split in SPLITS]


def _jobs(splits: list[Dataset], size: tuple[int, int], lens: Intrinsics, fit: PlaneFit, folder: Path,
          place: Callable[[Any, str], Path]) -> Iterator[Callable[[], None]]:
    for dataset in splits:
        for index in range(len(dataset)):
            sample = dataset.read(index)
            path = folder / place(dataset, sample.info.id).name
            if sample.info.native != size:
                raise InputError(f"frame {sample.info.id}", "{}x{} pixels".format(*sample.info.native),
                                 f"{size[0]}x{size[1]} like the first one", "copy the file again")
            depth, valid = sample.target["depth"].numpy(), sample.valid["depth"].numpy()

            def job(depth: np.ndarray = depth, valid: np.ndarray = valid, path: Path = path) -> None:
                write_normals(path, normals_from_depth(depth, valid, lens, fit)[0])

            yield job


def _in_threads(jobs: Iterable[Callable[[], None]]) -> Iterator[None]:
    """Run the jobs on all cores, a few at a time, so that only so many frames are in memory. (The fit releases the
    interpreter's lock.)"""
    workers = os.cpu_count() or 1
    jobs = iter(jobs)
    with ThreadPoolExecutor(workers) as pool:
        while batch := list(islice(jobs, 2 * workers)):
            for running in [pool.submit(job) for job in batch]:
                yield running.result()


def write_normals(path: Path, normals: Float32[np.ndarray, "3 h w"]) -> None:
    """Unit vectors, zero where unknown, in the form that the name asks for: .png or .npy."""
    rows = normals.transpose(1, 2, 0)
    if path.suffix == ".npy":
        write_npy(path, rows.astype(np.float16))
    else:
        Image.fromarray(np.rint((rows + 1) * 127.5).astype(np.uint8)).save(path)
