"""What a person would notice in a dataset: shares of classes, ranges of values, pictures that occur twice.

An :class:`Inspection` is fed samples of one split; :func:`doubts` compares the splits and says, in one line each, what
is no error in a file but most likely not intended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from PIL import Image

from polyptych.types import LabelInfo, Sample

RARE = 0.001  # share of the labeled pixels (or images) below which a class is called rare
# How to inspect the labels of each kind of task; labels of kinds that are not listed are only counted
_FORMS = {"semseg": "classes", "parts": "classes", "classification": "one class", "keypoints": "points",
          "depth": "distances", "inverse_depth": "values", "normals": "directions", "boundaries": "lines",
          "saliency": "areas"}
_NAMED = 6  # names in one line
_THUMBNAIL = 16  # side in pixels of the thumbnails by which similar images are found
_ALIKE = 3.0  # gray levels of 255 by which they differ at most, as the root of the mean square: what another size, JPEG
# or a slight change of light makes; two photos of one street differ by more than ten
_FLAT = 8.0  # deviation of a small picture in which there is next to nothing: all such are alike
_AT_ONCE = 512


@dataclass
class TaskFacts:
    """Facts about the labels of one task in one split, as far as they were read.

    Attributes:
        kind: kind of the task.
        images: number of images with a label.
        known, pixels: number of labeled pixels, and of all pixels of these images.
        amounts: number of labeled pixels of each class (for classification, of images).
        seen: number of images in which each class occurs.
        lowest, highest: extremes of the values; for binary maps, of the share of positive pixels in an image; for
            normals, of the mean component toward the camera.
        medians: median of each image's values; for normals, the share of them that point away from the camera.
    """

    kind: str
    labels: LabelInfo
    images: int = 0
    known: int = 0
    pixels: int = 0
    amounts: np.ndarray = field(init=False)
    seen: np.ndarray = field(init=False)
    lowest: float = np.inf
    highest: float = -np.inf
    medians: list[float] = field(default_factory=list)

    @property
    def form(self) -> str:
        return _FORMS.get(self.kind, "")

    def __post_init__(self) -> None:
        self.amounts, self.seen = (np.zeros(len(self.labels.classes), np.int64) for _ in range(2))

    def add(self, target: np.ndarray, valid: np.ndarray) -> None:
        self.images += 1
        self.known += int(valid.sum())
        self.pixels += valid.size
        if self.form == "classes":
            counts = np.bincount(target[valid].astype(np.int64), minlength=len(self.amounts))[:len(self.amounts)]
            self.amounts += counts
            self.seen += counts > 0
        elif self.form == "one class":
            self.amounts[int(target)] += 1
            self.seen[int(target)] += 1
        elif self.form == "points":
            visible = (target[..., 2] > 0).sum(0) if len(target) else np.zeros(len(self.amounts), np.int64)
            self.amounts += visible
            self.seen += visible > 0
        elif valid.any() and self.form in ("distances", "values"):
            values = target[valid]
            self._extend(float(values.min()), float(values.max()), float(np.median(values)))
        elif valid.any() and self.form == "directions":
            forward = target[2][valid]
            self._extend(-float(forward.mean()), -float(forward.mean()), float((forward > 0).mean()))
        elif valid.any() and self.form in ("lines", "areas"):
            share = float(target[valid].mean())
            self._extend(share, share, share)

    def _extend(self, lowest: float, highest: float, median: float) -> None:
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        self.medians.append(median)

    @property
    def median(self) -> float:
        return float(np.median(self.medians)) if self.medians else np.nan

    @property
    def shares(self) -> np.ndarray:
        """The share of each class among labeled pixels (images, points); NaN if there are none."""
        total = self.amounts.sum()
        return self.amounts / total if total else np.full(len(self.amounts), np.nan)

    def in_words(self) -> str:
        """The range of the values, or the number of classes that occur; empty for other kinds of tasks."""
        if self.form in ("distances", "values") and self.medians:
            unit = f" {self.labels.unit}" if self.labels.unit else ""
            return f"{self.lowest:.3g} to {self.highest:.3g}{unit}, median {self.median:.3g}"
        if self.form in ("lines", "areas") and self.medians:
            return f"{np.mean(self.medians):.1%} positive"
        if self.form == "directions" and self.medians:
            return f"{1 - float(np.mean(self.medians)):.0%} toward the camera"
        if self.images and len(self.amounts):
            return f"{np.count_nonzero(self.amounts)} of {len(self.amounts)} classes"
        return ""


class Inspection:
    """The facts of one split.

    Args:
        kinds: kind of every task.
        labels: what the dataset reports about its labels.
    """

    def __init__(self, kinds: Mapping[str, str], labels: Mapping[str, LabelInfo]):
        self.tasks = {name: TaskFacts(kind, labels[name]) for name, kind in kinds.items()}
        self.pictures: dict[bytes, str] = {}
        self.thumbnails: dict[bytes, np.ndarray] = {}

    def add(self, sample: Sample) -> None:
        image = sample.image.permute(1, 2, 0).contiguous().numpy()
        key = hashlib.blake2b(image.tobytes(), digest_size=16, key=str(image.shape).encode()).digest()
        if key not in self.pictures:
            self.pictures[key] = sample.info.id
            small = np.array(Image.fromarray(image).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX))
            if small.std() > _FLAT:
                self.thumbnails[key] = small.ravel()
        for name, target in sample.target.items():
            self.tasks[name].add(target.numpy(), sample.valid[name].numpy())

    def in_words(self) -> str:
        """All tasks in one line."""
        said = {name: facts.in_words() for name, facts in self.tasks.items()}
        return "; ".join(f"{name} {words}" for name, words in said.items() if words)


def doubts(splits: Mapping[str, Inspection]) -> Iterator[str]:
    """What looks wrong in one split or between them."""
    for one, other in combinations(splits, 2):
        yield from _copies(one, splits[one], other, splits[other])
    for name in dict.fromkeys(name for inspection in splits.values() for name in inspection.tasks):
        facts = {split: inspection.tasks[name] for split, inspection in splits.items() if name in inspection.tasks}
        if facts := {split: found for split, found in facts.items() if found.images}:
            yield from (f"{name}: {words}" for words in _of_classes(facts))
    yield from value_doubts(list(splits.values()))


def value_doubts(inspections: Sequence[Inspection]) -> Iterator[str]:
    """Ranges and shares that look wrong; a few samples are enough to see them."""
    for name in dict.fromkeys(name for inspection in inspections for name in inspection.tasks):
        if facts := [found for each in inspections if (found := each.tasks.get(name)) and found.images]:
            yield from (f"{name}: {words}" for words in _of_values(facts))


def _copies(one: str, first: Inspection, other: str, second: Inspection) -> Iterator[str]:
    """Images that two splits share, first by equal pixels, then by similarity."""
    same = [(first.pictures[key], second.pictures[key]) for key in first.pictures.keys() & second.pictures.keys()]
    if same:
        a, b = min(same)
        yield (f"{len(same)} image{'s' * (len(same) > 1)} of {one} also in {other} (the same pixels: '{a}' and "
               f"'{b}'): numbers on {other} are then too good")
    if alike := _alike(first, second):
        a, b = min(alike)
        yield (f"{len(alike)} image{'s' * (len(alike) > 1)} of {one} nearly the same as one of {other} ('{a}' and "
               f"'{b}'): copies in another size or format, or neighboring frames of a video? Numbers on {other} are "
               "then too good")


def _alike(first: Inspection, second: Inspection) -> list[tuple[str, str]]:
    """Pairs that look alike without having the same pixels: for each image of the first split the nearest one."""
    keys, others = ([key for key in split.thumbnails if key not in same.pictures]
                    for split, same in ((first, second), (second, first)))
    if not keys or not others:
        return []
    found = []
    right = np.stack([second.thumbnails[key] for key in others]).astype(np.float32)
    squares = np.square(right).sum(1)
    for start in range(0, len(keys), _AT_ONCE):
        some = keys[start:start + _AT_ONCE]
        left = np.stack([first.thumbnails[key] for key in some]).astype(np.float32)
        # |a - b|^2 from the products of all pairs, which is one matrix product.
        distance = (np.square(left).sum(1)[:, None] + squares - 2 * left @ right.T) / left.shape[1]
        nearest = distance.argmin(1)
        found += [(first.pictures[key], second.pictures[others[place]]) for key, place, far in
                  zip(some, nearest, distance.min(1), strict=True) if far <= _ALIKE ** 2]
    return found


def _of_classes(facts: Mapping[str, TaskFacts]) -> Iterator[str]:
    some = next(iter(facts.values()))
    classes = some.labels.classes
    if not classes or not sum(found.amounts.sum() for found in facts.values()):
        return
    what = {"one class": "images", "points": "points"}.get(some.form, "labeled pixels")
    missing = {split: {name for name, amount in zip(classes, found.amounts, strict=True) if not amount}
               for split, found in facts.items()}
    nowhere = [name for name in classes if all(name in absent for absent in missing.values())]
    if nowhere:
        yield f"{_listed(nowhere)} in no image of any split"
    for split, absent in missing.items():
        if here := [name for name in classes if name in absent and name not in nowhere]:
            follows = "cannot be learned" if split == "train" else "cannot be measured there"
            yield f"{_listed(here)} in no image of {split}: {follows}"
    if (train := facts.get("train")) is not None:
        rare = [f"{name} ({share:.2%}, {seen} image{'s' * (int(seen) != 1)})" for name, share, seen in
                zip(classes, train.shares, train.seen, strict=True) if 0 < share < RARE]
        if rare:
            yield f"rare in train: {', '.join(rare[:_NAMED])}{_more(rare)} of the {what}"
        if len(classes) > 1 and some.form != "points" and (top := int(np.nanargmax(train.shares))) >= 0 \
                and 0.98 < train.shares[top] < 1:
            yield f"'{classes[top]}' is {train.shares[top]:.1%} of the {what} of train"


def _of_values(facts: Sequence[TaskFacts]) -> Iterator[str]:
    form = facts[0].form
    known, pixels = sum(found.known for found in facts), sum(found.pixels for found in facts)
    if form not in ("one class", "points") and known < 0.05 * pixels:
        yield f"only {known / max(pixels, 1):.1%} of the pixels have a label: check what means no label"
    classes = facts[0].labels.classes
    occurring = {name for found in facts for name, amount in zip(classes, found.amounts, strict=True) if amount}
    if form == "classes" and len(occurring) == 1 < len(classes) and known < pixels:
        yield (f"only {_listed([*occurring])} occurs, and {1 - known / pixels:.0%} of the pixels have no label: a "
               "number that stands for a class must not be ignored (255 is unless `ids` names it: ids = [0, 255])")
    medians = [value for found in facts for value in found.medians]
    if not medians:
        return
    middle, lowest, highest = float(np.median(medians)), min(f.lowest for f in facts), max(f.highest for f in facts)
    if form == "distances":
        if lowest == highest:
            yield f"the same depth everywhere, {lowest:.3g} m"
        elif highest <= 1:
            yield f"depth from {lowest:.3g} to {highest:.3g} m, all within a meter: relative depth, or a wrong scale?"
        elif middle > 100 or middle < 0.1:
            yield f"a median depth of {middle:.3g} m ({lowest:.3g} to {highest:.3g} m): is the unit right?"
        elif highest > 20 * middle and highest > 100:
            yield (f"depth up to {highest:.3g} m at a median of {middle:.3g} m: list the stored value of what is not "
                   "known as `invalid`, or set `maximum`")
    elif form == "directions" and middle > 0.6:
        yield (f"{middle:.0%} of the normals point away from the camera: its z axis points forward here; set `axes` "
               "(with \"-z\", for instance)")
    elif form == "directions" and highest < 0.2:
        yield (f"next to no normal faces the camera (the component toward it is {highest:.2f} on average at most): are "
               "the channels in another order, such as BGR? Set `axes` (for instance [\"z\", \"-y\", \"-x\"])")
    elif form == "lines" and middle > 0.5:
        yield f"{middle:.0%} of the pixels are boundaries: set invert = true, or another threshold"
    elif form in ("lines", "areas") and highest == 0:
        yield "no positive pixel in any image: check `threshold`"
    elif form == "areas" and lowest > 0.98:
        yield "nearly every pixel is salient: check `threshold` and `invert`"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(repr(name) for name in names[:_NAMED])}{_more(names)}"


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
