"""A task for your own program: its loss, decoding, metric and colors, for labels from any source."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyptych import distributed
from polyptych.errors import InputError
from polyptych.ops.resize import resize
from polyptych.record import chosen
from polyptych.tasks._base import Task
from polyptych.tasks._pictures import Legend
from polyptych.types import LabelInfo


class TaskPart:
    """One task, as your own program needs it. Shapes: a raw prediction is (b ``channels`` h w), of any resolution; a
    target is (b h w), or (b c h w) if a pixel has a vector, in the form of the task (class ids, meters, unit vectors, 0
    and 1); ``valid`` is (b h w) bool.

    A label is missing where ``valid`` is False, and where the target has the value ``ignored`` (in all channels; NaN is
    allowed), if one is set. Missing labels affect neither the loss nor the gradient.

    Attributes:
        task: the task itself; see :mod:`polyptych.tasks`.
        ignored: target value that means no label; None if there is none.
    """

    task: Task
    ignored: float | None

    def __init__(self, task: Task, ignored: float | None = None):
        self.task, self.ignored = task, ignored

    def __repr__(self) -> str:
        without = "" if self.ignored is None else f", ignored={self.ignored:g}"
        return f"TaskPart({self.task.config.name}, channels={self.channels}{without})"

    @property
    def channels(self) -> int:
        """Number of channels of the raw prediction."""
        return self.task.channels

    @property
    def standard_weight(self) -> float:
        """The loss weight that is customary in the field."""
        return self.task.standard_weight

    def labelled(self, target: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The target in the type that the task needs, without ``ignored`` values, and its valid mask (b h w).

        Raises:
            InputError: shapes or types do not fit.
        """
        name, own = self.task.config.name, self.task.empty((1, 1))  # an empty label shows what a pixel has
        per_pixel, per_image = own.shape[-2:] == (1, 1) and target.ndim == own.ndim + 1, own.ndim == 0
        if target.is_floating_point() and not own.is_floating_point():
            raise InputError(f"target of task '{name}'", f"{target.dtype}", "whole numbers, which classes have",
                             "convert it with .long()")
        if valid is None:
            if not (per_pixel or per_image):
                raise InputError(f"target of task '{name}'", f"shape {tuple(target.shape)} and no `valid`",
                                 f"a label of {own.ndim} dimensions after that of the batch", "reshape it, or "
                                 "give `valid`, a bool mask (b h w)")
            size = target.shape[-2:] if per_pixel else (1, 1)
            valid = torch.ones(len(target), *size, dtype=torch.bool, device=target.device)
        if valid.dtype != torch.bool or valid.ndim != 3 or len(valid) != len(target) or (
                per_pixel and valid.shape[-2:] != target.shape[-2:]):
            raise InputError(f"valid of task '{name}'", f"{valid.dtype} {tuple(valid.shape)} for a target "
                             f"{tuple(target.shape)}", "a bool mask (b h w) of the target's size", "reshape it")
        if self.ignored is not None and (per_pixel or per_image):
            missing = target.isnan() if math.isnan(self.ignored) else target == self.ignored
            if own.ndim == 3:
                missing = missing.all(1, keepdim=True)  # (0, 0, 0) is no direction, (0, 0, -1) is one
            target = target.masked_fill(missing, 0)
            valid = valid & ~missing.reshape(len(target), *target.shape[-2:] if per_pixel else (1, 1))
        return target.to(own.dtype), valid

    def loss(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The mean loss over pixels that have a label, a scalar; exactly 0 if none has. Its gradient is finite."""
        return self.losses([(prediction, 1.0)], target, valid)

    def losses(self, predictions: Sequence[tuple[Tensor, float]], target: Tensor,
               valid: Tensor | None = None) -> Tensor:
        """Like :meth:`loss`, summed over several predictions, each times its weight (deep supervision).

        Raises:
            InputError: a pixel with a label has a value that the task does not allow.
        """
        target, valid = self.labelled(target, valid)
        sums = self.task.label_sums(target, valid)
        try:
            return torch.stack([weight * self.task.loss_in_step(prediction, target, valid, sums).mean()
                                for prediction, weight in predictions]).sum()
        except IndexError:  # not checked beforehand, which would read all labels at every step
            for one, mask in zip(target, valid, strict=True):
                if fault := self.task.fault(one, mask):
                    raise InputError(f"target of task '{self.task.config.name}'", fault, "values that the task allows",
                                     "if this value means no label, pass it as `ignored=`") from None
            raise

    def decode(self, prediction: Tensor) -> Tensor:
        """Decode a raw prediction into class ids (b h w), meters (b h w), unit vectors (b 3 h w), or probabilities."""
        return self.task.decode(prediction)

    def metric(self) -> TaskMetric:
        """A fresh metric, to be accumulated over a whole dataset."""
        return TaskMetric(self)

    def colors(self, decoded: Tensor, image: np.ndarray | None = None) -> np.ndarray:
        """An RGB picture, uint8 (h w 3), of one decoded prediction or target without its batch dimension.

        Args:
            image: uint8 RGB (h w 3), for tasks that draw on it; black by default.
        """
        if image is None:
            image = np.zeros((*decoded.shape[-2:], 3), np.uint8)
        return self.task.paint(decoded.detach().cpu(), image)

    def legend(self) -> Legend:
        """What the colors mean."""
        return self.task.legend()


class TaskMetric:
    """The metric of a task with the protocol of torchmetrics: ``update``, ``compute``, ``reset``, ``sync``.

    ``compute`` covers the pixels of all processes: every process must call it, and all get the same numbers, equal to
    those of a single process. In Lightning: ``self.log_dict(metric.compute())``, then ``metric.reset()``.

    Attributes:
        headline: the number that stands for the task.
        higher_is_better: direction of every number.
    """

    def __init__(self, part: TaskPart):
        self._part = part
        self._before: dict[str, Tensor] | None = None  # the sums of this process, while synchronized
        self.headline: str = part.task.headline
        self.higher_is_better: dict[str, bool] = dict(part.task.higher_is_better)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._metric, self._before = self._part.task.metric(), None

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch: raw predictions of any resolution, targets, and their valid mask."""
        if self._before is not None:
            raise RuntimeError("the metric holds the sums of all processes: call unsync() or reset() before update()")
        target, valid = self._part.labelled(target, valid)
        if self._part.task.dense:
            prediction = resize(prediction.float(), (valid.shape[-2], valid.shape[-1]))
        self._metric.update(self._part.decode(prediction), target, valid)

    def compute(self) -> dict[str, float]:
        """Numbers by name; NaN for a number without any data."""
        metric = self._metric
        if self._before is None:
            metric = copy.copy(metric)
            metric.sums = dict(metric.sums)  # merging replaces entries, and what this process saw must stay
            distributed.merge(metric)
        return metric.compute()

    def sync(self) -> None:
        """Hold the sums of all processes until :meth:`unsync` or :meth:`reset`."""
        if self._before is None:
            self._before = dict(self._metric.sums)
            distributed.merge(self._metric)

    def unsync(self) -> None:
        """Hold the sums of this process again."""
        if self._before is not None:
            self._metric.sums, self._before = self._before, None


def task(kind: str, *, classes: int | Sequence[str] = (), colors: Sequence[tuple[int, int, int]] = (),
         mirror: Sequence[tuple[int, int]] = (), skeleton: Sequence[tuple[int, int]] = (), unit: str = "",
         ignored: float | None = None, **options: Any) -> TaskPart:
    """A task by its name in ``polyptych list tasks``, without a dataset.

    Args:
        classes: their names, or how many there are (semseg, parts, keypoints, classification).
        colors, mirror, skeleton, unit: see :class:`polyptych.types.LabelInfo`.
        ignored: target value that means no label, such as 255, 0 or NaN.
        options: options of the command line: ``--tasks.semseg.label-smoothing 0.1`` becomes ``label_smoothing=0.1``.

    Raises:
        InputError: no such task or option, or a wrong value.
    """
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    for name, pairs in (("mirror", mirror), ("skeleton", skeleton)):
        if not all(0 <= one < len(names) for pair in pairs for one in pair):
            raise InputError(f"{name} of task '{kind}'", str(list(pairs)), "pairs of class ids",
                             "write pairs such as (0, 1)")
    if colors and len(colors) != len(names):
        raise InputError(f"colors of task '{kind}'", f"{len(colors)} for {len(names)} classes", "one for each class",
                         "give every class a color, or leave the colors out")
    config: Task.Config = chosen(Task.Config, kind, options, f"task '{kind}'")
    labels = LabelInfo(names, tuple(colors), tuple(mirror), tuple(skeleton), unit)
    return TaskPart(config.build(labels=labels), ignored)


def as_parts(tasks: Mapping[str, Task]) -> dict[str, TaskPart]:
    """The tasks of a dataset or a run, as parts."""
    return {name: TaskPart(one) for name, one in tasks.items()}
