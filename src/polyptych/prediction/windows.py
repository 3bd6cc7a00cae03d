"""A sliding window: an image larger than the network's input, in overlapping pieces that are blended smoothly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from polyptych import devices
from polyptych.tasks._base import Task

Raw = Callable[[Tensor], dict[str, Tensor]]
Finish = Callable[[Task, Tensor], Tensor]


@dataclass(frozen=True)
class Axis:
    """The windows along one side of an image.

    Attributes:
        length: of the image, in pixels.
        starts: first pixel of each window, evenly spaced; the first and the last touch the ends of the image.
        weights: (windows, window) how much each pixel of a window counts; over all windows they add up to 1 at every
            pixel of the image, and are 0 outside.
    """

    length: int
    starts: tuple[int, ...]
    weights: Float[Tensor, "n window"]

    @staticmethod
    def cover(length: int, window: int, overlap: float) -> Axis:
        """The fewest windows that cover the image and overlap by at least this share of a window."""
        shared = min(window - 1, math.ceil(overlap * window))
        count = 1 if length <= window else math.ceil((length - window) / (window - shared)) + 1
        starts = tuple(round(i * (length - window) / (count - 1)) if i else 0 for i in range(count))
        # A raised cosine over the shared pixels: neighboring profiles add up to 1, and the blend has no visible edge.
        distance = torch.arange(window).minimum(window - 1 - torch.arange(window)) + 0.5
        profile = torch.sin(math.pi / 2 * (distance / max(shared, 1)).clamp(max=1)).square().double()
        weights = torch.zeros(count, window, dtype=torch.float64)
        total = torch.zeros(length, dtype=torch.float64)
        for row, start in zip(weights, starts, strict=True):
            inside = min(window, length - start)
            row[:inside] = profile[:inside]
            total[start:start + inside] += profile[:inside]
        for row, start in zip(weights, starts, strict=True):
            inside = min(window, length - start)
            row[:inside] /= total[start:start + inside]
        return Axis(length, starts, weights.float())


def raw_again(task: Task, mean: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c h w"]:
    """A blended mean as a raw prediction."""
    return task.from_mean(mean)


@torch.inference_mode()
def slide(raw: Raw, tasks: Mapping[str, Task], image: UInt8[Tensor, "3 h w"], window: tuple[int, int],
          overlap: float, batch: int, finish: Finish = raw_again) -> dict[str, Tensor]:
    """Predictions for an image from those for its windows.

    Overlapping predictions are averaged in the form that each task defines (:meth:`Task.to_mean`), with weights that
    fall smoothly toward the border of a window. An image smaller than the window is padded with its last row and
    column, as the network itself pads. A task that is not dense gets the mean over the positions of all windows,
    (1 c 1 1).

    Args:
        raw: the network: (b 3 h w) uint8 to raw predictions by task.
        window: height and width.
        overlap: the minimum share of a window that two neighbors have in common.
        batch: windows per call of the network.
        finish: what to turn the means into; by default raw predictions, (1 c h w). For a task with ``by_rows``, it is
            called, from top to bottom, with the rows that no further window reaches, and its results are joined along
            the second to last axis: the means of 40 classes on 11000 x 11000 pixels would take 18 GB at once.
    """
    height, width = int(image.shape[-2]), int(image.shape[-1])
    down, across = Axis.cover(height, window[0], overlap), Axis.cover(width, window[1], overlap)
    places = [(i, j) for i in range(len(down.starts)) for j in range(len(across.starts))]
    blends: dict[str, _Blend] = {}
    for first in range(0, len(places), batch):
        chosen = places[first:first + batch]
        pieces = torch.stack([_cut(image, (down.starts[i], across.starts[j]), window) for i, j in chosen])
        following = places[first + batch:first + batch + 1]
        complete = down.starts[following[0][0]] if following else height
        for name, prediction in raw(pieces).items():
            task, means = tasks[name], tasks[name].to_mean(prediction)
            if name not in blends:
                blends[name] = _Blend(task, finish, (height, width), means)
            for (i, j), mean in zip(chosen, means, strict=True):
                weight = devices.sent(down.weights[i][:, None] * across.weights[j], mean.device)
                if task.dense:
                    top, left = down.starts[i], across.starts[j]
                    bottom, right = min(height - top, window[0]), min(width - left, window[1])
                    blends[name].add((mean * weight)[:, :bottom, :right], top, left)
                else:
                    blends[name].add(_pooled(mean, weight) / (height * width), 0, 0)
            blends[name].complete(complete)
    return {name: blends.pop(name).result() for name in tasks}  # frees each map as soon as it is finished


class _Blend:
    """The weighted sums of one task, from the first incomplete row on."""

    def __init__(self, task: Task, finish: Finish, size: tuple[int, int], like: Float[Tensor, "b c h w"]):
        self._task, self._finish = task, finish
        self._height, width = size if task.dense else (1, 1)
        self._in_rows = task.dense and task.by_rows and finish is not raw_again
        self._top = 0  # the row of the image that the sums begin with
        self._sums = like.new_zeros(1, like.shape[1], 0 if self._in_rows else self._height, width)
        self._finished: Tensor | None = None

    def add(self, part: Float[Tensor, "c h w"], top: int, left: int) -> None:
        """Add a window whose first pixel is at this row and column."""
        top -= self._top
        bottom = top + part.shape[1]
        if bottom > self._sums.shape[2]:
            self._sums = F.pad(self._sums, (0, 0, 0, bottom - self._sums.shape[2]))
        self._sums[0, :, top:bottom, left:left + part.shape[2]] += part

    def complete(self, until: int) -> None:
        """Finish the rows before this one, which no further window reaches."""
        rows = until - self._top
        if not self._in_rows or not rows:
            return
        done = self._finish(self._task, self._sums[:, :, :rows])
        if self._finished is None:
            self._finished = done.new_empty(*done.shape[:-2], self._height, done.shape[-1])
        self._finished[..., self._top:until, :] = done
        self._sums, self._top = self._sums[:, :, rows:].clone(), until

    def result(self) -> Tensor:
        """The finished result for all rows."""
        return self._finish(self._task, self._sums) if self._finished is None else self._finished


def _cut(image: UInt8[Tensor, "3 h w"], start: tuple[int, int], size: tuple[int, int]) -> UInt8[Tensor, "3 hw ww"]:
    rows, columns = (torch.arange(begin, begin + length).clamp(max=limit - 1)
                     for begin, length, limit in zip(start, size, image.shape[-2:], strict=True))
    return image[:, rows][:, :, columns]


def _pooled(prediction: Float[Tensor, "c hp wp"], weight: Float[Tensor, "h w"]) -> Float[Tensor, "c 1 1"]:
    """The weighted sum over positions; each has the weight of the pixels that it covers."""
    share = F.interpolate(weight[None, None], prediction.shape[-2:], mode="area")[0, 0]
    share = share * (weight.sum() / share.sum())  # cells overlap where the sizes do not divide
    return (prediction * share).sum((1, 2), keepdim=True)
