"""Where files lie: patterns with ``{id}``, and the lists that split the ids."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from polyptych.data.files import composed, id_of, spelled, walk
from polyptych.errors import InputError


@dataclass(frozen=True)
class Pattern:
    """``labels/{id}.png``: what stands for ``{id}``, which may contain folders, names the sample; ``*`` is any text
    within a name. Paths are relative to the folder of the data.

    Attributes:
        where: the place of the pattern in its file, for messages.
    """

    text: str
    where: str

    def __post_init__(self) -> None:
        rest = self.text.replace("{id}", "")
        if "{id}" not in self.text or "{" in rest or "}" in rest or "\0" in rest:
            raise InputError(self.where, repr(self.text), "a path with {id} where the sample's id goes",
                             "for instance \"images/{id}.jpg\"")

    def expected(self, root: Path, sample: str) -> Path:
        """Where the file of a sample would be."""
        return root / self.text.replace("{id}", sample)

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
        for below in sorted(walk(base) if base.is_dir() else ()):
            if not (match := expression.fullmatch(composed(prefix + below))):
                continue
            path = base / below
            sample = id_of(match["id"], path)
            if sample in found:
                raise InputError(self.where, f"two files for '{sample}': {found[sample]} and {path}",
                                 "one file for each id", "make the pattern narrower, or remove one")
            found[sample] = path
        if not found:
            do = "correct the pattern" if base.is_dir() else f"there is no folder {base}: correct the pattern"
            raise InputError(self.where, f"'{self.text}', which no file fits",
                             f"files like {self.expected(root, '0001')}", do)
        return found

    def explains_better(self, other: Pattern, path: str) -> bool:
        """Whether a path, relative to the folder of the data, fits this pattern, which says more than ``other`` does:
        ``{id}_depth.png`` and not ``{id}.png``."""
        return len(self.text) > len(other.text) and self.expression().fullmatch(composed(path)) is not None

    def expression(self) -> re.Pattern[str]:
        parts = re.split(r"(\{id\}|\*)", composed(self.text))
        first = parts.index("{id}")
        write = {"*": r"[^/]*", "{id}": r"(?P=id)"}
        return re.compile("".join("(?P<id>.+?)" if i == first else write.get(part, re.escape(part))
                                  for i, part in enumerate(parts)))
