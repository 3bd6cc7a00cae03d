"""PASCAL-Context: photographs with semantic segmentation, body parts, saliency, surface normals and boundaries.

Source: Mottaghi et al., CVPR 2014; as packed by Maninis, Radosavovic and Kokkinos, CVPR 2019, arXiv 1904.08918
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from polyptych.datasets._base import Dataset, EmptySplit
from polyptych.datasets._holdout import hold_out
from polyptych.datasets._pascal_context.classes import HAS_NORMALS, NAMES, PARTS
from polyptych.datasets._pascal_context.tree import NEEDS, Tree, boundaries, check_shape, fit
from polyptych.errors import InputError
from polyptych.types import LabelInfo, Sample, SampleInfo

Label = tuple[Tensor, Tensor]
Size = tuple[int, int]

_LABELS = {
    "semseg": LabelInfo(classes=NAMES, note="VOC's own segmentation where it has one, otherwise made from the context "
                                            "classes"),
    "parts": LabelInfo(classes=PARTS, note="an image that shows no part has no label"),
    "saliency": LabelInfo(note="estimated by a network, not annotated"),
    "normals": LabelInfo(note="estimated by a network, not annotated, and only on 170 of the 459 context classes; axes "
                              "as stored"),
    "boundaries": LabelInfo(note="thinned changes of the 459 context classes"),
}


class PASCALContext(Dataset):
    """PASCAL-Context with five tasks, 4998 images in the official ``train`` and 5105 in the official ``val``.

    **Our** ``test`` **is the official** ``val``, on which all published numbers are measured. Our ``val`` is carved out
    of the official training images: neighbors in the list are unrelated photographs, so single images are taken, evenly
    spaced.

    Images keep their native sizes. Labels stored at another scale are resized to the image (nearest neighbor, normals
    bicubic), as in the published loaders. Where they use 255 for an image without any part, the mask is False
    everywhere; an image without a file in ``human_parts/`` has no label for parts at all.

    Boundaries are where the Laplacian of the context classes is not zero, thinned (the published training labels;
    the benchmark for odsF derives its own truth from the same classes).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        root: Path = Path("data/PASCAL_MT")
        """Folder of the dataset (the unpacked PASCAL_MT)."""
        validation: float = 0.1
        """Share of the official training images that is held out as val (0: train on all of them)."""

        def known_labels(self) -> dict[str, LabelInfo]:
            return dict(_LABELS)

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        self.tree = _open(config)
        # A requested task is offered even without files, so that an error can name the missing files.
        self.labels = {task: info for task, info in _LABELS.items() if self.tree.has(task) or task in tasks}
        super().__init__(config, split=split, tasks=tasks)
        self.frames = self._split_frames()
        self.tree.require(self.frames, self.tasks)
        self.protocol = f"pascal_context-{len(NAMES)}-native-pascal_mt"
        self._readers: dict[str, Callable[[str, Size], Label]] = {
            "semseg": self._semseg, "parts": self._parts, "saliency": self._saliency, "normals": self._normals,
            "boundaries": self._boundaries}

    def __len__(self) -> int:
        return len(self.frames)

    def labelled(self, task: str) -> int:
        return sum(frame in self.tree.files[NEEDS[task][0]] for frame in self.frames)

    def read(self, index: int) -> Sample:
        frame = self.frames[index]
        image = self.tree.image(frame)
        size = (int(image.shape[1]), int(image.shape[2]))
        labels = {task: self._readers[task](frame, size) for task in self.tasks
                  if frame in self.tree.files[NEEDS[task][0]]}
        return Sample(image, {task: target for task, (target, _) in labels.items()},
                      {task: valid for task, (_, valid) in labels.items()}, SampleInfo(frame, size, size))

    def _split_frames(self) -> list[str]:
        frames = self.tree.frames("val" if self.split == "test" else "train")
        if self.split != "test":
            kept = hold_out([[frame] for frame in frames], self.config.validation)
            frames = [frame for frame in frames if (frame in kept) == (self.split == "val")]
        if not frames:
            kind = InputError if self.split == "train" else EmptySplit
            raise kind(f"{self.split} split of {self.tree.root}", "no frames",
                       "at least one (val needs two training images and a validation share above 0)",
                       "check the lists in ImageSets/Context/")
        return frames

    def _semseg(self, frame: str, size: Size) -> Label:
        ids, labeled = self.tree.semseg(frame)
        path = self.tree.path(frame, "semseg")
        return torch.from_numpy(fit(ids, size, path)).long(), torch.from_numpy(fit(labeled, size, path))

    def _parts(self, frame: str, size: Size) -> Label:
        ids = self.tree.parts(frame)
        if ids is None or not ids.any():
            return torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.bool)
        return torch.from_numpy(fit(ids, size, self.tree.path(frame, "parts"))), torch.ones(size, dtype=torch.bool)

    def _saliency(self, frame: str, size: Size) -> Label:
        salient = fit(self.tree.saliency(frame), size, self.tree.path(frame, "saliency"))
        return torch.from_numpy(salient).float(), torch.ones(size, dtype=torch.bool)

    def _normals(self, frame: str, size: Size) -> Label:
        normals = self.tree.normals(frame).float() * (2 / 255) - 1
        stored = (int(normals.shape[1]), int(normals.shape[2]))
        check_shape(stored, size, self.tree.path(frame, "normals"))
        if stored != size:
            normals = F.interpolate(normals[None], size, mode="bicubic", align_corners=False)[0]
        context = fit(self.tree.context(frame), size, self.tree.path(frame, "context"))
        length = normals.square().sum(0).sqrt()
        valid = torch.from_numpy(HAS_NORMALS[context]) & (length > 0.1)  # an 8-bit zero vector is not exactly zero
        return normals * (valid / length.clamp(min=0.1)), valid

    def _boundaries(self, frame: str, size: Size) -> Label:
        context = fit(self.tree.context(frame), size, self.tree.path(frame, "context"))
        return torch.from_numpy(boundaries(context)).float(), torch.ones(size, dtype=torch.bool)


def _open(config: PASCALContext.Config) -> Tree:
    root = Path(config.root)
    where = f"root of pascal_context ({root})"
    if not 0 <= config.validation < 1:
        raise InputError("validation of pascal_context", str(config.validation), "a share from 0 to below 1",
                         "0.1 sets a tenth of the training images aside")
    if not root.is_dir():
        raise InputError(where, "no such folder", "the folder of the dataset", "unpack PASCAL_MT, or check the path")
    if not Tree.matches(root):
        inside = [child for child in sorted(root.iterdir()) if child.is_dir() and Tree.matches(child)]
        raise InputError(where, f"a folder without {Tree.looks_for}", "the unpacked PASCAL_MT",
                         f"did you mean {inside[0]}?" if inside else "check the path")
    return Tree(root)
