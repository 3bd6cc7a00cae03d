"""Where files lie: patterns with ``{id}``, and the lists that split the ids."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
            raise InputError(self.where, repr(self.text), "a path with {id} in the place of the sample's id",
                             "for instance \"images/{id}.jpg\"")

    def expected(self, root: Path, sample: str) -> Path:
        """Where the file of a sample would be."""
        return root / self.text.replace("{id}", sample)

    def find(self, root: Path) -> dict[str, Path]:
        """``{id: path}`` of all files that fit, in the order of their paths. One walk through the folders, because a
        folder on a network disk has thousands of files; hidden files are left out.

        Raises:
            InputError: no file fits, or two have the same id.
        """
        fixed = re.split(r"[{*]", self.text)[0].rpartition("/")[0]
        base = root / fixed
        expression = self.expression()
        prefix = f"{fixed}/" if fixed else ""
        found: dict[str, Path] = {}
        for below in sorted(_walk(base)):
            if not (match := expression.fullmatch(prefix + below)):
                continue
            path, sample = base / below, match["id"]
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
        return len(self.text) > len(other.text) and self.expression().fullmatch(path) is not None

    def expression(self) -> re.Pattern[str]:
        parts = re.split(r"(\{id\}|\*)", self.text)
        first = parts.index("{id}")
        write = {"*": r"[^/]*", "{id}": r"(?P=id)"}
        return re.compile("".join("(?P<id>.+?)" if i == first else write.get(part, re.escape(part))
                                  for i, part in enumerate(parts)))


def _walk(base: Path) -> Iterator[str]:
    """Paths of all files below a folder, relative to it, with forward slashes."""
    seen = set()
    for folder, inner, files in os.walk(base, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            inner.clear()
            continue
        seen.add(real)
        inner[:] = [name for name in inner if not name.startswith(".")]
        relative = os.path.relpath(folder, base).replace(os.sep, "/")
        yield from (name if relative == "." else f"{relative}/{name}" for name in files if not name.startswith("."))
