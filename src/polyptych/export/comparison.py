"""Compares an exported file with its network, on noise and on pictures, for several batch and image sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from polyptych.errors import InputError
from polyptych.export.runtime import FileModel
from polyptych.networks import Network

Size = tuple[int, int]


@dataclass(frozen=True)
class Difference:
    """The largest difference of one task, on the scale of the tolerance, and its position."""

    task: str
    value: float
    place: str


def compare(model: FileModel, network: Network, tolerance: float, size: Size) -> dict[str, Difference]:
    """The largest difference of every task.

    Differences are absolute if predictions are small, and relative to the largest prediction of the task if that
    exceeds 1, because sums over a whole image are only as precise as float32.

    Args:
        size: size that the graph accepts; a graph for any size is tried near it.

    Raises:
        InputError: a difference exceeds the tolerance (or is NaN); the message names the task and the position.
    """
    worst: dict[str, Difference] = {}
    for images in probes(model.fixed, size):
        with torch.inference_mode():
            expected = network(images).final
        for task, found in model.raw(images).items():
            difference = _largest(task, found, expected[task].float())
            if not difference.value <= tolerance:
                raise InputError(f"task '{task}'", f"a difference of {difference.value:.3g} at {difference.place}",
                                 f"at most {tolerance:g} between the exported model and the network",
                                 "no file was written; raise --tolerance if that is close enough")
            if task not in worst or difference.value > worst[task].value:
                worst[task] = difference
    return worst


def probes(fixed: bool, size: Size) -> Iterator[Tensor]:
    """Batches of bytes, the same every time."""
    random = torch.Generator().manual_seed(0)
    height, width = size
    sizes = [size] if fixed else [size, (height + 1, width + 2), (max(1, height * 3 // 4), width + 33)]
    for index, (h, w) in enumerate(sizes):
        for batch in ((1, 3) if index == 0 else (2,)):
            noise = torch.randint(0, 256, (batch, 3, h, w), generator=random, dtype=torch.uint8)
            rows, columns = torch.arange(h).view(-1, 1), torch.arange(w).view(1, -1)
            ramp = (255 * columns / max(1, w - 1)).expand(h, w)
            boards = ((rows // 8 + columns // 8) % 2 * 255).expand(h, w)
            picture = torch.stack([ramp, boards, 255 - ramp]).to(torch.uint8)
            yield torch.cat([noise[:batch - 1], picture[None]]) if batch > 1 or index else noise


def _largest(task: str, found: Tensor, expected: Tensor) -> Difference:
    scale = max(1.0, float(expected.abs().nan_to_num(0, 0, 0).max()))
    error = ((found - expected).abs() / scale).nan_to_num(float("inf"))
    index = int(error.argmax())
    b, c, y, x = (int(i) for i in torch.unravel_index(torch.tensor(index), error.shape))
    place = (f"image {b} of {len(expected)} x {expected.shape[-2]} x {expected.shape[-1]}, channel {c}, row {y}, "
             f"column {x}: {float(found[b, c, y, x]):.6g} instead of {float(expected[b, c, y, x]):.6g}")
    return Difference(task, float(error.flatten()[index]), place)
