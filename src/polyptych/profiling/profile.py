"""What a network costs: parameters, multiply-adds, memory and time, for any encoder with any decoder.

    profile = polyptych.profile(network, size=(288, 384))
    profile = polyptych.profile_run(Path("runs/rooms"), device="cuda", precision="bfloat16")

A copy of the network is run, so that its mode, gradients and statistics stay unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polyptych import devices
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.profiling.memory import Memory, peak, standing
from polyptych.profiling.operators import Operator, count
from polyptych.profiling.structure import Node, Part, Sharing, parts, sharing, tree
from polyptych.profiling.subject import Precision, Setting, Subject, find_device, trainable
from polyptych.profiling.timing import Latency, Rate, Throughput, is_out_of_memory, latency, throughput
from polyptych.record import encode
from polyptych.run import Run, read_run
from polyptych.types import LabelInfo

__all__ = ["Cost", "Latency", "Memory", "Node", "Operator", "Part", "Profile", "Rate", "Setting", "Sharing",
           "Throughput", "cost", "profile", "profile_run"]

@dataclass(frozen=True)
class Profile:
    """What a network costs.

    Attributes:
        multiply_adds: multiply-adds for one image, from torch's formulas for matrix products, convolutions and
            attention.
        multiply_adds_by_operator: the same, by the operators that have a formula.
        uncounted: operators without a formula; first those whose arithmetic is missing from the total.
        parts: backbone, encoder, decoder and heads, which add up to the whole.
        sharing: parameters by the tasks that use them, which also add up to the whole.
    """

    setting: Setting
    parameters: int
    multiply_adds: int
    multiply_adds_by_operator: dict[str, int]
    uncounted: tuple[Operator, ...]
    parts: tuple[Part, ...]
    sharing: Sharing
    memory: Memory
    latency: Latency
    throughput: Throughput
    tree: Node

    def to_json(self) -> Any:
        """Plain values, ready for :func:`json.dumps`."""
        return encode(self)


@dataclass(frozen=True)
class Cost:
    """The numbers of a profile that go into a table of methods.

    Attributes:
        multiply_adds: multiply-adds for one image.
        memory_inference, memory_training: peak bytes of the activations, for one image.
        latency: median seconds of one image.
        throughput: images per second at the best of the measured batch sizes.
        shared_parameters: number of parameters that influence all tasks; 0 for a single task.
    """

    parameters: int
    multiply_adds: int
    memory_inference: int
    memory_training: int
    latency: float
    throughput: float
    shared_parameters: int


def profile(network: Network, *, size: tuple[int, int], batch_size: int = 1, device: str = "cpu",
            precision: Precision = "float32", channels_last: bool = True, repeats: int = 20, seconds: float = 10.0,
            depth: int = 3, training: bool = True) -> Profile:
    """Measure what a network costs.

    Counts, and memory on the CPU, are exact and reproducible; times are measured.

    Args:
        size: height and width of the image.
        batch_size: batch size for memory; the other numbers state their own.
        device: auto, cpu, cuda, cuda:1, ...
        precision: precision of the network under autocast.
        channels_last: memory format, as in training.
        repeats, seconds: number of timed runs, and their maximum total duration; once for latency, once for throughput.
        depth: levels of the module tree; -1 means all.
        training: also measure the memory of a training step.

    Raises:
        InputError: a number out of range, a device that this machine lacks, or too little memory on it.
    """
    for flag, value in (("--size", min(size)), ("--batch-size", batch_size), ("--repeats", repeats)):
        if value < 1:
            raise InputError(flag, str(size if flag == "--size" else value), "a positive number", "raise it")
    place = find_device(device)
    try:
        subject = Subject(network, size, place, precision, channels_last)
        with devices.same_random([place]):
            return _measure(subject, batch_size, repeats, seconds, depth, training)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError("--batch-size", f"{batch_size}, for which {place} is out of memory", "one that fits",
                         "lower it or --size, or leave out training") from None


def _measure(subject: Subject, batch_size: int, repeats: int, seconds: float, depth: int, training: bool) -> Profile:
    network, device = subject.network, subject.device
    with trainable(network):
        counted, output = count(network, subject.forward(1))
        shares = sharing(network.parameters(), output)
    del output
    with torch.no_grad():
        inference = peak(subject.forward(batch_size), device)
        per_image = inference // batch_size
    memory = Memory(batch_size, inference, subject.training_peak(batch_size) if training else None, **standing(network))
    with torch.inference_mode():
        speed = latency(subject.forward(1), device, repeats, seconds)
        rates = throughput(subject.forward, device, per_image, seconds)
    return Profile(
        setting=subject.setting(), parameters=sum(p.numel() for p in network.parameters()),
        multiply_adds=counted.total, multiply_adds_by_operator=counted.by_operator, uncounted=counted.uncounted,
        parts=parts(network, counted.by_module), sharing=shares, memory=memory, latency=speed, throughput=rates,
        tree=tree(network, counted.by_module, depth))


def cost(network: Network, *, size: tuple[int, int], device: str = "cpu", precision: Precision = "float32",
         seconds: float = 2.0) -> Cost:
    """The cost of a network in a few numbers; takes a few times ``seconds``. See :func:`profile`."""
    found = profile(network, size=size, device=device, precision=precision, repeats=10, seconds=seconds, depth=0)
    assert found.memory.training is not None  # it was asked for
    return Cost(found.parameters, found.multiply_adds, found.memory.inference, found.memory.training,
                found.latency.median, found.throughput.best.images_per_second, found.sharing.shared)


def profile_run(run: Run | Path, *, labels: dict[str, LabelInfo] | None = None, channels: dict[str, int] | None = None,
                size: tuple[int, int] | None = None, batch_size: int = 1, device: str | None = None,
                precision: Precision | None = None, repeats: int = 20, seconds: float = 10.0, depth: int = 3,
                training: bool = True) -> Profile:
    """Measure what the network of a run costs, without its weights: none are downloaded or read.

    Args:
        run: the options, or the folder of a run, which also records facts about its data, so that the data is not
            needed.
        labels: label information, in place of the data.
        channels: how many channels each task predicts, in place of the run's tasks and data.
        size, device, precision: None takes the run's.
        batch_size, repeats, seconds, depth, training: as for :func:`profile`.

    Raises:
        InputError: as :func:`profile`, or it is unknown what the network predicts.
    """
    if isinstance(run, Path):
        run, facts = read_run(run)
        labels = labels or facts.labels
    network, native = untrained(run, labels, channels)
    size = size or run.size or native
    if size is None:
        raise InputError("--size", "nothing", "height and width, which this run leaves to its data",
                         "for instance --size 288 384")
    return profile(network, size=size, batch_size=batch_size, device=device or run.execution.device,
                   precision=precision or run.execution.precision, channels_last=run.execution.channels_last,
                   repeats=repeats, seconds=seconds, depth=depth, training=training)


def untrained(run: Run, labels: dict[str, LabelInfo] | None = None,
              channels: dict[str, int] | None = None) -> tuple[Network, tuple[int, int] | None]:
    """A run's network without its weights.

    Args:
        labels: label information; None opens the data.
        channels: number of channels of each task; then neither labels nor data are needed.

    Returns:
        The network, and the native size of the images if the data had to be opened.

    Raises:
        InputError: the data is missing, or has no labels of a task.
    """
    if channels is not None:
        for task, number in channels.items():
            if number < 1:
                raise InputError(f"--channels {task}", str(number), "a positive number", "raise it")
        return Network.build(run.backbone.without_weights(), run.encoder, run.decoder, channels), None
    around = f"--channels {','.join(f'{task}=N' for task in run.tasks)}"
    native = None
    if labels is None:
        try:
            dataset = run.build_dataset("train")
            native = None if run.size else dataset.read(0).info.native
        except InputError as error:
            raise InputError(error.where, error.got, error.needs,
                             f"{error.do}, or profile without the data: {around}") from None
        labels = dataset.labels
    for task in run.tasks:
        if task not in labels:
            raise InputError(f"task '{task}'", "a run that was recorded without it", f"one of {', '.join(labels)}",
                             f"leave it out or say what to predict: {around}")
    return run.build_network(run.build_tasks(labels), pretrained=False), native
