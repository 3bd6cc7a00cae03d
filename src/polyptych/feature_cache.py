"""Features of a frozen backbone, computed once for a fixed number of augmented views per image and then read from disk.

Stored features are keyed by a digest of the weights, the backbone's options, the views and the precision. Runs with
other seeds, decoders or balancers therefore reuse them; a run with another backbone does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyptych.data.cache import INDEX, CachedDataset, Rows, cached, is_made, make_once, name_of_copy
from polyptych.data.files import read_json
from polyptych.data.views import Views
from polyptych.datasets._base import Dataset
from polyptych.encoders._base import Encoder
from polyptych.errors import InputError
from polyptych.freezing import thaw_step
from polyptych.networks import Network
from polyptych.record import encode
from polyptych.run import Run
from polyptych.tasks._base import Task
from polyptych.types import Sample

VERSION = 1
STORED = {"float16": "float16", "bfloat16": "uint16", "float32": "float32"}  # numpy has no bfloat16
BATCH = 8  # images at a time, while features are computed


def check_constant(run: Run, network: Network) -> None:
    """Make sure that the features of an image are always the same.

    Raises:
        InputError: something before the decoder is trained or is random, or there is no folder for the features.
    """
    if run.loading.cache is None:
        raise InputError("--loading.feature-views", "no folder for the features", "a folder on a local disk",
                         "add --loading.cache DIR")
    if run.backbone.freeze != "all" or thaw_step(network):
        raise InputError("--loading.feature-views", "a backbone that is trained", "a backbone that stays frozen, so "
                         "that its features never change", "add --backbone.freeze all, without "
                         "--backbone.freeze-until")
    if type(network.encoder).frozen_maps is Encoder.frozen_maps:
        raise InputError("--loading.feature-views", f"encoder '{run.encoder.name}', which changes the features of "
                         "the frozen backbone", "an encoder without parts of its own", "use --encoder shared")


def with_features(run: Run, network: Network, dataset: Dataset, tasks: dict[str, Task], size: tuple[int, int],
                  say: Callable[[object], None]) -> FeatureDataset:
    """The augmented views of a dataset with their labels and features; both are computed now if they are not stored
    yet.

    Raises:
        InputError: the features are not constant, a sample is faulty, or the disk has no room.
    """
    check_constant(run, network)
    folder = run.loading.cache
    assert folder is not None
    device = next(network.parameters()).device
    views = Views(dataset, tasks, run.augment, size, run.loading.feature_views)
    was_training = network.training
    network.eval()
    try:
        example = _maps(run, network, torch.zeros(1, 3, *size, dtype=torch.uint8), device)
        shapes = [tuple(x.shape[1:]) for x in example]
        final = Path(folder) / f"{name_of_copy(views)}-{_digest(run, network)}"
        if not is_made(final):
            _announce(run, len(views), shapes, final, say)
        labels = cached(views, folder, tasks, run.loading.on_fault)
        try:
            make_once(final, partial(_write, run, network, views, labels, shapes, device), "computing features")
        except OSError as error:
            raise InputError(folder, f"{error.strerror or error} while writing features", "a writable folder on a disk "
                             "with room for them", "free some space, or lower --loading.feature-views") from error
    finally:
        network.train(was_training)
    return FeatureDataset(labels, final)


class FeatureDataset(Dataset):
    """Views with their labels and features. Of the images only the size is stored."""

    def __init__(self, labels: CachedDataset, folder: Path):
        self.labels, self.protocol, self.doubts = labels.labels, labels.protocol, labels.doubts
        super().__init__(labels.config, split=labels.split, tasks=labels.tasks)
        self.inner = labels
        index: dict[str, Any] = read_json(folder / INDEX, "the index of stored features")
        self._type = getattr(torch, index["type"])
        self._rows = [Rows(folder / f"{i}.bin", tuple(shape), STORED[index["type"]])
                      for i, shape in enumerate(index["shapes"])]

    def __len__(self) -> int:
        return len(self.inner)

    def labelled(self, task: str) -> int:
        return self.inner.labelled(task)

    def index_at(self, position: int, seed: int) -> int:
        return self.inner.index_at(position, seed)

    def read(self, index: int) -> Sample:
        sample = self.inner.read(index)
        return replace(sample, features=tuple(rows[index].view(self._type) for rows in self._rows))


def _maps(run: Run, network: Network, images: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """The feature maps to store, computed in the precision of the run."""
    precision = getattr(torch, run.execution.precision)
    layout = torch.channels_last if run.execution.channels_last else torch.contiguous_format
    with torch.no_grad(), torch.autocast(device.type, precision, enabled=precision is not torch.float32):
        image = images.to(device, memory_format=layout)
        return network.encoder.frozen_maps(network.pad(network.normalize(image)))


def _digest(run: Run, network: nn.Module) -> str:
    """Digest of everything that the features of a view depend on."""
    said = {"version": VERSION, "backbone": encode(run.backbone.without_weights()), "encoder": run.encoder.name,
            "precision": run.execution.precision, "type": run.loading.feature_type}
    found = hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=8)
    for name, value in network.state_dict().items():
        if name in ("mean", "std") or (name.startswith("encoder.") and ".stages." in name):
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _announce(run: Run, views: int, shapes: Sequence[tuple[int, ...]], final: Path,
              say: Callable[[object], None]) -> None:
    """Say how much will be written, before writing begins.

    Raises:
        InputError: the disk does not have that much room.
    """
    width = np.dtype(STORED[run.loading.feature_type]).itemsize
    needed = views * sum(int(np.prod(shape)) for shape in shapes) * width
    existing = next(place for place in (final, *final.absolute().parents) if place.exists())
    room = shutil.disk_usage(existing).free
    maps = ", ".join("x".join(map(str, shape)) for shape in shapes)
    if needed > room:
        raise InputError(str(final.parent), f"{room / 2**30:.1f} GiB of free disk", f"{needed / 2**30:.1f} GiB for the "
                         f"features of {views:,} views ({maps} in {run.loading.feature_type})",
                         "lower --loading.feature-views, or name another --loading.cache")
    say(f"features of {views:,} views ({maps} in {run.loading.feature_type}): {needed / 2**30:.2f} GiB in {final}")


def _write(run: Run, network: Network, views: Views, labels: CachedDataset,
           shapes: Sequence[tuple[int, ...]], device: torch.device, folder: Path,
           report: Callable[[int, int], None]) -> None:
    type_, stored = getattr(torch, run.loading.feature_type), np.dtype(STORED[run.loading.feature_type])
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / f"{i}.bin").open("wb")) for i in range(len(shapes))]
        for start in range(0, len(views), BATCH):
            indices = range(start, min(start + BATCH, len(views)))
            maps = _maps(run, network, torch.stack([_image(views, i, labels) for i in indices]), device)
            for file, x in zip(files, maps, strict=True):
                values = x.to(type_).cpu().contiguous()
                if not bool(values.isfinite().all()):
                    raise InputError("--loading.feature-type", f"{run.loading.feature_type}, which cannot hold "
                                     f"features as large as {float(x.abs().max()):.3g}", "a type with a wider range",
                                     "use --loading.feature-type bfloat16")
                file.write(values.view(torch.int16 if type_ is torch.bfloat16 else type_).numpy().view(stored).data)
            report(indices[-1] + 1, len(views))
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    index = {"version": VERSION, "type": run.loading.feature_type, "shapes": shapes}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _image(views: Views, index: int, labels: CachedDataset) -> Tensor:
    """The image of a view; black if it cannot be read, because reading its labels already reports that."""
    try:
        return views.read(index).image
    except InputError:
        with contextlib.suppress(InputError):
            labels.read(index)
            raise
        return torch.zeros(3, *views.size, dtype=torch.uint8)

