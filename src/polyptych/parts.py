"""Parts for your own program, by name: a network, a balancer, the losses of a step, a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyptych.backbones._base import CATALOG as BACKBONES
from polyptych.backbones._base import Backbone
from polyptych.balancers._base import Balancer
from polyptych.data.transforms import Augment, augment, collate, resize_image
from polyptych.datasets._base import Dataset
from polyptych.decoders._base import Decoder
from polyptych.encoders._base import Encoder
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.record import chosen
from polyptych.task_parts import TaskPart, as_parts
from polyptych.tasks._base import CATALOG as TASKS
from polyptych.tasks._base import Task
from polyptych.types import Batch, Output, Sample

_PARTS = {"backbone": Backbone.Config, "encoder": Encoder.Config, "decoder": Decoder.Config}


def network(backbone: str | Backbone.Config, tasks: Mapping[str, int | TaskPart], *,
            encoder: str | Encoder.Config = "shared", decoder: str | Decoder.Config = "heads",
            pretrained: bool = False, weights: Path | str | None = None, **options: Any) -> Network:
    """A network that predicts several tasks: ``network("resnet50", {"semseg": 21, "depth": 1}, encoder="mtan")``.

    It takes RGB images (b 3 h w) of any size, uint8 or float in [0, 1], normalizes them itself, and returns an
    :class:`polyptych.types.Output`: raw predictions, ``output[task]`` (b channels h w) of the size of the image.

    Args:
        backbone: any timm model, or a name in ``polyptych list backbones``.
        tasks: by name, how many channels each predicts, or the task itself (:func:`polyptych.task`).
        encoder, decoder: names in ``polyptych list``.
        pretrained: start the backbone from timm's weights.
        weights: start the backbone from a file.
        options: options of the command line, with _ in place of . and -: ``--backbone.output-stride`` becomes
            ``backbone_output_stride``, ``--decoder.head`` becomes ``decoder_head``.

    Raises:
        InputError: a name, option or weight file that does not exist, or parts that do not fit together.
    """
    given: dict[str, dict[str, Any]] = {slot: {} for slot in _PARTS}
    for name, value in options.items():
        slot, _, option = name.partition("_")
        if slot not in given or not option:
            raise InputError("network", f"an option '{name}'",
                             "options that begin with backbone_, encoder_ or decoder_",
                             "see `polyptych train rooms --help`")
        given[slot][option] = value
    if isinstance(backbone, str) and backbone not in BACKBONES.names():
        given["backbone"].setdefault("model", backbone)
        backbone = "timm"
    if pretrained:
        given["backbone"]["pretrained"] = True
    if weights is not None:
        given["backbone"]["weights"] = Path(weights) if not str(weights).startswith("package:") else weights
    if not tasks:
        raise InputError("network: tasks", "none", "at least one", 'for instance {"depth": 1}')
    channels = {name: _channels(name, wanted) for name, wanted in tasks.items()}
    whole = frozenset(name for name, wanted in tasks.items() if not _dense(name, wanted))
    configs = {slot: chosen(kind, choice, given[slot], slot) for (slot, kind), choice in
               zip(_PARTS.items(), (backbone, encoder, decoder), strict=True)}
    return Network.build(configs["backbone"], configs["encoder"], configs["decoder"], channels, whole)


def _channels(name: str, wanted: object) -> int:
    if isinstance(wanted, TaskPart):
        return wanted.channels
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise InputError(f"network: task '{name}'", repr(wanted), "how many channels it predicts, 1 or more, or what "
                         "polyptych.task returns", f"map '{name}' to a number of channels")
    return wanted


def _dense(name: str, wanted: int | TaskPart) -> bool:
    """Whether every pixel has a prediction of its own. A number of channels does not tell; the name of a task may."""
    if isinstance(wanted, TaskPart):
        return wanted.task.dense
    return name not in TASKS.names() or TASKS.load(name).dense


def balancer(name: str | Balancer.Config, tasks: Mapping[str, TaskPart | float], **options: Any) -> Balancer:
    """A balancer, which weights the tasks. It replaces ``loss.backward()``: ``balancer.backward(losses, network)``.

    Args:
        name: a name in ``polyptych list balancers``.
        tasks: by name, the task (its customary loss weight is used) or the loss weight itself.
        options: options of the command line: ``--balancer.every 4`` becomes ``every=4``.

    Raises:
        InputError: no such balancer or option, or a wrong value.
    """
    config: Balancer.Config = chosen(Balancer.Config, name, options, "balancer")
    parts = {task: part for task, part in tasks.items() if isinstance(part, TaskPart)}
    weights = {task: float(part.standard_weight if isinstance(part, TaskPart) else part) for task, part in
               tasks.items()}
    return config.build(standard_weights=weights,
                        likelihoods={task: part.task.likelihood for task, part in parts.items()} or None)


def losses(tasks: Mapping[str, TaskPart], output: Output, target: Mapping[str, Tensor],
           valid: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The mean loss of each task over its labeled pixels, of final and auxiliary predictions together (deep
    supervision). Every loss is a scalar, exactly 0 for a task without labels. With several processes, each takes the
    mean over its own pixels.

    Args:
        tasks: tasks by their names in the output.
        target: labels by task; tasks without an entry are left out.
        valid: by task, a mask of the pixels with a valid label; by default only the task's ``ignored`` value marks the
            others.
    """
    found = {}
    for name, part in tasks.items():
        if name in target:
            predictions = [(output.final[name], 1.0), *((extra.prediction[name], extra.weight)
                           for extra in output.auxiliary if name in extra.prediction)]
            found[name] = part.losses(predictions, target[name], (valid or {}).get(name))
    return found


class SampleDataset(torch.utils.data.Dataset[Sample]):
    """A dataset of Polyptych for any DataLoader: ``DataLoader(data, batch_size=8, collate_fn=data.collate)``.

    A sample has ``image``, uint8 (3 h w), and dictionaries ``target`` and ``valid`` by task; :meth:`collate` stacks
    several into a :class:`polyptych.types.Batch`. Augmentation draws from torch's random numbers, so the DataLoader's
    seed determines it.

    Attributes:
        tasks: the tasks whose labels are read, by name, as :func:`polyptych.network` and :func:`polyptych.losses` take
            them.
    """

    dataset: Dataset
    tasks: dict[str, TaskPart]
    size: tuple[int, int] | None
    how: Augment | None

    def __init__(self, dataset: Dataset, tasks: dict[str, Task], size: tuple[int, int] | None, how: Augment | None):
        self.dataset, self.size, self.how = dataset, size, how
        self.tasks, self._tasks = as_parts(tasks), tasks

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a loop over the dataset
        sample = self.dataset.read(index)
        if self.how is None:
            return resize_image(sample, self.size)
        height, width = sample.image.shape[-2:]
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return augment(sample, self._tasks, self.size or (height, width), generator, self.how)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """A batch; if sizes differ, smaller samples are padded with unlabeled pixels."""
        return collate(samples, self._tasks)


def dataset(name: str | Dataset.Config, split: str, tasks: Sequence[str], *, size: tuple[int, int] | None = None,
            augment: Augment | None = None, **options: Any) -> SampleDataset:
    """One split of a dataset, for your own program.

    Args:
        name: a name in ``polyptych list datasets``.
        split: ``train``, ``val`` or ``test``.
        tasks: names of tasks. A task with a name other than that of its kind is written ``name:kind``, unless the
            dataset knows its kind.
        size: height and width of the images; labels have this size too if ``augment`` is given, and otherwise keep
            their own.
        augment: augmentation of training samples; none by default.
        options: options of the command line: ``--dataset.root data/nyuv2`` becomes ``root="data/nyuv2"``.

    Raises:
        InputError: no such dataset, split, task or option, or files that are not as needed.
    """
    config: Dataset.Config = chosen(Dataset.Config, name, options, "dataset")
    known = config.kinds()
    kinds = {task: kind or known.get(task, task) for task, _, kind in (entry.partition(":") for entry in tasks)}
    opened = config.build(split=split, tasks=tuple(kinds))
    return SampleDataset(opened, {task: TASKS.load(kind).Config().build(labels=opened.labels[task])
                                  for task, kind in kinds.items()}, size, augment)
