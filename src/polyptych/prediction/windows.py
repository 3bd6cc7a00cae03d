"""A sliding window: an image larger than the network's input, in overlapping pieces that are blended smoothly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from polyptych.tasks._base import Task

Raw = Callable[[Tensor], dict[str, Tensor]]


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
        """As few windows as cover the image and overlap by at least this share of a window."""
        shared = min(window - 1, math.ceil(overlap * window))
        count = 1 if length <= window else math.ceil((length - window) / (window - shared)) + 1
        starts = tuple(round(i * (length - window) / (count - 1)) if i else 0 for i in range(count))
        # A raised cosine over the shared pixels: it and its neighbor's add up to one without a kink.
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


@torch.inference_mode()
def slide(raw: Raw, tasks: Mapping[str, Task], image: UInt8[Tensor, "3 h w"], window: tuple[int, int],
          overlap: float, batch: int) -> dict[str, Float[Tensor, "1 c _ _"]]:
    """Raw predictions for an image from those for its windows.

    Overlapping predictions are averaged in the form that each task says (:meth:`Task.to_mean`), with weights that
    fall smoothly to the border of a window. An image smaller than the window is continued by its last row and column,
    as the network itself pads. A task that is not dense gets the mean over the places of all windows, (1 c 1 1).

    Args:
        raw: the network: (b 3 h w) uint8 to raw predictions by task.
        window: height and width.
        overlap: the least share of a window that two neighbors have in common.
        batch: windows per call of the network.
    """
    height, width = int(image.shape[-2]), int(image.shape[-1])
    down, across = Axis.cover(height, window[0], overlap), Axis.cover(width, window[1], overlap)
    places = [(i, j) for i in range(len(down.starts)) for j in range(len(across.starts))]
    sums: dict[str, Tensor] = {}
    for first in range(0, len(places), batch):
        chosen = places[first:first + batch]
        pieces = torch.stack([_cut(image, (down.starts[i], across.starts[j]), window) for i, j in chosen])
        for name, prediction in raw(pieces).items():
            task, means = tasks[name], tasks[name].to_mean(prediction)
            if name not in sums:
                sums[name] = means.new_zeros(1, means.shape[1], *((height, width) if task.dense else (1, 1)))
            for (i, j), mean in zip(chosen, means, strict=True):
                weight = (down.weights[i][:, None] * across.weights[j]).to(mean.device)
                if task.dense:
                    top, left = down.starts[i], across.starts[j]
                    bottom, right = min(height - top, window[0]), min(width - left, window[1])
                    sums[name][0, :, top:top + bottom, left:left + right] += (mean * weight)[:, :bottom, :right]
                else:
                    sums[name][0] += _pooled(mean, weight) / (height * width)
    return {name: tasks[name].from_mean(total) for name, total in sums.items()}


def _cut(image: UInt8[Tensor, "3 h w"], start: tuple[int, int], size: tuple[int, int]) -> UInt8[Tensor, "3 hw ww"]:
    rows, columns = (torch.arange(begin, begin + length).clamp(max=limit - 1)
                     for begin, length, limit in zip(start, size, image.shape[-2:], strict=True))
    return image[:, rows][:, :, columns]


def _pooled(prediction: Float[Tensor, "c hp wp"], weight: Float[Tensor, "h w"]) -> Float[Tensor, "c 1 1"]:
    """Sum over places, each with the weight of the pixels that it stands for."""
    share = F.interpolate(weight[None, None], prediction.shape[-2:], mode="area")[0, 0]
    share = share * (weight.sum() / share.sum())  # cells overlap where the sizes do not divide
    return (prediction * share).sum((1, 2), keepdim=True)
