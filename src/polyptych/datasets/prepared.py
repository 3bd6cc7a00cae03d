"""A dataset that `polyptych data prepare` has decoded, checked and, if asked, resized: training reads it fastest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from polyptych.data.cache import CachedDataset
from polyptych.datasets._base import Dataset, EmptySplit
from polyptych.datasets._manifest import NAME, read_manifest
from polyptych.types import LabelInfo, Sample


class Prepared(Dataset):
    """A self-contained folder that ``polyptych data prepare NAME`` wrote.

    Its protocol is not that of the original: labels are stored as in :mod:`polyptych.data.cache` (float16), and resized
    along with the images. Train on it, and take final numbers from the original (``polyptych train --from RUN --dataset
    NAME``, or report them with this protocol).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        root: Path = Path("data/prepared")
        """Folder written by `polyptych data prepare`."""

        def kinds(self) -> dict[str, str]:
            return read_manifest(self.root).kinds if (self.root / NAME).is_file() else {}

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        root = Path(config.root)
        manifest = read_manifest(root)
        self.labels: dict[str, LabelInfo] = manifest.labels
        self.protocol = manifest.protocol
        super().__init__(config, split=split, tasks=tasks)
        if split not in manifest.splits:
            raise EmptySplit(f"{split} split of {root}", "nothing", f"one of {', '.join(manifest.splits)}",
                             "prepare the dataset again with this split")
        self._copy = CachedDataset(self, root / manifest.splits[split])

    def __len__(self) -> int:
        return len(self._copy)

    def labelled(self, task: str) -> int:
        return self._copy.labelled(task)

    def read(self, index: int) -> Sample:
        sample = self._copy.read(index)
        here = [task for task in self.tasks if task in sample.target]
        return replace(sample, target={task: sample.target[task] for task in here},
                       valid={task: sample.valid[task] for task in here})
