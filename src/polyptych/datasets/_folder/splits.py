"""Which samples are for training, validation and testing."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from polyptych.data.files import composed, read_lines, spelled
from polyptych.errors import InputError, nearest

Members = str | float | tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What ``[splits]`` may say of each split: a text file with one id per line (``"lists/train.txt"``); a folder
    (``"train/"``) whose ids begin with it; several of them in a list; a number, the share of all samples that no list
    names (for ``val``, of the training samples if these are listed); or nothing, all that is left.

    Shares are drawn by a hash of the ids, the same on every machine. Frames of one video are better split by folders
    or lists, because neighbors are nearly copies of each other.
    """

    train: Members = None
    val: Members = 0.1
    test: Members = 0.2

    def of(self, split: str, samples: Collection[str], root: Path, where: str) -> list[str]:
        """The ids of one split, in the order of its list or sorted.

        Args:
            samples: ids of all images.
            where: the place of the table, for messages.

        Raises:
            InputError: a list names an image that does not exist, splits overlap, or shares exceed the whole.
        """
        members = {"test": self.test, "val": self.val, "train": self.train}
        self._check(members, where)
        taken: dict[str, list[str]] = {}
        owner: dict[str, str] = {}
        for name, value in members.items():
            if isinstance(value, (str, tuple)):
                entries = (value,) if isinstance(value, str) else value
                taken[name] = [s for entry in entries for s in _listed(entry, samples, root, f"{where}.{name}")]
                if len(set(taken[name])) < len(taken[name]):
                    twice = next(s for place, s in enumerate(taken[name]) if s in taken[name][:place])
                    raise InputError(f"{where}.{name}", f"'{twice}' in two of its entries", "every image once",
                                     "remove it from one of them")
                for sample in taken[name]:
                    if owner.setdefault(sample, name) != name:
                        raise InputError(f"{where}.{name}", f"'{sample}', which is in {owner[sample]} too",
                                         "splits that share no image", "remove it from one of them")
        free = sorted(set(samples) - owner.keys(), key=_draw)
        left = free
        for name, value in members.items():
            if not isinstance(value, (int, float)):
                continue
            if name == "val" and "train" in taken:  # val is always carved out of what is there for training
                drawn = set(_first(sorted(set(taken["train"]), key=_draw), value))
                taken[name] = sorted(drawn)
                taken["train"] = [sample for sample in taken["train"] if sample not in drawn]
            else:
                count = len(_first(free, value))
                taken[name], left = sorted(left[:count]), left[count:]
        return taken[split] if split in taken else sorted(left)

    @staticmethod
    def _check(members: dict[str, Members], where: str) -> None:
        shares = {name: value for name, value in members.items() if isinstance(value, (int, float))}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise InputError(f"{where}.{name}", f"{share:g}", "a share from 0 to 1", "correct it")
        if sum(shares.values()) > 1 + 1e-9:
            raise InputError(where, f"shares that add up to {sum(shares.values()):g}", "at most 1", "lower them")
        rest = [name for name, value in members.items() if value is None]
        if len(rest) > 1:
            raise InputError(where, f"nothing for {' and '.join(rest)}", "at most one split without lists or a share",
                             "state the others")


def _first(samples: list[str], share: float) -> list[str]:
    """The beginning of a list. A small folder still gets one sample for each split."""
    return samples[:max(1, round(share * len(samples))) if share else 0]


def _listed(entry: str, samples: Collection[str], root: Path, where: str) -> list[str]:
    entry = composed(entry)
    if entry.endswith("/"):
        inside = sorted(sample for sample in samples if sample.startswith(entry))
        if not inside:
            some = {sample.rpartition("/")[0] + "/" for sample in samples if "/" in sample}
            raise InputError(where, f"the folder '{entry}', in which no id lies", nearest(entry, some), "correct it")
        return inside
    path = spelled(root / entry)
    listed = read_lines(path)
    for sample in listed:
        if sample not in samples:
            close = difflib.get_close_matches(sample, samples, n=1)
            raise InputError(path, f"the id '{sample[:100]}', which no image has",
                             f"ids of the {len(samples)} images" + (f" (nearest: {close[0]})" if close else ""),
                             "copy the image, or remove the line")
    return listed


def _draw(sample: str) -> bytes:
    return hashlib.blake2b(sample.encode(), digest_size=8).digest()
