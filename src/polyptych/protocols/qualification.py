"""Which protocols the numbers of an evaluation belong to, and why they do not belong to others.

The check is over how numbers are measured: the dataset with its classes, resolution and layout, the test split and its
number of images, the size of the network's input, and for every task the accumulation and the options of the metric.
Training differs between methods and is stated as a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from polyptych.protocols.catalog import PROTOCOLS
from polyptych.protocols.protocol import Measure, Protocol

_PARTS = ("dataset", "classes", "native size", "layout")


@dataclass(frozen=True)
class Qualification:
    """
    Attributes:
        notes: by id of every protocol that the numbers belong to, what still differs or must be known.
        reasons: by id of every other protocol on the same dataset, the first thing that rules it out.
    """

    notes: dict[str, list[str]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def qualify(record: Mapping[str, Any]) -> Qualification:
    """Judge an evaluation by the fields of its ``evaluation/SPLIT.json``; what it lacks rules a protocol out."""
    found = Qualification()
    dataset = str(record.get("protocol", "")).partition("-")[0]
    for name, protocol in PROTOCOLS.items():
        if not protocol.dataset or protocol.dataset.partition("-")[0] != dataset:
            continue
        if reason := next(_obstacles(protocol, record), None):
            found.reasons[name] = reason
        else:
            found.notes[name] = list(_notes(protocol, record))
    return found


def _obstacles(protocol: Protocol, record: Mapping[str, Any]) -> Iterator[str]:
    yield from _other_data(record.get("protocol", ""), protocol.dataset)
    if protocol.obstacle:
        yield protocol.obstacle
    if record.get("split") != "test":
        yield f"{record.get('split')} split instead of test"
    if record.get("images") != protocol.images:
        yield f"{record.get('images')} images instead of {protocol.images}"
    if skipped := record.get("skipped"):
        yield f"{len(skipped)} images skipped"
    yield from _other_input(record, protocol.input)
    common = [task for task in record["tasks"] if task in protocol.tasks]
    if not common:
        yield f"none of its tasks ({', '.join(protocol.tasks)})"
    for task in common:
        measure = protocol.tasks[task]
        yield from (f"{task}: {reason}" for reason in _other_measure(record["tasks"][task], measure))
        if measure.accumulation.startswith("batch"):
            if record.get("batch_size") != protocol.batch_size:
                yield (f"{task}: means over batches of {record.get('batch_size')} instead of {protocol.batch_size} "
                       "images")
            elif record.get("processes", 1) != 1:
                yield f"{task}: batches of {record['processes']} processes instead of one"


def _other_data(found: str, needed: str) -> Iterator[str]:
    parts, patterns = found.split("-"), needed.split("-")
    for name, part, pattern in zip(_PARTS, parts, patterns, strict=False):
        if pattern != "*" and part not in pattern.split("|"):
            yield f"{name} {part} instead of {pattern.replace('|', ' or ')}"
    if len(parts) < len(patterns):
        yield f"data '{found}' instead of '{needed}'"
    if len(parts) > len(patterns):
        yield f"data changed by '{'-'.join(parts[len(patterns):])}'"


def _other_input(record: Mapping[str, Any], needed: tuple[int, int] | str) -> Iterator[str]:
    label, size = record.get("label_size"), record.get("input_size")
    if needed == "native":
        if size is not None and size != label:
            yield f"input {_by(size)} instead of the image's own size"
        return
    actual = size or label  # without a size of its own the network gets the image as it is
    if actual is None:
        yield f"images of several sizes or of an unknown one instead of input {_by(needed)}"
    elif list(actual) != list(needed):
        yield f"input {_by(actual)} instead of {_by(needed)}"


def _other_measure(entry: Mapping[str, Any], measure: Measure) -> Iterator[str]:
    if not any(number.startswith(tuple(measure.metrics)) for number in entry.get("metrics", measure.metrics)):
        return  # not measured in any way, which is no contradiction
    accumulation = entry.get("accumulation")
    if not accumulation:
        yield "accumulation not recorded, evaluate the run again"
    elif accumulation != measure.accumulation:
        yield f"accumulation {accumulation} instead of {measure.accumulation}"
    options = entry.get("options", {})
    for name, value in measure.options.items():
        if options.get(name) != value:
            yield f"{name} {options.get(name)} instead of {value}"


def _notes(protocol: Protocol, record: Mapping[str, Any]) -> Iterator[str]:
    weights = {"best": "weights best on validation images carved out of train",
               "last": "final weights"}.get(record.get("weights", ""), "weights as stated")
    yield f"{weights} here, {protocol.selection} there"
    yield f"trained there: {protocol.training}"
    yield protocol.special
    missing = [task for task in protocol.tasks if task not in record["tasks"]]
    if missing:
        yield f"without {', '.join(missing)}, so that aggregates over tasks cannot be compared"
    for task, measure in protocol.tasks.items():
        lacking = [name for name in measure.numbers if name not in record["tasks"].get(task, {}).get("metrics", {name})]
        if lacking:
            yield f"{task}: {', '.join(lacking)} not measured here"
        elif task in record["tasks"] and measure.images not in (None, record.get("images")):
            yield (f"{task}: {', '.join(measure.numbers)} of {record.get('images')} images does not belong to it; "
                   f"there it is of {measure.images} of them")


def _by(size: Any) -> str:
    return f"{size[0]}x{size[1]}"
