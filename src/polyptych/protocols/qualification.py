"""Which protocols the numbers of an evaluation belong to, and why they do not belong to others.

The check is over how numbers are measured: the dataset with its classes, resolution and layout, the test split and its
number of images, the size of the network's input, and for every task the accumulation and the options of the metric.
Training differs between methods and is stated as a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from polyptych.evaluation_record import Evaluation, TaskResult
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


def qualify(evaluation: Evaluation) -> Qualification:
    """Judge an evaluation by what it records; what it lacks rules a protocol out."""
    found = Qualification()
    dataset = evaluation.protocol.partition("-")[0]
    for name, protocol in PROTOCOLS.items():
        if not protocol.dataset or protocol.dataset.partition("-")[0] != dataset:
            continue
        if reason := next(_obstacles(protocol, evaluation), None):
            found.reasons[name] = reason
        else:
            found.notes[name] = list(_notes(protocol, evaluation))
    return found


def _obstacles(protocol: Protocol, evaluation: Evaluation) -> Iterator[str]:
    yield from _other_data(evaluation.protocol, protocol.dataset)
    if protocol.obstacle:
        yield protocol.obstacle
    if evaluation.split != "test":
        yield f"{evaluation.split} split instead of test"
    if evaluation.images != protocol.images:
        yield f"{evaluation.images} images instead of {protocol.images}"
    if evaluation.skipped:
        yield f"{len(evaluation.skipped)} images skipped"
    yield from _other_input(evaluation, protocol.input)
    common = [task for task in evaluation.tasks if task in protocol.tasks]
    if not common:
        yield f"none of its tasks ({', '.join(protocol.tasks)})"
    for task in common:
        measure = protocol.tasks[task]
        yield from (f"{task}: {reason}" for reason in _other_measure(evaluation.tasks[task], measure))
        if measure.accumulation.startswith("batch"):
            if evaluation.batch_size != protocol.batch_size:
                yield (f"{task}: means over batches of {evaluation.batch_size} instead of {protocol.batch_size} "
                       "images")
            elif evaluation.processes != 1:
                yield f"{task}: batches of {evaluation.processes} processes instead of one"


def _other_data(found: str, needed: str) -> Iterator[str]:
    parts, patterns = found.split("-"), needed.split("-")
    for name, part, pattern in zip(_PARTS, parts, patterns, strict=False):
        if pattern != "*" and part not in pattern.split("|"):
            yield f"{name} {part} instead of {pattern.replace('|', ' or ')}"
    if len(parts) < len(patterns):
        yield f"data '{found}' instead of '{needed}'"
    if len(parts) > len(patterns):
        yield f"data changed by '{'-'.join(parts[len(patterns):])}'"


def _other_input(evaluation: Evaluation, needed: tuple[int, int] | str) -> Iterator[str]:
    label, size = evaluation.label_size, evaluation.input_size
    if isinstance(needed, str):  # native
        if size is not None and size != label:
            yield f"input {_by(size)} instead of the image's own size"
        return
    actual = size or label  # without a size of its own the network gets the image as it is
    if actual is None:
        yield f"images of several sizes or of an unknown one instead of input {_by(needed)}"
    elif actual != needed:
        yield f"input {_by(actual)} instead of {_by(needed)}"


def _other_measure(result: TaskResult, measure: Measure) -> Iterator[str]:
    if not any(number.startswith(tuple(measure.metrics)) for number in result.metrics):
        return  # not measured in any way, which is no contradiction
    if not result.accumulation:
        yield "accumulation not recorded, evaluate the run again"
    elif result.accumulation != measure.accumulation:
        yield f"accumulation {result.accumulation} instead of {measure.accumulation}"
    for name, value in measure.options.items():
        if result.options.get(name) != value:
            yield f"{name} {result.options.get(name)} instead of {value}"


def _notes(protocol: Protocol, evaluation: Evaluation) -> Iterator[str]:
    weights = {"best": "weights best on validation images carved out of train",
               "last": "final weights"}.get(evaluation.weights, "weights as stated")
    yield f"{weights} here, {protocol.selection} there"
    yield f"trained there: {protocol.training}"
    yield protocol.special
    missing = [task for task in protocol.tasks if task not in evaluation.tasks]
    if missing:
        yield f"without {', '.join(missing)}, so that aggregates over tasks cannot be compared"
    for task, measure in protocol.tasks.items():
        if task not in evaluation.tasks:
            continue
        lacking = [name for name in measure.numbers if name not in evaluation.tasks[task].metrics]
        if lacking:
            yield f"{task}: {', '.join(lacking)} not measured here"
        elif measure.images not in (None, evaluation.images):
            yield (f"{task}: {', '.join(measure.numbers)} of {evaluation.images} images does not belong to it; "
                   f"there it is of {measure.images} of them")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
