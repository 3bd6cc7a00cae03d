"""Is a dataset on disk complete? Its layout, its counts, and every file of every split, opened and checked."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polyptych.data.loading import check
from polyptych.data.preparation.facts import about, offered
from polyptych.data.preparation.inspection import Inspection, doubts
from polyptych.datasets._about import LayoutFacts
from polyptych.datasets._base import SPLITS, Dataset, EmptySplit
from polyptych.errors import InputError
from polyptych.tasks._base import CATALOG as TASKS
from polyptych.tasks._base import Task
from polyptych.types import Sample

_SAMPLE = 20  # files of a split that --quick opens
_COMPARED = 2000  # names of images among which one like that of a label is looked for


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        where: the file, or the sample and the task.
        got, needs, do: as in :class:`InputError`.
    """

    where: str
    got: str
    needs: str
    do: str = ""


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        layout: name of the layout; empty if the dataset has only one or it could not be determined.
        protocol: id of the protocol; empty if no split can be read.
        tasks: the tasks that there are labels for.
        counts: number of images in each of our splits that exists.
        labelled: how many of them have a label, by split and task.
        doubts: remarks on what is no fault but perhaps not intended.
        inspections: what was found in the samples, by split.
        samples: a few samples of every split, for pictures, with the names of their splits.
        opened: number of samples that were read.
        official: the number of images here and as published, by official split.
        faults: the faults, in the order in which they were found.
    """

    layout: str
    protocol: str
    tasks: tuple[str, ...]
    counts: dict[str, int]
    labelled: dict[str, dict[str, int]]
    doubts: list[str]
    inspections: dict[str, Inspection]
    samples: list[tuple[str, Sample]]
    opened: int
    official: dict[str, tuple[int, int]]
    faults: list[Fault]


def verify(config: Dataset.Config, tasks: tuple[str, ...] = (), quick: bool = False, subset: bool = False,
           kept: int = 0, progress: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Open every image and every label of a dataset, and count them.

    A file that keeps a split from being listed is reported for each task that needs it; everything else is still
    opened. A sample that cannot be read is tried task by task, so that no damaged file hides another.

    Args:
        config: its options; ``layout="auto"`` detects the layout.
        tasks: the tasks whose labels are checked; none means all that the dataset has.
        quick: open only 20 samples of each split, evenly spaced.
        subset: fewer images than published are no fault.
        kept: number of samples of each split to keep for pictures.
        progress: called with (samples read, samples in all).

    Raises:
        InputError: there is no dataset at its root.
    """
    chosen = offered(config)
    tasks = tasks or tuple(chosen.labels)
    # Build every split before anything is read, because this shows at once what is missing.
    faults: dict[Fault, None] = {}
    readable = {split: _build(config, split, tasks, faults) for split in SPLITS}
    indices = {split: _chosen(len(dataset), quick) for split, dataset in readable.items() if dataset is not None}
    done, total = 0, sum(map(len, indices.values()))
    inspections: dict[str, Inspection] = {}
    samples: list[tuple[str, Sample]] = []
    for split, dataset in readable.items():
        if dataset is None:
            continue
        checks = build_tasks(config, dataset)
        kinds = config.kinds()
        inspection = inspections[split] = Inspection({name: kinds.get(name, name) for name in dataset.tasks},
                                                     dataset.labels)
        shown = _chosen_for_pictures(dataset, indices[split], kept)
        alone: dict[str, Dataset] = {}
        for index in indices[split]:
            read = _read(dataset, index, checks, alone)
            if isinstance(read, Sample):
                inspection.add(read)
                samples += [(split, read)] * (index in shown)
            else:
                faults.update(dict.fromkeys(read))
            done += 1
            progress(done, total)
    built = {split: dataset for split, dataset in readable.items() if dataset is not None}
    counts = {split: len(dataset) for split, dataset in built.items()}
    labelled = {split: {task: dataset.labelled(task) for task in dataset.tasks} for split, dataset in built.items()}
    faults.update(dict.fromkeys(_misnamed(config, list(built.values()))))
    said = [*(doubt for dataset in built.values() for doubt in dataset.doubts), *doubts(inspections)]
    layout, facts = _layout(config, chosen)
    official = _official(counts, facts)
    if not subset:
        faults.update(dict.fromkeys(_missing(config, official)))
    protocol = next((dataset.protocol for dataset in readable.values() if dataset is not None), "")
    return Verification(layout, protocol, tasks, counts, labelled, list(dict.fromkeys(said)), inspections, samples,
                        done, official, list(faults))


def merged(faults: Sequence[Fault]) -> list[tuple[Fault, int]]:
    """Merge faults that differ only in their place (and in the number of affected pixels), with their number."""
    groups: dict[tuple[str, str, str], list[Fault]] = {}
    for fault in faults:
        groups.setdefault((re.sub(r" \(\d+ such pixels\)", "", fault.got), fault.needs, fault.do), []).append(fault)
    return [(group[0], len(group)) for group in groups.values()]


def _misnamed(config: Any, splits: list[Dataset]) -> Iterator[Fault]:
    """Tasks with both images without labels and labels without images: a sign that their names do not match."""
    for task in dict.fromkeys(task for dataset in splits for task in dataset.tasks):
        having = [dataset for dataset in splits if task in dataset.tasks]
        images = sum(map(len, having))
        count = sum(dataset.labelled(task) for dataset in having)
        orphans = having[0].without_image(task)
        if count < images and orphans:
            alone = [name for dataset in having for name in dataset.without_label(task)]
            some = alone[::len(alone) // _COMPARED + 1]
            pairs = ((label, near) for label in orphans[:_SAMPLE]
                     for near in difflib.get_close_matches(label, some, n=1, cutoff=0.3))
            label, near = next(pairs, (orphans[0], ""))
            besides = f"; the image '{near}' has none" if near else ""
            got = f"{count} of {images} images labeled, labels without an image: {len(orphans)} ('{label}'{besides})"
            yield Fault(f"labels of '{task}' at {config.root}", got, "one id for an image and its label",
                        "rename these files, or correct the pattern")


def _build(config: Dataset.Config, split: str, tasks: tuple[str, ...], faults: dict[Fault, None]) -> Dataset | None:
    """A split with as many of the tasks as can be built; faults of the others are recorded. None if there is no such
    split."""
    try:
        return config.build(split=split, tasks=tasks)
    except EmptySplit:
        return None
    except InputError as error:
        whole = error
    good = []
    for task in tasks:
        try:
            config.build(split=split, tasks=(task,))
            good.append(task)
        except InputError as error:
            faults.update(dict.fromkeys(_faults(error)))
    try:
        return config.build(split=split, tasks=tuple(good))
    except InputError:
        faults.update(dict.fromkeys(_faults(whole)))
        return None


def _faults(error: InputError) -> Iterator[Fault]:
    if not error.missing:
        yield Fault(error.where, error.got, error.needs, error.do)
    for path in error.missing:
        yield Fault(str(path), "no such file", "every listed file", "get these files again")


def _read(dataset: Dataset, index: int, checks: dict[str, Task], alone: dict[str, Dataset]) -> Sample | list[Fault]:
    """The sample, or its faults.

    Args:
        alone: holds the split with each task alone, which is built when the first sample is faulty.
    """
    try:
        sample = dataset.read(index)
        check(sample, checks)
        return sample
    except InputError as error:
        whole = error
    found: list[Fault] = []
    for task in dataset.tasks:
        try:
            if task not in alone:
                alone[task] = dataset.config.build(split=dataset.split, tasks=(task,))
            check(alone[task].read(index), {task: checks[task]})
        except InputError as error:
            found += _faults(error)
    return found or list(_faults(whole))


def _chosen_for_pictures(dataset: Dataset, indices: list[int], count: int) -> set[int]:
    """Samples of a split to look at: evenly spaced among those with the most labels, if that is known."""
    lacking: dict[int, int] = dict.fromkeys(indices, 0)
    ids = getattr(dataset, "ids", None)
    if ids is not None:
        without = [set(dataset.without_label(task)) for task in dataset.tasks]
        lacking = {index: sum(ids[index] in names for names in without) for index in indices}
    best = min(lacking.values(), default=0)
    first = [index for index in indices if lacking[index] == best]
    if len(first) < count:
        return set(sorted(indices, key=lambda index: lacking[index])[:count])
    return {first[round(place * (len(first) - 1) / max(1, count - 1))] for place in range(count)}


def _chosen(count: int, quick: bool) -> list[int]:
    if not quick or count <= _SAMPLE:
        return list(range(count))
    return sorted({round(i * (count - 1) / (_SAMPLE - 1)) for i in range(_SAMPLE)})


def build_tasks(config: Any, dataset: Dataset, tasks: Sequence[str] | None = None) -> dict[str, Task]:
    """Tasks of a dataset, with default options; without names, those that it was built with."""
    kinds = config.kinds()
    return {name: TASKS.load(kinds.get(name, name)).Config().build(labels=dataset.labels[name])
            for name in (dataset.tasks if tasks is None else tasks)}


# -- layouts and counts ------------------------------------------------------------------------------------


def _layout(config: Any, found: Dataset) -> tuple[str, LayoutFacts | None]:
    """The name of the layout that gives the same dataset as the detected one."""
    stated = about(config.name)
    layouts = {} if stated is None else dict(stated.layouts)
    chosen = getattr(config, "layout", None)
    if chosen is None:
        return "", next(iter(layouts.values()), None)
    if chosen != "auto":
        return chosen, layouts.get(chosen)
    fitting = [name for name in layouts if _is_read_as(dataclasses.replace(config, layout=name), found)]
    return (fitting[0], layouts[fitting[0]]) if fitting else ("", None)


def _is_read_as(config: Dataset.Config, found: Dataset) -> bool:
    try:
        named = config.build(split=found.split, tasks=())
        return (named.protocol, len(named)) == (found.protocol, len(found))
    except InputError:
        return False


def _official(counts: dict[str, int], facts: LayoutFacts | None) -> dict[str, tuple[int, int]]:
    """Our val is carved out of the official training images; our test is the official val where there is one,
    because the labels of such a dataset's official test images are not published."""
    if facts is None or not facts.counts:
        return {}
    tested = "val" if "val" in facts.counts else "test"
    here = {"train": [counts.get(split) for split in ("train", "val")], tested: [counts.get("test")]}
    return {split: (sum(n for n in numbers if n is not None), facts.counts[split])
            for split, numbers in here.items() if split in facts.counts and None not in numbers}


def _missing(config: Any, official: dict[str, tuple[int, int]]) -> Iterator[Fault]:
    for split, (here, published) in official.items():
        if here != published:
            yield Fault(f"official {split} split of {config.root}", f"{here} images", f"{published}, as published",
                        "get the others; --subset if they are fewer on purpose")
