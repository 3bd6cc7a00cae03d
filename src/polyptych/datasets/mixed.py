"""Several datasets in one run, each with labels for its own tasks, sampled by weight.

Source: the settings NYUv2+seg and NYUv2+kpts of GradNorm, Chen et al., ICML 2018, arXiv 1711.02257
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polyptych.datasets._base import Dataset, EmptySplit
from polyptych.datasets._mixture import Mixture, checked_weights
from polyptych.datasets._toml import decode_toml, read_toml
from polyptych.errors import InputError, nearest
from polyptych.types import LabelInfo, Sample


@dataclass(frozen=True, kw_only=True)
class MixtureSpec:
    """Contents of the file of ``--dataset.description``."""

    parts: dict[str, Dataset.Config]
    weights: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Mixed(Dataset):
    """The samples of all parts; a sample has the labels that its part has.

    Training draws from the parts in proportion to their weights, regardless of their sizes: any stretch of the stream
    contains every part as often as its weight says, up to rounding, and each part goes through its samples in its own
    order. Evaluation reads every sample of every part once, so the weights do not affect metrics.

    Labels of one task must mean the same in all parts: the same classes, mirror pairs and unit. The sizes of the
    parts' images may differ, which needs ``--size``.

    On the command line the parts come from a TOML file, whose options are those of each dataset; recipes may give them
    as Configs::

        [parts.rooms]
        name = "rooms"
        frames = 500

        [parts.mine]
        name = "folder"
        root = "data/mine"

        [weights]
        rooms = 1
        mine = 3

        [tasks]                  # optional: what a part is used for
        rooms = ["depth", "normals"]
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        description: Path | None = None
        """TOML file with parts, weights and tasks, in place of the options below."""
        parts: dict[str, Dataset.Config] = field(default_factory=dict)
        """The datasets, each under its own name."""
        weights: dict[str, float] = field(default_factory=dict)
        """Relative sampling weight of each part in training (default: 1)."""
        tasks: dict[str, tuple[str, ...]] = field(default_factory=dict)
        """Tasks that each part is used for (default: all that it has labels for)."""

        def kinds(self) -> dict[str, str]:
            parts = _describe(self)[1].parts if self.description or self.parts else {}
            return {name: kind for part in parts.values() for name, kind in part.kinds().items()}

        def whole(self) -> Mixed.Config:
            if self.description is None or not self.description.is_file():
                return self  # the error is reported where the file is read
            found = _describe(self)[1]
            return Mixed.Config(parts=found.parts, weights=found.weights, tasks=found.tasks)

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        where, description = _describe(config)
        offered = {name: _offered(where, name, part, description) for name, part in description.parts.items()}
        self.labels = _agreed(where, offered)
        super().__init__(config, split=split, tasks=tasks)
        self.parts: dict[str, Dataset] = {}
        for name, part in description.parts.items():
            try:
                self.parts[name] = part.build(split=split, tasks=tuple(t for t in tasks if t in offered[name]))
            except EmptySplit:  # the other parts are evaluated
                if split == "train":
                    raise
        if not self.parts:
            raise EmptySplit(f"{where}: {split} split", "no part that has one", "at least one part with it",
                             "set validation in one of the parts, or describe its splits")
        for name, built in self.parts.items():
            if not len(built):
                raise InputError(f"{where}: part '{name}'", f"no samples in its {split} split", "at least one",
                                 "check its files and options")
        datasets = list(self.parts.values())
        checked = checked_weights(description.weights, description.parts, where)
        weights = [weight for name, weight in zip(description.parts, checked, strict=True) if name in self.parts]
        self._mixture = Mixture([len(part) for part in datasets], weights, [part.index_at for part in datasets])
        self.doubts = tuple(f"part '{name}': {doubt}" for name, part in self.parts.items() for doubt in part.doubts)
        self.protocol = f"mixed({'+'.join(part.protocol for part in datasets)})"

    def __len__(self) -> int:
        return len(self._mixture)

    def labelled(self, task: str) -> int:
        return sum(part.labelled(task) for part in self.parts.values() if task in part.tasks)

    def index_at(self, position: int, seed: int) -> int:
        return self._mixture.index_at(position, seed)

    def read(self, index: int) -> Sample:
        """The sample of a part; its id begins with the name of the part."""
        number, own = self._mixture.locate(index)
        name = list(self.parts)[number]
        sample = self.parts[name].read(own)
        return dataclasses.replace(sample, info=dataclasses.replace(sample.info, id=f"{name}/{sample.info.id}"))


def _describe(config: Mixed.Config) -> tuple[str, MixtureSpec]:
    """The place for messages, and the parts, from the file or the options."""
    if config.description is not None:
        where = str(config.description)
        if config.parts or config.weights or config.tasks:
            raise InputError(f"description of mixed ({where})", "both a file and options", "one of them",
                             "move the options into the file")
        tables = read_toml(config.description, "a TOML file with a table for each part")
        description = decode_toml(MixtureSpec, tables, config.description)
    else:
        where = "dataset mixed"
        description = MixtureSpec(parts=config.parts, weights=config.weights, tasks=config.tasks)
    if not description.parts:
        raise InputError(f"{where}: parts", "none", "at least one dataset",
                         "describe them in a TOML file, for instance [parts.a] with name = \"rooms\", and pass it as "
                         "--dataset.description")
    for name in description.tasks:
        if name not in description.parts:
            raise InputError(f"{where}: tasks of '{name}'", "an unknown part", nearest(name, description.parts),
                             "use one of these names")
    return where, description


def _offered(where: str, name: str, part: Dataset.Config, description: MixtureSpec) -> Mapping[str, LabelInfo]:
    """Label information of the tasks that a part is used for."""
    labels = part.build(split="train", tasks=()).labels
    used = description.tasks.get(name, tuple(labels))
    for task in used:
        if task not in labels:
            raise InputError(f"{where}: tasks of '{name}'", f"'{task}', for which it has no labels",
                             nearest(task, labels), "use one of these tasks")
    return {task: labels[task] for task in used}


def _agreed(where: str, offered: Mapping[str, Mapping[str, LabelInfo]]) -> dict[str, LabelInfo]:
    """Label information of each task, the same for all parts.

    Raises:
        InputError: labels of a task differ in meaning between parts.
    """
    agreed: dict[str, LabelInfo] = {}
    first: dict[str, str] = {}
    for name, labels in offered.items():
        for task, info in labels.items():
            if task not in agreed:
                agreed[task], first[task] = info, name
                continue
            known = agreed[task]
            for attribute in ("classes", "mirror", "unit"):
                a, b = getattr(known, attribute), getattr(info, attribute)
                if a != b:
                    raise InputError(f"{where}: task '{task}' of part '{name}'",
                                     f"{_difference(attribute, a, b)} where part '{first[task]}' differs",
                                     "labels that mean the same in all parts",
                                     f"leave '{task}' out of one part with [tasks], or choose other options for it")
            if info.note and info.note not in known.note:
                agreed[task] = dataclasses.replace(known, note="; ".join(filter(None, (known.note, info.note))))
    return agreed


def _difference(attribute: str, known: object, other: object) -> str:
    if not (isinstance(known, tuple) and isinstance(other, tuple)):
        return f"the {attribute} {other!r}"
    if len(known) != len(other):
        return f"{len(other)} {attribute} (not {len(known)})"
    place, (a, b) = next((i, pair) for i, pair in enumerate(zip(known, other, strict=True)) if pair[0] != pair[1])
    return f"{attribute} number {place} {b!r} (not {a!r})"
