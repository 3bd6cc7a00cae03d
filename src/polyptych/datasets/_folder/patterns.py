"""Where files lie: patterns with ``{id}`` and other parts of names."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from polyptych.data.files import composed, id_of, spelled, walk
from polyptych.errors import InputError

_PART = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Pattern:
    """``labels/{id}.png``: what stands for ``{id}``, which may contain folders, names the sample; ``*`` is any text
    within a name. Paths are relative to the folder of the data.

    Other parts of a name have names too: ``{split}annot/{id}.png``. A part is text without a slash. The sample is then
    called by all its parts, ``train/0001``: the split first, the others in alphabetical order, ``{id}`` last, so that
    an image and a label whose folders are built differently meet.

    Attributes:
        where: the place of the pattern in its file, for messages.
    """

    text: str
    where: str

    def __post_init__(self) -> None:
        rest = _PART.sub("", self.text)
        if "{id}" not in self.text or "{" in rest or "}" in rest or "\0" in rest:
            raise InputError(self.where, repr(self.text), "a path with {id} where the sample's id goes",
                             "for instance \"images/{id}.jpg\"")
        for name in self.parts:
            if not (name.isidentifier() and name.isascii()):
                raise InputError(self.where, f"{{{name}}} in {self.text!r}", "letters, digits and _ between the braces",
                                 "for instance \"{split}/{id}.jpg\"")

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, in the order in which they make the sample's name."""
        named = {name for name in _PART.findall(self.text) if name != "id"}
        return (*sorted(named, key=lambda name: (name != "split", name)), "id")

    def expected(self, root: Path, sample: str) -> Path:
        """Where the file of a sample would be."""
        values = sample.split("/", len(self.parts) - 1)
        text = self.text
        for name, value in zip(reversed(self.parts), reversed(values), strict=False):
            text = text.replace(f"{{{name}}}", value)
        return root / text

    def find(self, root: Path) -> dict[str, Path]:
        """``{id: path}`` of all files that fit, in the order of their paths. One walk through the folders, because a
        folder on a network disk has thousands of files. Ids are in composed Unicode, paths as the disk has them.

        Raises:
            InputError: no file fits, or two have the same id.
        """
        fixed = re.split(r"[{*]", self.text)[0].rpartition("/")[0]
        base = spelled(root / fixed)
        expression = self.expression()
        prefix = f"{fixed}/" if fixed else ""
        found: dict[str, Path] = {}
        others: Counter[str] = Counter()
        for below in sorted(walk(base) if base.is_dir() else ()):
            others[PurePosixPath(below).suffix] += 1
            if not (match := expression.fullmatch(composed(prefix + below))):
                continue
            path = base / below
            sample = id_of("/".join(match[name] for name in self.parts), path)
            if sample in found:
                raise InputError(self.where, f"two files for '{sample}': {found[sample]} and {path}",
                                 "one file for each id", "make the pattern narrower, or remove one")
            found[sample] = path
        if not found:
            there = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(3) if suffix)
            do = ("write / between folders" if "\\" in self.text else
                  f"there is no folder {base}: correct the pattern" if not base.is_dir() else
                  f"correct the pattern ({base} has {there} files)" if there else "correct the pattern")
            raise InputError(self.where, f"'{self.text}', which no file fits",
                             f"files like {self.expected(root, '0001')}", do)
        return found

    def explains_better(self, other: Pattern, path: str) -> bool:
        """Whether a path, relative to the folder of the data, fits this pattern, which says more than ``other`` does:
        ``{id}_depth.png`` and not ``{id}.png``."""
        return len(self.text) > len(other.text) and self.expression().fullmatch(composed(path)) is not None

    def expression(self) -> re.Pattern[str]:
        seen: set[str] = set()

        def written(piece: str) -> str:
            if piece == "*":
                return r"[^/]*"
            if not (part := _PART.fullmatch(piece)):
                return re.escape(piece)
            if part[1] in seen:
                return f"(?P={part[1]})"
            seen.add(part[1])
            return f"(?P<{part[1]}>{'.+?' if part[1] == 'id' else '[^/]+?'})"

        return re.compile("".join(map(written, re.split(r"(\{\w+\}|\*)", composed(self.text)))))
