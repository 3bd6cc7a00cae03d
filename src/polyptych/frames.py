"""The images of an evaluation batch, each cut back to its own size, so that no metric depends on the other images.

Images of different sizes are padded to share a batch. A tolerance relative to the diagonal, a map normalized over all
positions, or a network whose receptive field crosses the border would see the padding, and through it the sizes of the
other images. So images and labels are first cropped back to their own size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from polyptych.data.geometry import Geometry
from polyptych.ops.resize import resize
from polyptych.tasks._base import Task
from polyptych.types import Batch

PIXELS = 1 << 23
"""Native pixels of one frame, unless one image alone has more: what a network predicts for them takes 1.3 GB with 40
classes, and metrics as much. A batch that a small input fits into may have labels many times as large."""


@dataclass(frozen=True)
class Frame:
    """Rows of a batch that need no padding: the whole batch, or as much of it as memory takes (see ``PIXELS``), or a
    single image if sizes differ.

    Attributes:
        native, content: sizes (h, w) of the labels and of the images in the batch.
    """

    rows: slice
    native: tuple[int, int]
    content: tuple[int, int]

    @property
    def images(self) -> int:
        return int(self.rows.stop) - int(self.rows.start)


def frames(batch: Batch) -> list[Frame]:
    """The frames of a batch, in the order of its images."""
    sizes = [(info.native, info.content) for info in batch.info]
    if all(size == sizes[0] for size in sizes):
        (height, width), _ = sizes[0]
        rows = max(1, PIXELS // (height * width))
        return [Frame(slice(first, min(first + rows, len(sizes))), *sizes[0]) for first in range(0, len(sizes), rows)]
    return [Frame(slice(row, row + 1), *size) for row, size in enumerate(sizes)]


def framed_predictions(batch: Batch, forward: Callable[[Tensor], Mapping[str, Tensor]],
                       tasks: Mapping[str, Task]) -> dict[str, list[Tensor]]:
    """Decoded predictions by task, one tensor per frame, at the native size of its labels. Raw predictions are resized
    (bilinear) before they are decoded; predictions of a task that is not dense are not resized.

    Args:
        forward: maps images to raw predictions by task. Images of different sizes are passed one at a time.
    """
    parts = frames(batch)
    if all(part.content == tuple(batch.image.shape[-2:]) for part in parts):
        whole = forward(batch.image)
        raw = [{name: whole[name][part.rows] for name in tasks} for part in parts]
    else:
        raw = [dict(forward(batch.image[part.rows, :, :part.content[0], :part.content[1]])) for part in parts]
    return {name: [task.decode(resize(of[name].float(), part.native) if task.dense else of[name].float())
                   for of, part in zip(raw, parts, strict=True)] for name, task in tasks.items()}


def framed_labels(batch: Batch, name: str, task: Task) -> list[tuple[Tensor, Bool[Tensor, "_ h w"]]]:
    """The labels of one task and their valid masks, one pair per frame."""
    target, valid = batch.target[name], batch.valid[name]
    padded = (valid.shape[-2], valid.shape[-1])
    result = []
    for part in frames(batch):
        if part.native == padded:
            result.append((target[part.rows], valid[part.rows]))
            continue
        # Every task knows how its labels transform, and cropping is a transform.
        cut = Geometry(padded, part.native, (0, 0, *part.native))
        labels = [task.move(t, v, cut) for t, v in zip(target[part.rows], valid[part.rows], strict=True)]
        result.append((task.collate([t for t, _ in labels]), valid[part.rows, :part.native[0], :part.native[1]]))
    return result
