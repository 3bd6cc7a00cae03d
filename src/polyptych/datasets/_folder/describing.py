"""A first ``dataset.toml`` for a folder without a description, with comments on what was found and what was guessed.

Guesses are marked as such: the user checks the file, corrects wrong guesses, and names the classes.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from polyptych.data.arrays import read_array
from polyptych.data.files import read_lines
from polyptych.data.pictures import read_rgb
from polyptych.datasets._folder.class_names import ClassTable, read_class_names, read_class_table
from polyptych.datasets._folder.colors import with_colors
from polyptych.datasets._folder.patterns import Pattern
from polyptych.datasets._folder.splits import SPELLINGS, other_names, resolved
from polyptych.datasets._folder.surveying import Group, Survey, survey
from polyptych.errors import InputError

COUNTED = 2000
"""Maximum number of label files per task in which all values are counted; if there are more, evenly spaced ones are."""
SHOWN = 24
"""Maximum number of classes whose shares are written out."""
_PHOTOS = re.compile(r"(?i)image|img|photo|rgb|jpe?g|picture|color|left")
_BOUNDARIES = re.compile(r"(?i)edge|bound|contour")
_SALIENCY = re.compile(r"(?i)salien|foreground|matte")
_DISPARITY = re.compile(r"(?i)dispar")
_NAMES = re.compile(r"(?i)class|label|categor|name")


@dataclass(frozen=True)
class FirstDescription:
    """A description that was written for a folder.

    Attributes:
        text: contents of the file.
        seen: summary for the screen, one line each.
    """

    text: str
    seen: tuple[str, ...]


def describe(root: Path) -> FirstDescription:
    """Write a first description of a folder.

    Raises:
        InputError: there are no images below the folder, or none of them has a label.
    """
    found = survey(root)
    photos = sorted((group for group in found.groups if group.kind == "photo"), key=_likely_photos)
    # Scans, X-rays and grayscale photos look like gray maps.
    photos = photos or sorted((group for group in found.groups if group.kind == "gray"), key=_likely_photos)[:1]
    if not photos:
        deep = next((group for group in found.groups if group.kind == "depth"), None)
        raise InputError(root, f"no photos ({_counted(found)})", "a folder with images and their labels",
                         f"convert {deep.pattern.text} to 8 bits if these are the photos" if deep else
                         "name the folder that holds both")
    images, *other_photos = photos
    images, labels = _joined(images, [group for group in found.groups if group not in photos], root)
    tables = list(_tasks(images, labels, found, root))
    if not tables:
        raise InputError(root, f"{len(images.files)} images ({images.pattern.text}) without labels "
                         f"({_counted(found)})", "labels whose names contain those of the images",
                         "see \"Your own data\" in the documentation, and write dataset.toml by hand")
    splits, of_splits = _splits(images, found, root)
    unused = [f"# Not used: {group.pattern.text} ({len(group.files)} files, {group.kind}: {group.found})"
              for group in (*other_photos, *labels) if not any(group.pattern.text in text for text, _ in tables)]
    unused += [f"# Not looked into: {path.relative_to(root).as_posix()} (annotations? See `polyptych data convert "
               "--help`)" for path in found.tables[:5] if not any(path.name in text for text, _ in tables)]
    text = "\n".join([
        "# A first description, written by `polyptych data describe`. Check the lines with \"guess\".",
        "# Every key is explained in docs/own-data.md and by `polyptych data info folder`.",
        f"name = {_quoted(root.resolve().name)}",
        f"image = {_quoted(images.pattern.text)}  # {len(images.files)} images ({images.found})",
        *([f"image_key = {_quoted(images.key)}"] if images.key else []), *unused, "", splits, "",
        "\n\n".join(text for text, _ in tables), ""])
    return FirstDescription(text, (f"image: {images.pattern.text}, {len(images.files)} images", of_splits,
                                   *(line for _, line in tables)))


def _likely_photos(group: Group) -> tuple[bool, int]:
    return not _PHOTOS.search(group.pattern.text), -len(group.files)


def _counted(found: Survey) -> str:
    groups = [f"{group.pattern.text}: {len(group.files)} files, {group.kind}" for group in found.groups]
    return "; ".join([*groups, *(f"{count} of {name}" for name, count in found.unknown.most_common(3))]) or "no file"


# -- names -------------------------------------------------------------------------------------------------


def _joined(images: Group, labels: list[Group], root: Path) -> tuple[Group, list[Group]]:
    """The groups, with patterns whose ids match: ``{id}_rgb.png`` and ``{id}_label.png``."""
    joined: list[Group] = []
    for group in labels:
        if not images.files.keys() & group.files.keys() and (parts := _constant_parts(images, group)):
            of_image, of_label = parts
            wider = _around(images, of_image, root)
            group = _around(group, of_label, root)
            if not joined or wider.pattern == images.pattern:
                images = wider
        joined.append(group)
    # {split}/{id}.png also fits train_labels/0001_L.png.
    own = {name: path for name, path in images.files.items() if not any(
        group.pattern.explains_better(images.pattern, path.relative_to(root).as_posix()) for group in joined)}
    return replace(images, files=own), joined


def _constant_parts(images: Group, labels: Group) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """The text before and after the shared part in the names of images and of labels; None if they share none."""
    votes: Counter[tuple[tuple[str, str], tuple[str, str]]] = Counter()
    stems = [name.rpartition("/")[2] for name in list(labels.files)[:20]]
    runs = {run for stem in stems for run in _token_runs(stem)}
    having: dict[str, str] = {}
    for name in images.files:  # of many, each is cut up once, not once for each label
        other = name.rpartition("/")[2]
        for run in runs.intersection(_token_runs(other)):
            having.setdefault(run, other)
    for stem in stems:
        shared = max((run for run in _token_runs(stem) if run in having), key=len, default="")
        if any(character.isdigit() for character in shared):
            votes[_outside(having[shared], shared), _outside(stem, shared)] += 1
    if not votes:
        return None
    best, count = votes.most_common(1)[0]
    return best if count >= 0.6 * sum(votes.values()) else None


def _token_runs(name: str) -> Iterator[str]:
    """The runs of whole words and numbers in a name."""
    pieces = re.findall(r"[A-Za-z]+|\d+|[^A-Za-z\d]+", name)
    for start in range(len(pieces)):
        for end in range(start + 1, len(pieces) + 1):
            run = "".join(pieces[start:end])
            if run == run.strip("_.-"):
                yield run


def _outside(name: str, shared: str) -> tuple[str, str]:
    before, _, after = name.partition(shared)
    return before, after


def _around(group: Group, parts: tuple[str, str], root: Path) -> Group:
    before, after = parts
    pattern = Pattern(group.pattern.text.replace("{id}", f"{before}{{id}}{after}"), group.pattern.where)
    try:
        return replace(group, pattern=pattern, files=pattern.find(root))
    except InputError:
        return group


# -- splits ------------------------------------------------------------------------------------------------


def _splits(images: Group, found: Survey, root: Path) -> tuple[str, str]:
    """The lines about splits, and a summary for the screen."""
    if "split" in images.pattern.parts:
        counts = Counter(name.partition("/")[0] for name in images.files)
        shown = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        return f"# Splits: the folders that {{split}} stands for ({shown}).", f"splits: folders, {shown}"
    lists = _lists(images, found.texts, root)
    if lists:
        lines = ["[splits]"]
        lines += [f"{split} = {_quoted(name)}  # {count} images" for split, (name, count) in lists.items()]
        if "val" not in lists:
            lines.append("val = 0.1  # guess: share of the training images")
        if "test" not in lists:
            lines.append("test = 0.0  # guess: there is no list of test images")
        return "\n".join(lines), f"splits: {', '.join(f'{name} ({n})' for name, n in lists.values())}"
    text = ("[splits]\n# guess: drawn by a hash of the names. Frames of one video are better split by folders or "
            "lists.\nval = 0.1\ntest = 0.2")
    return text, "splits: a tenth for validation, a fifth for testing (guess)"


def _lists(images: Group, texts: Sequence[Path], root: Path) -> dict[str, tuple[str, int]]:
    """Text files whose lines name images, by the split in the name of the file."""
    names = other_names(images.files, root)
    lists: dict[str, tuple[str, int]] = {}
    for path in texts:
        split = next((split for split, spellings in SPELLINGS.items() if any(
            re.search(rf"(?i)(?<![a-z]){word}(?![a-z])", path.stem) for word in spellings)), "")
        if not split or split in lists:
            continue
        try:
            lines = read_lines(path)
        except InputError:
            continue
        if lines and all(resolved(line, names) for line in lines):
            lists[split] = path.relative_to(root).as_posix(), len(lines)
    return lists if "train" in lists or "test" in lists else {}


# -- tasks -------------------------------------------------------------------------------------------------


def _tasks(images: Group, labels: Sequence[Group], found: Survey, root: Path) -> Iterator[tuple[str, str]]:
    """A table for every group of labels, and a summary for the screen."""
    taken: set[str] = set()
    for group in labels:
        meeting = [name for name in group.files if name in images.files]
        place = group.pattern.text
        if not meeting or (group.kind == "gray" and not (_SALIENCY.search(place) or _BOUNDARIES.search(place))):
            continue
        kind, lines, said = _table({name: group.files[name] for name in meeting}, group, found, root)
        name = kind if kind not in taken else _free(group.pattern.text, taken)
        taken.add(name)
        share = f"{len(meeting)} of {len(images.files)} images"
        extra = len(group.files) - len(meeting)
        lost = f"; {extra} labels without an image" if extra else ""
        yield "\n".join([
            f"[tasks.{name}]", *([f"task = {_quoted(kind)}"] if name != kind else []),
            f"files = {_quoted(group.pattern.text)}  # labels of {share}{lost} ({group.found})",
            *([f"key = {_quoted(group.key)}  # name of the variable"] if group.key else []), *lines,
        ]), f"{name}: {group.pattern.text}, labels of {share}{lost}; {said}"


def _free(pattern: str, taken: set[str]) -> str:
    """A name for a second task of the same kind, taken from the folder of its labels."""
    word = re.sub(r"\W+", "_", re.sub(r"\{\w+\}", "", pattern.rpartition("/")[0] or pattern)).strip("_").lower()
    word = word if word[:1].isalpha() else "labels"
    return next(name for number in range(1, len(taken) + 2)
                if (name := word if number == 1 else f"{word}_{number}") not in taken)


def _table(files: Mapping[str, Path], group: Group, found: Survey, root: Path) -> tuple[str, list[str], str]:
    """Kind of the task, the lines of its table, and a summary for the screen."""
    place = group.pattern.text
    if group.kind == "vectors":
        return "normals", _axes(files, group), "axes are a guess"
    if group.kind == "depth":
        return _depth(files, group)
    if group.kind in ("binary", "gray", "classes") and (_BOUNDARIES.search(place) or _SALIENCY.search(place)):
        return _yes_or_no(files, group)
    if group.kind == "colors":
        return _colors(files, found, root)
    return _ids(files, group, found, root)


def _axes(files: Mapping[str, Path], group: Group) -> list[str]:
    """Guess the axes. Most visible surfaces face the camera, so the channel along the optical axis has the same sign
    nearly everywhere."""
    vectors = np.concatenate([_vectors(read_array(path, group.key)) for path in _spaced(files, 20)])
    first, _, last = vectors.mean(0) if len(vectors) else (0.0, 0.0, 1.0)
    if abs(first) > 0.3 and abs(first) > 2 * abs(last):
        turned = first > 0
        axes = json.dumps(["z", "-y", "-x"] if turned else ["z", "y", "x"])
        return [f"axes = {axes}  # guess: channels in the order BGR, stored x right, y "
                f"{'up, z towards the camera' if turned else 'down, z forward'}"]
    if last < 0:
        return ["axes = [\"x\", \"y\", \"z\"]  # guess: stored x right, y down, z forward",
                "# if stored y up: axes = [\"x\", \"-y\", \"z\"]; a floor points up in the pictures if it is right"]
    return ["axes = [\"x\", \"-y\", \"-z\"]  # guess: stored x right, y up, z towards the camera",
            "# if stored y down: axes = [\"x\", \"y\", \"-z\"]; a floor points up in the pictures if it is right"]


def _vectors(array: np.ndarray) -> np.ndarray:
    """A sample of the vectors of a file (n 3), without those that mean no label."""
    array = array.transpose(1, 2, 0) if array.shape[0] == 3 and array.shape[-1] != 3 else array
    some = array[::4, ::4, :3].reshape(-1, 3)
    some = some[np.isfinite(some).all(-1) & some.any(-1)]
    return some * (2 / np.iinfo(some.dtype).max) - 1 if some.dtype.kind == "u" else some


def _yes_or_no(files: Mapping[str, Path], group: Group) -> tuple[str, list[str], str]:
    values = np.unique(np.concatenate([np.unique(read_array(path, group.key)) for path in _spaced(files, 40)])).tolist()
    threshold = "127.5" if group.kind == "gray" else "0.5"
    lines = [f"threshold = {threshold}  # guess: stored numbers above it are positive"]
    if len(values) == 3 and values[:2] == [0, 1]:
        lines.append(f"ignore = [{values[2]:g}]  # guess: the number that means no label")
    kind = "boundaries" if _BOUNDARIES.search(group.pattern.text) else "saliency"
    return kind, lines, f"{group.found} (kind is a guess, by the name)"


def _depth(files: Mapping[str, Path], group: Group) -> tuple[str, list[str], str]:
    values = np.concatenate([_sampled(read_array(path, group.key)) for path in _spaced(files, 40)])
    invalid = [0, 65535] if bool((values == 65535).any()) else [0]
    values = values[~np.isin(values, invalid)]
    values = values[np.isfinite(values) & (values > 0)]
    middle = float(np.median(values)) if len(values) else 0.0
    largest = float(values.max()) if len(values) else 0.0
    nothing = f"invalid = {invalid}  # guess: stored numbers that mean no measurement"
    seen = f"# stored numbers: median {middle:g}, maximum {largest:g}"
    if _DISPARITY.search(group.pattern.text):
        return "inverse_depth", [seen, "unit = \"px\"  # guess, by the folder's name: disparities in pixels",
                                 "# for depth in meters: [tasks.depth] with unit = \"disparity\", baseline and focal",
                                 nothing], "disparities (guess, by the name)"
    if middle > 100:
        return "depth", [seen, "unit = \"mm\"  # guess: the median would be "
                         f"{middle / 1000:.1f} m", nothing], "unit mm (guess)"
    return "depth", [seen, f"unit = \"m\"  # guess: the median would be {middle:.1f} m", nothing], "unit m (guess)"


def _colors(files: Mapping[str, Path], survey: Survey, root: Path) -> tuple[str, list[str], str]:
    counts: Counter[int] = Counter()
    for path in _spaced(files, COUNTED):
        codes, numbers = np.unique(read_rgb(path).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1]), return_counts=True)
        counts.update(dict(zip(codes.tolist(), numbers.tolist(), strict=True)))
    found = sorted(counts)
    shares = _shares(counts, "#{:06x}".format)
    colors = [[code >> 16, code >> 8 & 255, code & 255] for code in found]
    if name := _color_file(survey, colors, root):
        return "semseg", [f"# colors and their shares: {shares}", "encoding = \"colors\"",
                          f"colors = {_quoted(name)}  # with the names of the classes",
                          "ignore_colors = []  # colors that mean no label",
                          ], f"{len(found)} colors, names from {name}"
    return "semseg", [f"# colors and their shares: {shares}", "encoding = \"colors\"",
                      f"classes = {_listed(f'class {code:06x}' for code in found)}  # guess: name them",
                      f"colors = {json.dumps(colors)}",
                      "ignore_colors = []  # move a color here, from both lists above, if it means no label",
                      ], f"{len(found)} colors, to be named"


def _ids(files: Mapping[str, Path], group: Group, found: Survey, root: Path) -> tuple[str, list[str], str]:
    looked = _spaced(files, COUNTED)
    counts: Counter[int] = Counter()
    for path in looked:
        stored, numbers = np.unique(read_array(path, group.key), return_counts=True)
        counts.update(dict(zip(map(int, stored.tolist()), numbers.tolist(), strict=True)))
    ignored = [255] if 255 in counts and (len(counts) > 2 or 0 not in counts) else []
    ids = [value for value in sorted(counts) if value not in ignored]
    where = "" if len(looked) == len(files) else f" in {len(looked)} of {len(files)} files"
    shares = _shares(counts, str)
    lines = [f"# ids and their shares{where}: {shares}"]
    named = _class_file(found, ids, root)
    dense = ids == list(range(len(ids)))
    if table := _class_table(found, ids, root):
        lines.append(f"classes = {_quoted(table)}  # names and ids")
        said = f"{len(ids)} ids ({ids[0]} to {ids[-1]}), names from {table}"
    elif named:
        name, number = named
        lines.append(f"classes = {_quoted(name)}  # {number} names; guess: in the order of the ids")
        said = f"ids {ids[0]} to {ids[-1]}, names from {name}"
        if ids[0] == 1 and number == ids[-1]:
            lines.append(f"ids = {json.dumps(list(range(1, number + 1)))}  # guess: ids count from 1")
            ignored = [0, *ignored]
    else:
        two = len(ids) == 2 and ids[0] == 0
        names = ("background", "foreground") if two else tuple(f"class {value}" for value in ids)
        lines.append(f"classes = {_listed(names)}  # guess: name them")
        if not dense:
            lines.append(f"ids = {json.dumps(ids)}")
        said = f"{len(ids)} ids ({ids[0]} to {ids[-1]}), to be named"
    lines.append(f"ignore = {json.dumps(ignored)}  # " + ("guess: " if ignored else "") + "numbers that mean no label")
    return "semseg", lines, said


def _shares(counts: Counter[int], spell: Callable[[int], str]) -> str:
    total = sum(counts.values())
    if len(counts) <= SHOWN:
        return ", ".join(f"{spell(value)} ({counts[value] / total:.1%})" for value in sorted(counts))
    most = counts.most_common(SHOWN)
    rest = 1 - sum(count for _, count in most) / total
    return (", ".join(f"{spell(value)} ({count / total:.1%})" for value, count in most)
            + f", {len(counts) - SHOWN} others ({rest:.1%})")


def _class_file(found: Survey, ids: Sequence[int], root: Path) -> tuple[str, int] | None:
    """A file with as many names as there are ids, or more if rare classes may be missing from the sample."""
    candidates = [path for path in (*found.texts, *(path for path in found.tables if path.suffix.lower() == ".json"),
                                    *sorted(root.glob("*.mat"))) if _NAMES.search(path.stem)]
    for path in candidates:
        try:
            names = read_class_names(path)
        except InputError:
            continue
        if max(ids) <= len(names) <= 2 * max(ids) + 2 and len(set(names)) == len(names):
            return path.relative_to(root).as_posix(), len(names)
    return None


def _tables_of_classes(found: Survey) -> Iterator[tuple[Path, ClassTable]]:
    for path in found.tables:
        if path.suffix.lower() == ".csv":
            with suppress(InputError):
                yield path, read_class_table(path)


def _class_table(found: Survey, ids: Sequence[int], root: Path) -> str:
    """A CSV table with the names of all ids."""
    return next((path.relative_to(root).as_posix() for path, table in _tables_of_classes(found)
                 if set(ids) <= set(table.ids) and len(set(table.names)) == len(table.names)), "")


def _color_file(found: Survey, colors: Sequence[list[int]], root: Path) -> str:
    """A CSV table, or a text like CamVid's, with the names of all colors."""
    needed = {tuple(color) for color in colors}
    for path, table in _tables_of_classes(found):
        if needed <= set(table.colors):
            return path.relative_to(root).as_posix()
    for path in found.texts:
        with suppress(InputError):
            read = with_colors({"colors": path.relative_to(root).as_posix()}, root, "")
            if "classes" in read and needed <= set(map(tuple, read["colors"])):
                return path.relative_to(root).as_posix()
    return ""


def _spaced(files: Mapping[str, Path], most: int) -> list[Path]:
    return list(files.values())[::math.ceil(len(files) / most)]


def _sampled(array: np.ndarray) -> np.ndarray:
    return array.ravel()[::max(1, array.size // 1000)].astype(np.float64)


def _listed(names: Iterator[str] | Sequence[str]) -> str:
    return json.dumps(list(names), ensure_ascii=False)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
