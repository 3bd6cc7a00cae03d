"""Dense labels: how classes, normals and binary maps are stored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from polyptych.data.arrays import flat, is_any, require_unit_vectors
from polyptych.data.pictures import PICTURES, is_lossy, read_rgb
from polyptych.datasets._folder.labels import FileLabels, Label
from polyptych.errors import InputError, nearest
from polyptych.types import LabelInfo

RGB = tuple[int, int, int]

_GRAY = "store ids or values as gray, or set encoding = \"colors\" if colors stand for classes"


@dataclass(frozen=True, kw_only=True)
class ClassMaps(FileLabels):
    """One class per pixel, as an id (the index in palette pictures) or as a color."""

    classes: tuple[str, ...]
    """Names of the classes, or a file with them: a text file with one name per line, a CSV table with the column name
    and optionally id, r, g, b (which then set ids and colors), a JSON list, or a .mat cell array."""
    encoding: Literal["ids", "colors"] = "ids"
    """Whether numbers or colors stand for classes."""
    ids: tuple[int | tuple[int, ...], ...] = ()
    """The stored number (or several) of each class; by default 0, 1, 2, ..."""
    ignore: tuple[int, ...] = (255,)
    """Stored numbers that mean no label."""
    colors: tuple[RGB, ...] = ()
    """Color of each class, for pictures, and for labels that store colors."""
    ignore_colors: tuple[RGB, ...] = ()
    """Colors that mean no label."""
    mirror: tuple[tuple[str, str], ...] = ()
    """Pairs of classes that a horizontal flip swaps."""

    def info(self, root: Path, where: str) -> LabelInfo:
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InputError(f"{where}.classes", f"{len(self.classes)} names, {len(set(self.classes))} different ones",
                             "a different name for every class", "rename the duplicates")
        for name, values in (("ids", self.ids), ("colors", self.colors)):
            if values and len(values) != len(self.classes):
                raise InputError(f"{where}.{name}", f"{len(values)} entries",
                                 f"{len(self.classes)}, one for each class", "add or remove entries")
        if self.encoding == "colors" and not self.colors:
            raise InputError(f"{where}.colors", "nothing", "the color of every class, [red, green, blue]",
                             "add it, or set encoding = \"ids\"")
        if not all(0 <= v <= 255 for color in (*self.colors, *self.ignore_colors) for v in color):
            raise InputError(f"{where}.colors", "a number outside 0..255", "colors of eight bits",
                             "scale them to 0..255")
        codes = [code for group in self._codes() for code in group]
        if len(set(codes)) < len(codes):
            raise InputError(f"{where}.{'ids' if self.encoding == 'ids' else 'colors'}", "one value for two classes",
                             "different values", "change one of the two")
        return LabelInfo(classes=self.classes, colors=self.colors, note=self.note,
                         mirror=pairs(self.mirror, self.classes, f"{where}.mirror"))

    def load(self, path: Path) -> np.ndarray:
        if self.encoding == "colors" and path.suffix.lower() in PICTURES:
            return read_rgb(path)
        return super().load(path)

    def parse(self, array: np.ndarray, path: Path, where: str) -> Label:
        array = _color_codes(array, path) if self.encoding == "colors" else flat(array, path, _GRAY)
        groups = self._codes()
        known: dict[int, int] = dict.fromkeys(self._ignored(), -1)  # a value that also stands for a class is that class
        known.update((code, number) for number, group in enumerate(groups) for code in group)
        values = np.array(sorted(known))
        place = np.searchsorted(values, array).clip(max=len(values) - 1)
        hit = values[place] == array  # False for NaN and for fractions
        if not hit.all():
            wrong = array[~hit]
            text = f"#{wrong[0]:06x}" if self.encoding == "colors" else f"{float(wrong[0]):g}"
            raise InputError(path, f"the {self.encoding.removesuffix('s')} {text} ({wrong.size} such pixels)",
                             f"{self._shown_codes()}, as {where} says", self._advice(array, wrong, path))
        ids = torch.from_numpy(np.array([known[int(value)] for value in values])[place])
        return ids.clamp(min=0), ids >= 0

    def _codes(self) -> list[tuple[int, ...]]:
        """The stored values of each class."""
        if self.encoding == "colors":
            return [(_code(color),) for color in self.colors]
        given = self.ids or tuple(range(len(self.classes)))
        return [(value,) if isinstance(value, int) else value for value in given]

    def _shown_codes(self) -> str:
        codes = [code for group in self._codes() for code in group]
        spell = "#{:06x}".format if self.encoding == "colors" else str
        if self.encoding == "ids" and len(codes) > 1 and codes == list(range(codes[0], codes[0] + len(codes))):
            known = f"ids from {codes[0]} to {codes[-1]}"
        else:
            known = f"one of {', '.join(map(spell, codes[:8]))}{', ...' if len(codes) > 8 else ''}"
        ignored = ", ".join(map(spell, self._ignored()[:8]))
        return f"{known} ({len(self.classes)} classes)" + (f", or {ignored} (no label)" if ignored else "")

    def _advice(self, array: np.ndarray, wrong: np.ndarray, path: Path) -> str:
        count, stored = len(self.classes), {int(value) for value in np.unique(array) if float(value).is_integer()}
        if is_lossy(path):
            return "store labels as PNG: JPEG changes the numbers"
        if self.encoding == "ids" and not self.ids and set(np.unique(wrong).tolist()) == {count} and 0 not in stored:
            return f"if ids begin at 1, set ids = [{', '.join(map(str, range(1, min(count, 3) + 1)))}" + (
                ", ...]" if count > 3 else "]")
        return f"add it to a class or to `{self._ignore_option()}`"

    def _ignored(self) -> tuple[int, ...]:
        return tuple(_code(color) for color in self.ignore_colors) if self.encoding == "colors" else self.ignore

    def _ignore_option(self) -> str:
        return "ignore_colors" if self.encoding == "colors" else "ignore"


@dataclass(frozen=True, kw_only=True)
class NormalMaps(FileLabels):
    """Unit vectors (h w 3) or (3 h w). Integers are decoded as 2 v / (largest value of the type) - 1, which is v /
    127.5 - 1 for eight bits. There is no label where a vector is zero (shorter than 0.1) or NaN, or where all three
    integers are zero."""

    axes: tuple[str, str, str] = ("x", "y", "z")
    """Which stored channel, with which sign, points right, down and forward: ["x", "-y", "-z"] if normals are stored
    with x right, y up, z toward the camera."""

    def info(self, root: Path, where: str) -> LabelInfo:
        if sorted(axis.removeprefix("-") for axis in self.axes) != ["x", "y", "z"]:
            raise InputError(f"{where}.axes", repr(list(self.axes)), "x, y and z once each, with or without a minus",
                             "for instance [\"x\", \"-y\", \"-z\"]")
        return LabelInfo(note=self.note)

    def doubts_of(self, first: Path, where: str) -> Iterator[str]:
        return iter(())  # lossy compression turns normals by a degree or two, and many are only published that way

    def parse(self, array: np.ndarray, path: Path, where: str) -> Label:
        if array.ndim == 3 and array.shape[-1] != 3 and array.shape[0] == 3:
            array = array.transpose(1, 2, 0)
        if array.ndim != 3 or array.shape[-1] != 3 or array.dtype.kind == "b":
            raise InputError(path, f"{array.dtype} of shape {array.shape}", "vectors of shape (h, w, 3)",
                             "check `files` and `key`")
        known = np.isfinite(array).all(-1)
        if array.dtype.kind in "iu":
            known = array.any(-1)
            array = array * (2 / np.iinfo(array.dtype).max) - 1
        planes = np.where(known, np.moveaxis(array, -1, 0), 0).astype(np.float32)
        stored = dict(zip("xyz", planes, strict=True))
        vectors = np.stack([-stored[axis[1]] if axis.startswith("-") else stored[axis] for axis in self.axes])
        length = np.sqrt(np.square(vectors).sum(0))
        valid = length >= 0.1
        wrong = valid & ~((length >= 0.5) & (length <= 1.5))
        if wrong.any():
            raise InputError(path, f"a vector of length {length[wrong][0]:g} ({int(wrong.sum())} such pixels)",
                             "vectors of length 1, or 0 where there is no label",
                             "normalize them; pictures store (n + 1) * 127.5")
        require_unit_vectors(vectors, valid, path)
        unit = vectors / np.where(valid, length, 1) * valid
        return torch.from_numpy(unit), torch.from_numpy(valid)


@dataclass(frozen=True, kw_only=True)
class BinaryMaps(FileLabels):
    """Boundaries or saliency: yes or no per pixel. NaN means no label."""

    threshold: float = 0.5
    """Stored values above it are positive: use 0.5 for 0/1 and 0/255, 127.5 for 8-bit gray pictures."""
    invert: bool = False
    """Values not above the threshold are positive (dark lines on white)."""
    ignore: tuple[float, ...] = ()
    """Stored values that mean no label."""

    def info(self, root: Path, where: str) -> LabelInfo:
        if not math.isfinite(self.threshold):
            raise InputError(f"{where}.threshold", str(self.threshold), "a number", "0.5 suits 0/1 and 0/255")
        return LabelInfo(note=self.note)

    def doubts_of(self, first: Path, where: str) -> Iterator[str]:
        if is_lossy(first) and self.threshold < 16:
            yield (f"{where}: {first.name} and files like it use lossy compression (JPEG), which leaves small "
                   f"numbers around every edge; threshold = {self.threshold:g} makes them positive: set 127.5")

    def parse(self, array: np.ndarray, path: Path, where: str) -> Label:
        stored = flat(array, path, _GRAY)
        valid = ~np.isnan(stored) & ~is_any(stored, self.ignore)
        positive = (stored > self.threshold) != self.invert
        return torch.from_numpy((positive & valid).astype(np.float32)), torch.from_numpy(valid)


def pairs(names: tuple[tuple[str, str], ...], classes: tuple[str, ...], where: str) -> tuple[tuple[int, int], ...]:
    """Indices of the classes in the pairs."""
    for name in (name for pair in names for name in pair):
        if name not in classes:
            raise InputError(where, repr(name), nearest(name, classes), "use one of these names")
    return tuple((classes.index(a), classes.index(b)) for a, b in names)


def _code(color: RGB) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _color_codes(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim != 3 or array.shape[-1] < 3 or array.dtype != np.uint8:
        raise InputError(path, f"{array.dtype} of shape {array.shape}", "colors as uint8 (h, w, 3)",
                         "set encoding = \"ids\" if numbers stand for classes")
    red, green, blue = (array[..., channel].astype(np.int64) for channel in range(3))
    return red << 16 | green << 8 | blue
