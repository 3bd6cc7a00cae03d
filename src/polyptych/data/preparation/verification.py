"""Is a dataset on disk whole? Its layout, its counts, and every file of every split, opened and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from polyptych.data.loading import check
from polyptych.data.preparation.facts import about, offered
from polyptych.datasets._about import LayoutFacts
from polyptych.datasets._base import SPLITS, Dataset, EmptySplit
from polyptych.errors import InputError
from polyptych.tasks._base import CATALOG as TASKS
from polyptych.tasks._base import Task

_SAMPLE = 20  # files of a split that --quick opens


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
        layout: name of the layout, empty if the dataset has only one or it could not be told.
        protocol: id of the protocol, empty if no split can be read.
        tasks: that there are labels for.
        counts: images of our splits, of those that there are.
        labelled: how many of them have a label, by split and task.
        doubts: what is no fault and yet perhaps not meant.
        opened: how many of them were read.
        official: by official split, the number of images here and as published.
        faults: in the order in which they were found.
    """

    layout: str
    protocol: str
    tasks: tuple[str, ...]
    counts: dict[str, int]
    labelled: dict[str, dict[str, int]]
    doubts: list[str]
    opened: int
    official: dict[str, tuple[int, int]]
    faults: list[Fault]


def verify(config: Dataset.Config, tasks: tuple[str, ...] = (), quick: bool = False, subset: bool = False,
           progress: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Open every image and every label of a dataset, and count them.

    A file that keeps a split from being listed is reported for each task that needs it; everything else is still
    opened. A sample that cannot be read is tried task by task, so that no damaged file hides another.

    Args:
        config: its options; ``layout="auto"`` looks.
        tasks: whose labels are checked; none means all that the dataset has.
        quick: open only 20 samples of each split, evenly spaced.
        subset: fewer images than published are no fault.
        progress: called with (samples read, samples in all).

    Raises:
        InputError: there is no dataset at all at its root.
    """
    chosen = offered(config)
    tasks = tasks or tuple(chosen.labels)
    # Built for every split before anything is read, because it is known at once what is missing.
    faults: dict[Fault, None] = {}
    readable = {split: _build(config, split, tasks, faults) for split in SPLITS}
    indices = {split: _chosen(len(dataset), quick) for split, dataset in readable.items() if dataset is not None}
    done, total = 0, sum(map(len, indices.values()))
    for split, dataset in readable.items():
        if dataset is None:
            continue
        checks = build_tasks(config, dataset)
        for index in indices[split]:
            faults.update(dict.fromkeys(_read(dataset, index, checks)))
            done += 1
            progress(done, total)
    built = {split: dataset for split, dataset in readable.items() if dataset is not None}
    counts = {split: len(dataset) for split, dataset in built.items()}
    labelled = {split: {task: dataset.labelled(task) for task in dataset.tasks} for split, dataset in built.items()}
    faults.update(dict.fromkeys(_misnamed(config, list(built.values()))))
    doubts = list(dict.fromkeys(doubt for dataset in built.values() for doubt in dataset.doubts))
    layout, facts = _layout(config, chosen)
    official = _official(counts, facts)
    if not subset:
        faults.update(dict.fromkeys(_missing(config, official)))
    protocol = next((dataset.protocol for dataset in readable.values() if dataset is not None), "")
    return Verification(layout, protocol, tasks, counts, labelled, doubts, done, official, list(faults))


def _misnamed(config: Any, splits: list[Dataset]) -> Iterator[Fault]:
    """Tasks with images that lack a label beside labels that lack an image: a sign that their names do not meet."""
    for task in dict.fromkeys(task for dataset in splits for task in dataset.tasks):
        having = [dataset for dataset in splits if task in dataset.tasks]
        images = sum(map(len, having))
        count = sum(dataset.labelled(task) for dataset in having)
        orphans = having[0].without_image(task)
        if count < images and orphans:
            got = f"{count} of {images} images labelled, labels without an image: {len(orphans)} ('{orphans[0]}')"
            yield Fault(f"labels of '{task}' at {config.root}", got, "one id for an image and its label",
                        "rename these files, or correct the pattern")


def _build(config: Dataset.Config, split: str, tasks: tuple[str, ...], faults: dict[Fault, None]) -> Dataset | None:
    """A split with as many of the tasks as can be built; what is wrong with the others goes to the faults. None where
    there is no such split, too."""
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


def _read(dataset: Dataset, index: int, checks: dict[str, Task]) -> Iterator[Fault]:
    try:
        check(dataset.read(index), checks)
        return
    except InputError as error:
        whole = error
    found = False
    for task in dataset.tasks:
        try:
            alone = dataset.config.build(split=dataset.split, tasks=(task,))
            check(alone.read(index), {task: checks[task]})
        except InputError as error:
            found = True
            yield from _faults(error)
    if not found:
        yield from _faults(whole)


def _chosen(count: int, quick: bool) -> list[int]:
    if not quick or count <= _SAMPLE:
        return list(range(count))
    return sorted({round(i * (count - 1) / (_SAMPLE - 1)) for i in range(_SAMPLE)})


def build_tasks(config: Any, dataset: Dataset) -> dict[str, Task]:
    """The tasks of a dataset, with default options."""
    kinds = config.kinds()
    return {name: TASKS.load(kinds.get(name, name)).Config().build(labels=dataset.labels[name])
            for name in dataset.tasks}


# -- layouts and counts ------------------------------------------------------------------------------------


def _layout(config: Any, found: Dataset) -> tuple[str, LayoutFacts | None]:
    """The layout by name: the one that makes the same dataset as the one that was found."""
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
