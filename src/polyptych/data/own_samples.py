"""Samples that a program already has (a torch or Hugging Face dataset, a list) in the form that training reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from polyptych.errors import InputError
from polyptych.task_parts import TaskPart
from polyptych.types import Sample, SampleInfo


@runtime_checkable
class Items(Protocol):
    """Anything with a length and items by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class OwnSamples:
    """What :func:`samples` returns."""

    items: Items
    tasks: dict[str, TaskPart]
    columns: dict[str, str]

    def __init__(self, items: Items, tasks: Mapping[str, TaskPart], columns: Mapping[str, str] | None = None):
        self.items, self.tasks, self.columns = items, dict(tasks), dict(columns or {})
        for name in self.columns:
            if name != "image" and name not in self.tasks:
                raise InputError("columns", f"'{name}'", f"image or one of {', '.join(self.tasks)}", "name one")

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int, tasks: tuple[str, ...], split: str) -> Sample:
        """The item at an index as a sample with labels of ``tasks``.

        Raises:
            InputError: the item has no image, or does not have the form that :func:`samples` describes.
        """
        where = f"item {index} of the {split} split"
        item = self.items[index]
        if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Mapping):
            item = {self.columns.get("image", "image"): item[0], **item[1]}
        if not isinstance(item, Mapping):
            raise InputError(where, f"a {type(item).__name__}", "a mapping with the image and its labels",
                             "return a dict, or a pair (image, labels)")
        column = self.columns.get("image", "image")
        if item.get(column) is None:
            raise InputError(where, f"no '{column}' among {', '.join(map(str, item))}", "an image",
                             'name its column: columns={"image": ...}')
        image = _image(item[column], f"{where}: {column}")
        size = (int(image.shape[-2]), int(image.shape[-1]))
        target, valid = {}, {}
        for task in tasks:
            found = item.get(self.columns.get(task, task))
            if found is not None:
                target[task], valid[task] = self._label(task, found, size, f"{where}: {self.columns.get(task, task)}")
        return Sample(image, target, valid, SampleInfo(f"{split}/{index}", size, size))

    def _label(self, task: str, found: Any, size: tuple[int, int], where: str) -> tuple[Tensor, Tensor]:
        label, part = _tensor(found, where), self.tasks[task]
        own = part.task.empty(size)
        if own.ndim == 3 and own.shape[-2:] == size and label.shape == (*size, len(own)):
            label = label.permute(2, 0, 1)
        everywhere = None if own.ndim == 0 or own.shape[-2:] == size else torch.ones(1, *size, dtype=torch.bool)
        try:
            target, valid = part.labelled(label[None], everywhere)
        except InputError as error:
            raise InputError(where, error.got, error.needs, error.do) from None
        return target[0], valid[0].expand(size) if own.ndim == 0 else valid[0]


def samples(items: Items, tasks: Mapping[str, TaskPart], *, columns: Mapping[str, str] | None = None) -> OwnSamples:
    """A dataset of your own for ``polyptych train --dataset python`` (:mod:`polyptych.datasets.python`).

    Args:
        items: anything with a length and items by index: a torch dataset, a Hugging Face dataset, a list. An item is a
            mapping (or a pair of image and mapping of labels) with arrays, tensors, or PIL images: ``image`` RGB, uint8
            (h w 3) or (3 h w), or float from 0 to 1; a label for each task in the form that the task defines, vectors
            (h w c) or (c h w). A missing label or None means that there is no label.
        tasks: what the labels mean: their classes, and the value that means no label.
        columns: names of the items' entries, if they are not ``image`` and the names of the tasks.
    """
    return OwnSamples(items, tasks, columns)


def _tensor(value: Any, where: str) -> Tensor:
    try:
        return value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except TypeError:
        raise InputError(where, f"a {type(value).__name__}", "an array, a tensor or a PIL image",
                         "convert it") from None


def _image(value: Any, where: str) -> Tensor:
    if hasattr(value, "convert"):
        value = value.convert("RGB")  # PIL: gray and palette images too
    image = _tensor(value, where)
    if image.ndim == 3 and image.shape[-1] == 3 and image.shape[0] != 3:
        image = image.permute(2, 0, 1)
    if image.ndim != 3 or len(image) != 3:
        raise InputError(where, f"shape {tuple(image.shape)}", "RGB, (h w 3) or (3 h w)", "convert it")
    if image.is_floating_point():
        if not (float(image.min()) >= 0 and float(image.max()) <= 1):
            raise InputError(where, f"values from {float(image.min()):g} to {float(image.max()):g}",
                             "uint8, or float from 0 to 1 that is not normalized", "leave normalization to the network")
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise InputError(where, f"{image.dtype}", "uint8, or float from 0 to 1", "convert it")
    return image.contiguous()
