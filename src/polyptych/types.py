"""The few small types that modules exchange. Shapes: b batch, c channels, h height, w width, t tasks.

Inside the library a missing label is always an explicit ``False`` in a mask; 255, 0 and -1 exist only where a
dataset reads its files.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.export
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

Likelihood = Literal["gaussian", "laplace", "categorical"]
"""The probability model of a label whose negative log-likelihood a loss is, up to scale and constants."""


@dataclass(frozen=True)
class LabelInfo:
    """What a dataset says about its labels of one task.

    Attributes:
        classes: names of the classes (semseg, parts) or of the keypoint types, in the order of their ids.
        colors: one RGB triple per class for pictures; empty lets the task choose.
        mirror: pairs of classes or keypoints that a horizontal flip swaps (left ankle, right ankle).
        skeleton: pairs of keypoints that a picture joins by a line.
        unit: unit of the values, for instance ``m``.
        note: what a reader must know about these labels to interpret the numbers.
    """

    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    mirror: tuple[tuple[int, int], ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class SampleInfo:
    """Where a batch element comes from: its ``id``, its ``native`` size on disk, and its ``content`` size (h, w) in the
    batch. The content is in the top left corner; the rest is padding."""

    id: str
    native: tuple[int, int]
    content: tuple[int, int]


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera: (X, Y, Z) is seen at (fx X/Z + cx, fy Y/Z + cy) in pixels; centers are whole numbers."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass
class Sample:
    """One image and its labels, before collation.

    ``image`` is uint8 RGB. ``target`` holds, per task, the
    label in the form of the task (:mod:`polyptych.tasks`); ``valid`` is the mask of valid labels. A task
    without a label for this sample is absent from both. ``features`` are the maps of a frozen backbone (c h w), if they
    were computed before (:mod:`polyptych.feature_cache`); the image then has a size but no contents.
    """

    image: Tensor  # (3 h w)
    target: dict[str, Tensor]
    valid: dict[str, Bool[Tensor, "h w"]]
    info: SampleInfo
    features: tuple[Tensor, ...] = ()


@dataclass
class Batch:
    """Samples of one size.

    ``image`` is RGB, uint8 or float in [0, 1]; the network normalizes it, because mean and standard deviation belong to
    the backbone's weights. Labels have the size of the image in training and their native size in evaluation.
    ``valid[task]`` is all ``False`` for a sample that has no label for the task.
    """

    image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]
    target: dict[str, Tensor]
    valid: dict[str, Bool[Tensor, "b hl wl"]]
    info: list[SampleInfo]
    features: tuple[Tensor, ...] = ()

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
        def move(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(device, non_blocking=True) for name, value in values.items()}

        image = self.image.to(device, non_blocking=True, memory_format=memory_format)
        features = tuple(x.to(device, non_blocking=True, memory_format=memory_format) for x in self.features)
        return replace(self, image=image, target=move(self.target), valid=move(self.valid), features=features)

    def pin_memory(self) -> Batch:
        def pin(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.pin_memory() for name, value in values.items()}

        return replace(self, image=self.image.pin_memory(), target=pin(self.target), valid=pin(self.valid),
                       features=tuple(x.pin_memory() for x in self.features))


@dataclass(frozen=True)
class FeatureSpec:
    """Shape of a feature pyramid, fine to coarse, from which the parts of a network derive their widths.

    Attributes:
        channels, strides: channels and strides of the maps.
        affinities: attention heads of the scores between tasks that come with each map
            (:class:`TaskFeatures`); empty where an encoder has none.
        multiple: height and width of the images are multiples of this (the network pads them); the coarsest stride by
            default.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    affinities: tuple[int, ...] = ()
    multiple: int | None = None


@dataclass
class Features:
    """A feature pyramid, fine to coarse."""

    maps: tuple[Float[Tensor, "b _ _ _"], ...]

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(int(m.shape[1]) for m in self.maps)


class TaskFeatures(dict[str, Features]):
    """``{task: Features}``; an encoder that shares everything gives every task the same object.

    ``shared`` holds the tensors at the cut between what all tasks share and what follows (empty when nothing is
    shared); balancers that work on the representation differentiate with respect to them.

    ``affinities`` holds, for every map of the pyramids and every attention head, how much each task (row, in task
    order) attended to each task (column) in the encoder; empty if the encoder has no such scores.
    """

    def __init__(self, features: Mapping[str, Features], shared: tuple[Tensor, ...] = (),
                 affinities: tuple[Float[Tensor, "b heads t t"], ...] = ()):
        super().__init__(features)
        self.shared, self.affinities = shared, affinities


@dataclass
class Auxiliary:
    """Further predictions that are only supervised in training (deep supervision), at any resolution. ``weight``
    multiplies their losses."""

    prediction: dict[str, Float[Tensor, "b _ _ _"]]
    weight: float = 1.0


@dataclass
class Output:
    """The output of a network for a batch: raw predictions (logits, not probabilities) for every task.

    A decoder returns ``final`` at its own resolution; :class:`polyptych.networks.Network` resizes it to the image. An
    output can be used like the mapping ``final``: ``output["depth"]``, ``output.items()``, ``dict(output)``. (Its type
    is not a ``Mapping``, because Accelerate rebuilds those from their items, which would lose the auxiliary
    predictions.)

    ``penalty``, if a decoder has one in training, is added to the loss of every task.
    """

    final: dict[str, Float[Tensor, "b _ h w"]]
    auxiliary: list[Auxiliary] = field(default_factory=list)
    shared: tuple[Tensor, ...] = ()
    penalty: Float[Tensor, ""] | None = None

    def __getitem__(self, task: str) -> Tensor:
        return self.final[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self.final)

    def __len__(self) -> int:
        return len(self.final)

    def keys(self) -> KeysView[str]:
        return self.final.keys()

    def values(self) -> ValuesView[Tensor]:
        return self.final.values()

    def items(self) -> ItemsView[str, Tensor]:
        return self.final.items()


# torch.export and FSDP find the tensors of an output only if its type is registered.
for _kind in (Auxiliary, Output):
    torch.export.register_dataclass(_kind, serialized_type_name=f"polyptych.{_kind.__name__}")


@dataclass
class Loss:
    """A loss as a sum over valid pixels and their count, so that it can be normalized by the count over the whole
    batch, all micro-batches and all processes. Without valid pixels it is exactly zero, never NaN."""

    sum: Float[Tensor, ""]
    count: Tensor

    def mean(self) -> Float[Tensor, ""]:
        return self.sum / self.count.clamp(min=1)
