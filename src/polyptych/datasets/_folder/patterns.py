"""Path patterns with ``{id}`` and other parts of names."""

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
    """``labels/{id}.png``: the text that matches ``{id}``, which may contain folders, is the id of the sample; ``*`` is
    any text within a name. Paths are relative to the folder of the data.

    Other parts may have names too: ``{split}annot/{id}.png``. A part is text without a slash. The id of the sample then
    joins all parts, ``train/0001``: the split first, the others in alphabetical order, ``{id}`` last. So an image and a
    label match even if their folders are nested differently.

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
        """Names of the parts, in the order in which they form the sample's id."""
        named = {name for name in _PART.findall(self.text) if name != "id"}
        return (*sorted(named, key=lambda name: (name != "split", name)), "id")

    def expected(self, root: Path, sample: str) -> Path:
        """The path where the file of a sample should be."""
        values = sample.split("/", len(self.parts) - 1)
        text = self.text
        for name, value in zip(reversed(self.parts), reversed(values), strict=False):
            text = text.replace(f"{{{name}}}", value)
        return root / text

    def find(self, root: Path) -> dict[str, Path]:
        """``{id: path}`` of all matching files, in the order of their paths. Walks the folders only once, because a
        folder on a network disk may have thousands of files. Ids are in composed Unicode (NFC), paths as on disk.

        Raises:
            InputError: no file matches, or two have the same id.
        """
        fixed = re.split(r"[{*]", self.text)[0].rpartition("/")[0]
        base = spelled(root / fixed)
        expression = self.expression
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
                  f"there is no folder {base}: check the pattern" if not base.is_dir() else
                  f"check the pattern ({base} has {there} files)" if there else "check the pattern")
            raise InputError(self.where, f"'{self.text}', which matches no file",
                             f"files like {self.expected(root, '0001')}", do)
        return found

    def explains_better(self, other: Pattern, path: str) -> bool:
        """Whether a path, relative to the folder of the data, matches this pattern, and the pattern is more specific
        than ``other``: ``{id}_depth.png`` rather than ``{id}.png``."""
        return len(self.text) > len(other.text) and self.expression.fullmatch(composed(path)) is not None

    @cached_property
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
