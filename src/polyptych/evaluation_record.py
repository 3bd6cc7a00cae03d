"""The result of an evaluation: one typed record, written to and read from ``evaluation/SPLIT.json``.

Evaluation fills it in, protocols check it, comparisons and searches compute with it, reports show it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec

from polyptych.errors import InputError
from polyptych.metrics._accumulation import metric_name
from polyptych.record import encode, read_json, write_json, write_whole

NAN = math.nan
BESIDE = ("image_ids", "resampled")  # stored in files of their own, not in SPLIT.json


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Metrics of one task. The name of a number says how it was accumulated (``RMSE_per_image``); a plain name means
    over all pixels of the split. This holds here and in the file.

    Attributes:
        headline: the metric that stands for the task.
        trivial: what the best constant prediction scores on the same images.
        accumulation: see :data:`polyptych.metrics._accumulation.Accumulation`; empty, like ``ignores`` and
            ``options``, in files of older versions.
        ignores: description of the pixels that do not count.
        options: options of the metric that change its values.
        skill: the headline on a scale from the trivial prediction (0) to a perfect one (1); NaN if it has none.
        classes: the headline by class, if the task has classes.
    """

    headline: str = ""
    metrics: dict[str, float]
    trivial: dict[str, float] = field(default_factory=dict)
    accumulation: str = ""
    ignores: str = ""
    options: dict[str, bool | float | str] = field(default_factory=dict)
    higher_is_better: dict[str, bool] = field(default_factory=dict)
    unit: str = ""
    note: str = ""
    skill: float = NAN
    classes: dict[str, float] = field(default_factory=dict)

    @property
    def headline_value(self) -> float:
        return self.metrics[self.headline]

    @property
    def own_metrics(self) -> dict[str, float]:
        """The metrics under the task's own names, without the accumulation, as in the training log."""
        return {metric_name(name, self.accumulation): value for name, value in self.metrics.items()}

    @property
    def own_headline(self) -> str:
        return metric_name(self.headline, self.accumulation)

    @property
    def rule(self) -> str:
        """How the numbers were computed: accumulation, options of the metric, ignored pixels."""
        options = [f"{name.replace('_', ' ')} {value}" for name, value in self.options.items() if value is not False]
        parts = [f"accumulation {self.accumulation}", *options, f"ignoring {self.ignores}" if self.ignores else ""]
        return ", ".join(part for part in parts if part) if self.accumulation else ""

    @property
    def remark(self) -> str:
        """What a reader must know to interpret the numbers."""
        return "; ".join(part for part in (self.note, self.rule) if part)


@dataclass(frozen=True)
class ImageList:
    """How many images were measured, and the SHA-256 of their sorted ids, one per line."""

    count: int
    sha256: str

    @staticmethod
    def of(ids: Sequence[str]) -> ImageList:
        return ImageList(len(ids), hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest())


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics on one split. Files of older versions, or of other programs, may hold nothing but the tasks.

    Attributes:
        protocol: of the dataset, ``NAME-CLASSES-SIZE-LAYOUT``.
        images: how many the split has.
        skipped: errors of the images that could not be read.
        label_size: native height and width of the labels; None if images differ.
        processes: how many processes shared the images.
        seconds: duration of the evaluation.
        scores: combined scores that the dataset defines over the metrics of all tasks, by name.
        skill: mean over the tasks; NaN if a task has none.
        weights: ``last`` or ``best``.
        protocols: by id, a note on each published protocol that the numbers follow.
        other_protocols: by id, why they do not follow the other protocols of the dataset.
        image_ids: the ids of all images; not in ``SPLIT.json`` but beside it, in ``SPLIT.images.txt``.
        resampled: headlines by task under random weightings of the images
            (:meth:`polyptych.metrics._resampling.Resampling.record`); also in a file of its own,
            ``resampled/SPLIT.json``.
    """

    protocol: str = ""
    split: str = ""
    images: int | None = None
    skipped: list[str] = field(default_factory=list)
    input_size: tuple[int, int] | None = None
    label_size: tuple[int, int] | None = None
    batch_size: int | None = None
    processes: int = 1
    seed: int | None = None
    seconds: float | None = None
    tasks: dict[str, TaskResult]
    scores: dict[str, float] = field(default_factory=dict)
    skill: float = NAN
    step: int | None = None
    weights: str = ""
    image_list: ImageList | None = None
    protocols: dict[str, list[str]] = field(default_factory=dict)
    other_protocols: dict[str, str] = field(default_factory=dict)
    image_ids: list[str] = field(default_factory=list, repr=False, compare=False)
    resampled: dict[str, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def known_skill(self) -> tuple[int, float]:
        """How many tasks have a finite skill, and its mean over them (NaN for none): a split need not have labels of
        every task. Compared in this order, a network that diverged on a task never beats one that did not."""
        finite = [task.skill for task in self.tasks.values() if math.isfinite(task.skill)]
        return len(finite), sum(finite) / len(finite) if finite else NAN

    def require_numbers(self, folder: Path) -> None:
        """Refuse an evaluation without a single number: its table of dashes would look like a success.

        Raises:
            InputError: no image had a label that a prediction could be measured with.
        """
        if not any(math.isfinite(task.headline_value) for task in self.tasks.values()):
            raise InputError(folder / "evaluation" / f"{self.split}.json",
                             f"no result for {', '.join(self.tasks)} from {self.images} images",
                             "labels to measure predictions against",
                             "check the paths of the labels and the splits")

    def write(self, folder: Path) -> Path:
        """Write ``evaluation/SPLIT.json`` and the files beside it into a run's folder.

        Returns:
            The path of the JSON file.
        """
        place = folder / "evaluation"
        place.mkdir(exist_ok=True)
        ids = "".join(f"{name}\n" for name in self.image_ids)
        write_whole(place / f"{self.split}.images.txt", ids.encode())
        if self.resampled is not None:
            (place / "resampled").mkdir(exist_ok=True)
            write_json(place / "resampled" / f"{self.split}.json", self.resampled)
        path = place / f"{self.split}.json"
        write_json(path, {f.name: encode(getattr(self, f.name)) for f in fields(self) if f.name not in BESIDE})
        return path

    @staticmethod
    def of_run(folder: Path, split: str) -> Evaluation:
        """Read the evaluation of one split of a run.

        Raises:
            InputError: the file is missing, is not JSON, or is not an evaluation; the message names file and field.
        """
        path = folder / "evaluation" / f"{split}.json"
        return Evaluation.read(read_json(path), path)

    @staticmethod
    def read(data: Any, where: str | Path = "evaluation") -> Evaluation:
        """Parse the contents of an evaluation file; null becomes NaN where a number belongs.

        Raises:
            InputError: a field is missing or of the wrong type; the message names the field.
        """
        try:
            return msgspec.convert(_with_nan(data), Evaluation)
        except msgspec.ValidationError as error:
            raise InputError(where, f"a field that does not fit ({error})",
                             "an evaluation written by polyptych", "run `polyptych evaluate` again") from None


def _with_nan(data: Any) -> Any:
    """Replace null by NaN where a number belongs: in the tasks, and as mean skill."""
    def numbers(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: numbers(item) for key, item in value.items()}
        return NAN if value is None else value

    if not isinstance(data, Mapping):
        return data
    return {key: numbers(value) if key in ("tasks", "skill") else value for key, value in data.items()}
