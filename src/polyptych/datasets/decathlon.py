"""Visual Decathlon: ten classification datasets from handwriting to aircraft as ten tasks of one network.

Source: Rebuffi, Bilen, Vedaldi, NeurIPS 2017, arXiv 1705.08045
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from polyptych.data.files import spelled
from polyptych.data.order import shuffled
from polyptych.data.pictures import read_color
from polyptych.datasets._base import Dataset, EmptySplit
from polyptych.datasets._decathlon.annotations import Annotated, Annotations, held_out, read_annotations
from polyptych.datasets._decathlon.domains import DOMAINS, REFERENCE
from polyptych.datasets._mixture import Mixture, checked_weights
from polyptych.errors import InputError, nearest
from polyptych.metrics.decathlon import decathlon_score
from polyptych.types import LabelInfo, Sample, SampleInfo


class Decathlon(Dataset):
    """Ten tasks of the kind ``classification``, named after the domains; an image has a label for its own domain only.

    Only domains that are requested as tasks are read. Training draws from them in proportion to ``weights``, regardless
    of their sizes (see :class:`polyptych.datasets.mixed.Mixed`).

    **The splits are not the official ones.** The labels of the official test images are not public, so ``test`` is the
    official val, and ``val`` is carved out of the official training images
    (:func:`polyptych.datasets._decathlon.annotations.held_out`). Scores here
    (:func:`polyptych.metrics.decathlon.decathlon_score`) are therefore not comparable with published ones.

    Images have a shorter side of 72 pixels and differ in size, so a run needs ``--size``, for instance 72 72. The
    network normalizes all domains alike, by the mean and standard deviation that its backbone expects. MTAN normalizes
    each domain by its own statistics; ``match_statistics`` does the same, up to clipping at black and white.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        root: Path = Path("data/decathlon-1.0")
        """Folder with annotations/ and the images."""
        domains: tuple[str, ...] = tuple(DOMAINS)
        """Domains to use."""
        weights: dict[str, float] = field(default_factory=dict)
        """Relative sampling weight of each domain in training (default: 1)."""
        validation: float = 0.1
        """Share of the official training images of each class that is held out as val (0: train on all of them)."""
        match_statistics: bool = False
        """Match the color mean and standard deviation of every domain to those of imagenet12."""

        def kinds(self) -> dict[str, str]:
            return dict.fromkeys(self.domains, "classification")

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        self._check(config)
        root = Path(config.root)
        training = {domain: read_annotations(_annotation_file(root, domain, "train")) for domain in config.domains}
        self.labels = {domain: LabelInfo(classes=part.classes) for domain, part in training.items()}
        self.protocol = "decathlon-1.0-local"
        super().__init__(config, split=split, tasks=tasks)
        self._folders = {domain: _image_folder(root, domain) for domain in tasks}
        self._images = {domain: self._select(domain, training[domain]) for domain in tasks}
        weights = checked_weights(config.weights, config.domains, "dataset decathlon")
        weight = dict(zip(config.domains, weights, strict=True))
        lengths = [len(images) for images in self._images.values()]
        self._mixture = Mixture(lengths, [weight[domain] for domain in tasks],
                                [partial(_shuffled, length) for length in lengths])

    def __len__(self) -> int:
        return len(self._mixture)

    def labelled(self, task: str) -> int:
        return len(self._images[task])

    def index_at(self, position: int, seed: int) -> int:
        return self._mixture.index_at(position, seed)

    def scores(self, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """The Decathlon score, for a run on all ten domains."""
        accuracy = {name: values["top1"] for name, values in metrics.items()}
        if accuracy.keys() != DOMAINS.keys() or any(math.isnan(value) for value in accuracy.values()):
            return {}
        return {"decathlon_score": decathlon_score(accuracy)}

    def read(self, index: int) -> Sample:
        number, own = self._mixture.locate(index)
        domain = list(self._images)[number]
        item = self._images[domain][own]
        image = read_color(spelled(self._folders[domain] / item.path))
        if self.config.match_statistics:
            image = matched(image, domain)
        size = (int(image.shape[1]), int(image.shape[2]))
        return Sample(image, {domain: torch.tensor(item.label)}, {domain: torch.ones(size, dtype=torch.bool)},
                      SampleInfo(item.path, size, size))

    def _select(self, domain: str, training: Annotations) -> tuple[Annotated, ...]:
        """The images of this split, in the order of their ids."""
        if self.split == "test":
            path = _annotation_file(Path(self.config.root), domain, "val")
            official = read_annotations(path)
            if official.classes != training.classes:
                raise InputError(path, "other categories than the training file has", "the same ids and names",
                                 "unpack decathlon-1.0-devkit.tar.gz again")
            images = official.images
        else:
            kept = held_out(training.images, self.config.validation)
            images = tuple(image for image in training.images if (image.id in kept) == (self.split == "val"))
        if not images:
            kind = InputError if self.split == "train" else EmptySplit
            raise kind(f"{self.split} split of {domain}", "no images",
                       "at least one (val needs two training images of a class and a validation share above 0)",
                       "check the annotation files, or leave the domain out")
        return images

    @staticmethod
    def _check(config: Decathlon.Config) -> None:
        if not 0 <= config.validation < 1:
            raise InputError("validation of decathlon", str(config.validation), "a share from 0 to below 1",
                             "0.1 sets a tenth of the training images aside")
        for domain in config.domains:
            if domain not in DOMAINS:
                raise InputError(f"domain '{domain}'", "an unknown name", nearest(domain, DOMAINS),
                                 "use one of these names")
        if not Path(config.root).is_dir():
            raise InputError(f"root of decathlon ({config.root})", "no such folder", "the folder of the dataset",
                             "download the Decathlon, or check the path")


def matched(image: Tensor, domain: str) -> Tensor:
    """The image (3 h w), uint8, with the mean and standard deviation of its domain matched to those of imagenet12."""
    (mean, std), (to_mean, to_std) = (
        (torch.tensor(stated.mean)[:, None, None], torch.tensor(stated.std)[:, None, None])
        for stated in (DOMAINS[domain], REFERENCE))
    unit = (image / 255 - mean) / std * to_std + to_mean
    return (unit.clamp(0, 1) * 255).round().to(torch.uint8)


def _shuffled(length: int, position: int, seed: int) -> int:
    return shuffled(position, length, seed)


def _annotation_file(root: Path, domain: str, split: str) -> Path:
    below = Path("annotations") / f"{domain}_{split}.json"
    inner = root / "decathlon-1.0" / below  # where the devkit unpacks to
    return inner if inner.is_file() else root / below


def _image_folder(root: Path, domain: str) -> Path:
    """The folder that the paths of the annotation files (without their ``data/``) are relative to."""
    for folder in (root, root / "data", root / "decathlon-1.0-data", root / "decathlon-1.0" / "data"):
        if (folder / domain).is_dir():
            return folder
    raise InputError(root, f"a folder without {domain}/ or data/{domain}/", f"the images of '{domain}'",
                     f"unpack {domain}.tar there, or leave the domain out of --dataset.domains")
