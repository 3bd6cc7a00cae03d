"""Which samples are for training, validation and testing."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from polyptych.data.files import composed, read_lines, spelled
from polyptych.errors import InputError, nearest

Members = str | float | tuple[str, ...] | None

SPELLINGS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
"""Common names of the folders of each split."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What ``[splits]`` may set each split to: a text file with one id per line (``"lists/train.txt"``); a folder
    (``"train/"``), which means all ids that begin with it; a list of several of these; a number, the share of all
    samples that are not in any list (for ``val``, of the training samples if these are listed); or nothing, which means
    all remaining samples.

    A line of a list may also be the path of the image (with or without extension, with any folders before it). The rest
    of the line is ignored: lists of pairs such as ``train/1.png trainannot/1.png`` can be used as they are, because the
    patterns find the labels.

    Shares are drawn by a hash of the ids, so they are the same on every machine. Split frames of a video by folders or
    lists instead, because neighboring frames are nearly copies.
    """

    train: Members = None
    """Images to train on."""
    val: Members = 0.1
    """Images for validation during training and for selecting weights."""
    test: Members = 0.2
    """Images for the test at the end."""

    @classmethod
    def of_folders(cls, samples: Collection[str]) -> Splits:
        """The splits that ``{split}`` in the pattern of the images gives, if there is no ``[splits]``. Without a folder
        for validation, a tenth of the training samples is used; without one for testing, nothing is tested."""
        first = {sample.partition("/")[0] for sample in samples}
        folders = {split: tuple(f"{name}/" for name in sorted(first) if name.lower() in names)
                   for split, names in SPELLINGS.items()}
        return cls(train=folders["train"] or None, val=folders["val"] or 0.1, test=folders["test"] or 0.0)

    def of(self, split: str, samples: Collection[str], root: Path, where: str) -> list[str]:
        """The ids of one split, in the order of its list or sorted.

        Args:
            samples: ids of all images; if a mapping to their paths, lists may name these.
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
                    twice = next(s for s, times in Counter(taken[name]).items() if times > 1)
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
            if name == "val" and "train" in taken:  # val is always carved out of the training samples
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
                do = f"{share:g}% is {share / 100:g}" if 1 < share <= 100 else "choose a value in this range"
                raise InputError(f"{where}.{name}", f"{share:g}", "a share from 0 to 1", do)
        if sum(shares.values()) > 1 + 1e-9:
            raise InputError(where, f"shares that add up to {sum(shares.values()):g}", "at most 1", "lower them")
        rest = [name for name, value in members.items() if value is None]
        if len(rest) > 1:
            raise InputError(where, f"nothing for {' and '.join(rest)}", "at most one split without lists or a share",
                             "set the others")


def _first(samples: list[str], share: float) -> list[str]:
    """The first samples of a list. In a small folder every split still gets one sample."""
    return samples[:max(1, round(share * len(samples))) if share else 0]


def _listed(entry: str, samples: Collection[str], root: Path, where: str) -> list[str]:
    entry = composed(entry)
    if entry.endswith("/"):
        inside = sorted(sample for sample in samples if sample.startswith(entry))
        if not inside:
            some = {sample.rpartition("/")[0] + "/" for sample in samples if "/" in sample}
            raise InputError(where, f"the folder '{entry}', which holds no images", nearest(entry, some),
                             "name one of these folders")
        return inside
    path = spelled(root / entry)
    if not path.is_file():
        is_folder = any(sample.startswith(f"{entry}/") for sample in samples)
        do = f"write '{entry}/' for the folder of images" if is_folder else "check the name"
        raise InputError(where, f"'{entry}', and there is no file {path}", "a list of ids, a folder of images that "
                         "ends in /, or a share", do)
    found: dict[str, str] = {}
    others: dict[str, str] | None = None
    for line in read_lines(path):
        sample = line
        if sample not in samples:
            others = other_names(samples, root) if others is None else others
            sample = resolved(line, others)
        if not sample:
            close = difflib.get_close_matches(line, samples, n=1)
            raise InputError(path, f"the id '{line[:100]}', which no image has",
                             f"ids of the {len(samples)} images" + (f" (nearest: {close[0]})" if close else ""),
                             "copy the image, or remove the line")
        if sample in found:
            raise InputError(path, f"'{found[sample][:100]}' and '{line[:100]}', which are one image ('{sample}')",
                             "every image once", "remove one of the lines")
        found[sample] = line
    if not found:
        raise InputError(path, "a list without a line", "one id on each line",
                         f"write it, or set {where.rpartition('.')[2]} = 0 for no such images")
    return list(found)


def other_names(samples: Collection[str], root: Path) -> dict[str, str]:
    """Other names of an image that a list may use: its path below the root, with and without extension, and without
    leading folders as long as that is unambiguous."""
    names: dict[str, set[str]] = {}
    for sample in samples:
        spellings = {sample}
        if isinstance(samples, Mapping):
            below = composed(os.path.relpath(samples[sample], root).replace(os.sep, "/"))
            spellings |= {below, os.path.splitext(below)[0]}
        for name in spellings:
            parts = name.split("/")
            for start in range(len(parts)):
                names.setdefault("/".join(parts[start:]), set()).add(sample)
    return {name: next(iter(meant)) for name, meant in names.items() if len(meant) == 1}


def resolved(line: str, names: Mapping[str, str]) -> str:
    """The id of the image that a line of a list means, or nothing. Unknown leading folders are ignored, because lists
    are often written on other machines."""
    for entry in dict.fromkeys((line, *line.split()[:1], line.partition(",")[0].strip())):
        parts = entry.replace("\\", "/").split("/")
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if sample := names.get(name) or names.get(os.path.splitext(name)[0]):
                return sample
    return ""


def _draw(sample: str) -> bytes:
    return hashlib.blake2b(sample.encode(), digest_size=8).digest()
