"""Survey of a folder without a description: groups of files that are images or labels of one kind.

Files are grouped by folder, extension and the words in their names; a few of each group are opened. Names of splits in
folder names (``train/``, ``trainannot/``) become the part ``{split}`` of a pattern.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from polyptych.data.arrays import ARRAYS, read_array, variables
from polyptych.data.files import composed, walk
from polyptych.data.pictures import PICTURES, is_lossy, open_picture, read_stored
from polyptych.datasets._folder.patterns import Pattern
from polyptych.datasets._folder.splits import SPELLINGS
from polyptych.errors import InputError

OPENED = 6
"""Number of files of a group that are opened to find out its kind."""
FEW, MANY, EVEN = 16, 256, 0.7
"""Integers are classes if few values occur, or if in maps with many values this share of neighboring pixels is
equal."""
FARTHEST_ID = 1000  # larger numbers are measurements
_SPLIT_NAMES = sorted((name for names in SPELLINGS.values() for name in names), key=len, reverse=True)
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(_SPLIT_NAMES)})(?![a-z])|^({'|'.join(_SPLIT_NAMES)})(?=[a-z])",
                    re.IGNORECASE)


Place = tuple[str, str, str]
"""Folder, word at the end of the names, extension."""
Kind = tuple[str, str, str]
"""Kind, name of the variable, evidence for the kind."""


@dataclass(frozen=True)
class Group:
    """Files of one kind.

    Attributes:
        pattern: pattern that they match.
        files: files by id.
        kind: ``photo``, ``classes``, ``colors``, ``depth``, ``vectors``, ``binary`` or ``gray``.
        key: name of the variable, in files with several.
        found: description of the evidence for the kind.
    """

    pattern: Pattern
    files: dict[str, Path]
    kind: str
    key: str = ""
    found: str = ""


@dataclass
class Survey:
    """The files below a folder.

    Attributes:
        groups: groups of files that could be images or labels.
        texts, tables: other files, which may be lists, names of classes or annotations.
        unknown: number of all other files, by extension.
    """

    groups: list[Group] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)


def survey(root: Path) -> Survey:
    """Survey all files below a folder; a few of each group are opened."""
    found = Survey()
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    names: dict[str, set[str]] = defaultdict(set)
    for below in sorted(map(composed, walk(root))):
        path = PurePosixPath(below)
        suffix = path.suffix.lower()
        if suffix in (*PICTURES, *ARRAYS):
            names[str(path.parent)].add(path.stem)
            grouped[str(path.parent), path.suffix].append(below)
        elif suffix == ".txt":
            found.texts.append(root / below)
        elif suffix in (".json", ".csv", ".xml"):
            found.tables.append(root / below)
        elif below != "dataset.toml":
            found.unknown[suffix or below] += 1
    by_words: dict[Place, list[str]] = defaultdict(list)
    for (folder, suffix), files in grouped.items():
        for below in files:
            by_words[_template(folder), _word(PurePosixPath(below).stem, names[folder]), suffix].append(below)
    kinds: dict[Place, Kind] = {}
    for place, files in by_words.items():
        kinds[place] = _kind([root / below for below in files[::max(1, len(files) // OPENED)][:OPENED]])
    for (folder, word, suffix), (kind, key, said) in _merged(kinds).items():
        if not kind:
            found.unknown[f"{folder}/*{suffix}".removeprefix("./")] += 1
            continue
        pattern = Pattern(f"{folder}/{{id}}{word}{suffix}".removeprefix("./"), "dataset.toml")
        found.groups.append(Group(pattern, _files(pattern, root), kind, key, said))
    found.groups = _photos_of_any_ending(found.groups, root)
    # A wide pattern ({id}.png) also matches files of a narrower one ({id}_mask.png).
    for number, group in enumerate(found.groups):
        others = [other.pattern for other in found.groups if other is not group]
        own = {name: path for name, path in group.files.items() if not any(
            other.explains_better(group.pattern, path.relative_to(root).as_posix()) for other in others)}
        found.groups[number] = replace(group, files=own)
    found.groups = [group for group in found.groups if group.files]
    return found


def _photos_of_any_ending(groups: list[Group], root: Path) -> list[Group]:
    """Merge photos of one folder with several extensions (.jpg, .JPG), unless labels would be among them."""
    stems: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        stems[group.pattern.text.rpartition(".")[0]].append(group)
    joined = []
    for stem, several in stems.items():
        if len(several) > 1 and all(group.kind == "photo" for group in several):
            pattern = Pattern(f"{stem}.*", several[0].pattern.where)
            if files := _files(pattern, root):
                joined.append(replace(several[0], pattern=pattern, files=files))
                continue
        joined.extend(several)
    return joined


def _files(pattern: Pattern, root: Path) -> dict[str, Path]:
    try:
        return pattern.find(root)
    except InputError:  # two files of one name
        return {}


def _template(folder: str) -> str:
    """Replace ``train`` and ``trainannot`` by ``{split}`` and ``{split}annot``, in the last folder that names a
    split."""
    parts = folder.split("/")
    for place in reversed(range(len(parts))):
        if match := _SPLIT.search(parts[place]):
            parts[place] = parts[place][:match.start()] + "{split}" + parts[place][match.end():]
            break
    return "/".join(parts)


def _word(stem: str, others: set[str]) -> str:
    """``_mask`` of ``0001_mask`` if ``0001`` is a file in the same folder: labels next to images."""
    for match in re.finditer(r"[_.-][A-Za-z]\w*$|[_.-][A-Za-z]+$", stem):
        if stem[:match.start()] in others:
            return match[0]
    return ""


def _merged(kinds: Mapping[Place, Kind]) -> dict[Place, Kind]:
    """Merge groups of the same kind in several folders below the same folder (one per day, say)."""
    # Folders that hold images and labels side by side are one group each, below the root.
    beside = len({folder for folder, word, _ in kinds if word}) > 1
    below: dict[tuple[str, str, str, str], list[Place]] = defaultdict(list)
    for place, (kind, *_) in kinds.items():
        folder, word, suffix = place
        top = "." if beside else folder if "{split}" in folder else folder.split("/")[0]
        below[top, word, suffix, kind].append(place)
    merged: dict[Place, Kind] = {}
    for (_, word, suffix, _), group in below.items():
        merged[posixpath.commonpath([folder for folder, *_ in group]) or ".", word, suffix] = kinds[group[0]]
    return merged


# -- one group ---------------------------------------------------------------------------------------------


def _kind(paths: Sequence[Path]) -> Kind:
    """The kind of a group, the name of its variable, and the evidence; the kind is empty if it is neither image nor
    label."""
    key = ""
    arrays: list[np.ndarray] = []
    mode = ""
    for path in paths:
        try:
            if path.suffix.lower() in PICTURES:
                with open_picture(path) as picture:
                    mode = mode or picture.mode
                if is_lossy(path) and mode in ("RGB", "YCbCr", "CMYK"):
                    return "photo", "", f"{mode} with lossy compression, as cameras write"
                arrays.append(read_stored(path))
            else:
                key = key or _variable(path)
                arrays.append(read_array(path, key))
        except InputError:
            continue
    if not arrays or any(array.ndim not in (2, 3) for array in arrays):
        return "", "", ""
    array = arrays[0]
    shown = f"{array.dtype} {' x '.join(map(str, array.shape))}"
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        return _of_three(arrays, mode, key, shown)
    if array.ndim == 3 and array.shape[0] == 3 and array.dtype.kind == "f":
        return _of_three([item.transpose(1, 2, 0) for item in arrays], mode, key, shown)
    arrays = [array.squeeze() for array in arrays]
    if any(array.ndim != 2 or min(array.shape) < 2 for array in arrays):
        return "", "", ""
    values = np.unique(np.concatenate([np.unique(array) for array in arrays]))
    whole = values.dtype.kind in "iub" or bool((np.isfinite(values) & (values == np.round(values))).all())
    if not whole:
        return "depth", key, f"{shown}, from {np.nanmin(values):g} to {np.nanmax(values):g}"
    if array.dtype.itemsize > 1 and values.max() > FARTHEST_ID:
        return "depth", key, f"{shown}, from {values.min():g} to {values.max():g}"
    if len(values) <= 2:
        return "binary", key, f"the numbers {' and '.join(f'{value:g}' for value in values)}"
    even = float(np.mean([(array[:, 1:] == array[:, :-1]).mean() for array in arrays]))
    if mode == "P" or len(values) <= FEW or (len(values) <= MANY and even > EVEN):
        return "classes", key, f"{'palette, ' if mode == 'P' else ''}{len(values)} different numbers"
    if array.dtype.itemsize == 1:
        return "gray", key, f"{len(values)} levels of gray"
    return "depth", key, f"{shown}, from {values.min():g} to {values.max():g}"


def _of_three(arrays: list[np.ndarray], mode: str, key: str, shown: str) -> Kind:
    """Tell apart photos, normals, and colors that stand for classes."""
    stacked = np.concatenate([array[..., :3].reshape(-1, 3) for array in arrays])
    if stacked.dtype.kind == "f":
        vectors = stacked[np.isfinite(stacked).all(-1)]
    elif stacked.dtype.kind == "u":
        vectors = stacked[stacked.any(-1)] * (2 / np.iinfo(stacked.dtype).max) - 1
    else:
        return "", "", ""
    length = np.linalg.norm(vectors, axis=-1)
    near = float((np.abs(length[length > 0.1] - 1) < 0.05).mean()) if (length > 0.1).any() else 0.0
    if near > 0.9:
        mean = vectors[length > 0.1].mean(0)
        return "vectors", key, (f"{near:.0%} of the vectors have length 1; their mean is "
                                f"({', '.join(f'{value:.2f}' for value in mean)})")
    if stacked.dtype != np.uint8:
        return "", "", ""
    colors = len(np.unique(stacked @ np.array([1 << 16, 1 << 8, 1])))
    if colors <= 64 and len(stacked) > 64 * 8:
        return "colors", key, f"{colors} different colors"
    return "photo", key, f"{mode or shown}"


def _variable(path: Path) -> str:
    """The first variable of a file that is a map; empty if the file has a single array, whose name does not matter."""
    names = variables(path)
    if len(names) < 2 and path.suffix.lower() != ".mat":
        return ""
    for name in names:
        try:
            array = read_array(path, name)
        except InputError:
            continue
        if array.ndim in (2, 3) and min(array.shape[:2]) > 8:
            return name
    return names[0] if names else ""
