"""Run: every choice of one run in one frozen dataclass, written to and rebuilt from run.json."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from polyptych import __version__, locations
from polyptych.backbones._base import Backbone
from polyptych.balancers._base import Balancer
from polyptych.component import NUMERICS, Component
from polyptych.data.transforms import Augment
from polyptych.datasets._base import Dataset
from polyptych.decoders._base import Decoder
from polyptych.distributed import known_device
from polyptych.encoders._base import Encoder
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.optim import Optimizer, Schedule
from polyptych.ranges import LARGEST_SIDE, check_range
from polyptych.record import decode, encode, read_json, write_json
from polyptych.tasks._base import Task
from polyptych.types import LabelInfo


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How batches reach the network."""

    workers: int = 0
    """Number of processes that read and transform samples."""
    cache: Path | None = None
    """Folder for a memory-mapped cache of decoded samples, written at first use (default: read the files every
    time)."""
    feature_views: int = 0
    """Number of augmented views of each image of which the features of a frozen backbone are computed once, into the
    cache folder; training then reads them (0: compute them anew at every step)."""
    feature_type: Literal["float16", "bfloat16", "float32"] = "float16"
    """How features are stored."""
    on_fault: Literal["stop", "skip"] = "stop"
    """What to do with an unreadable or invalid sample: stop and name it, or skip, count and report it."""
    check: int = 100
    """Number of samples of the validation and of the test split that are read before the first step, so that damaged
    files are found early (0: none)."""

    def __post_init__(self) -> None:
        check_range("--loading.workers", self.workers, 0, do="0 reads in the training process")
        check_range("--loading.feature-views", self.feature_views, 0, do="0 stores no features")
        check_range("--loading.check", self.check, 0, do="0 reads none")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The device and the arithmetic of the run."""

    device: str = "auto"
    """auto (the accelerator of the machine, if there is one), cpu, cuda (also ROCm), cuda:1, mps, xpu, ..."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the network under autocast; losses and metrics are always float32. float16 uses loss scaling."""
    channels_last: bool = True
    """Use the channels-last memory format, which is faster for convolutions."""
    compile: bool = False
    """Compile the network with torch.compile."""
    sync_batch_norm: bool = False
    """Synchronize batch statistics across processes."""
    recompute: bool = False
    """Save memory: keep only the inputs of the network's blocks, and compute the rest again in the backward pass. The
    gradients stay the same, to the last bit."""
    shard: bool = False
    """Save memory with several processes: each keeps a part of every parameter, gradient and optimizer state. Needs a
    balancer that weights losses."""

    def __post_init__(self) -> None:
        known_device(self.device, "--execution.device")
        for name in ("recompute", "shard"):
            if getattr(self, name) and self.compile:
                raise InputError(f"--execution.{name}", "a compiled network", "a network that is not compiled",
                                 "drop --execution.compile")
        if self.shard and self.precision == "float16":
            raise InputError("--execution.shard", "float16, whose loss scaling checks all gradients as a whole",
                             "bfloat16 or float32", "use --execution.precision bfloat16")


@dataclass(frozen=True, kw_only=True)
class Monitoring:
    """What is logged, saved and shown."""

    log_every: int = 20
    """Steps between entries in metrics.jsonl."""
    validate_every: int = 500
    """Steps between validations; the last step is always validated."""
    save_every: int = 250
    """Steps between checkpoints; the last step is always saved."""
    tensorboard: bool = False
    """Also write TensorBoard events (requires the log extra)."""
    examples: int = 6
    """Number of test images shown in the report."""
    trivial_samples: int = 200
    """Number of training labels from which the trivial baselines (majority class, mean depth, ...) are learned."""
    diagnose: float = 0.0
    """Share of the training time to spend on diagnosing how the tasks affect each other, as `polyptych diagnose` does
    (0: none; for instance 0.05)."""

    def __post_init__(self) -> None:
        for name in ("log_every", "validate_every", "save_every", "trivial_samples"):
            check_range(f"--monitoring.{name.replace('_', '-')}", getattr(self, name), 1, do="raise it")
        check_range("--monitoring.examples", self.examples, 0, do="0 shows none")
        check_range("--monitoring.diagnose", self.diagnose, 0, 1, do="use for instance 0.05, or 0 for no diagnosis")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Every choice of one run."""

    dataset: Dataset.Config
    """Dataset to train on."""
    tasks: dict[str, Task.Config]
    """Tasks to predict."""
    backbone: Backbone.Config
    """Backbone, which extracts features."""
    encoder: Encoder.Config
    """Encoder: how features are shared."""
    decoder: Decoder.Config
    """Decoder: how predictions are refined."""
    balancer: Balancer.Config
    """Balancer: how tasks are weighted."""
    recipe: str = ""
    """Recipe that the choices are based on."""
    size: tuple[int, int] | None = None
    """Height and width of the network input (default: the dataset's own size, which must be the same for all
    images)."""
    steps: int = 1000
    """Number of optimizer steps."""
    batch_size: int = 8
    """Images per forward pass and process."""
    accumulate: int = 1
    """Forward passes per optimizer step; the loss is normalized over all of them."""
    clip: float = 0.0
    """Maximum gradient norm (0: no clipping)."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then the one evaluated (0: none)."""
    select: Literal["last", "best"] = "last"
    """Weights to test: the last, or the best on the validation split by mean skill. Nothing is ever selected on the
    test split."""
    start: tuple[Path, ...] = ()
    """Runs to initialize this one from: one run with all tasks, or one per task, if the tasks share nothing
    (cross_stitch and nddr are published this way; single continues training)."""
    seed: int = 0
    """Seed for initialization, sample order and augmentation."""
    augment: Augment = field(default_factory=Augment)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    loading: Loading = field(default_factory=Loading)
    execution: Execution = field(default_factory=Execution)
    monitoring: Monitoring = field(default_factory=Monitoring)

    reasons: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)
    """Options that were chosen from the data, and why; shown on the screen and in the report, without effect."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            check_range(f"--{name.replace('_', '-')}", getattr(self, name), 1, do="raise it")
        if self.execution.shard and not self.balancer.owner.one_backward:
            raise InputError("--execution.shard", f"balancer {self.balancer.name}, which compares whole gradients of "
                             "tasks", "a balancer that weights losses", "choose one, such as uncertainty or famo, or "
                             "save memory with --execution.recompute")
        check_range("--clip", self.clip, 0, do="use 0 to leave gradients as they are")
        check_range("--ema", self.ema, 0, 1, below=True, do="use for instance 0.999, or 0 to keep none")
        check_range("--seed", self.seed, 0, 2**63, below=True)
        if self.size is not None and not 1 <= min(self.size) <= max(self.size) <= LARGEST_SIDE:
            raise InputError("--size", f"{self.size[0]} {self.size[1]}", f"a height and width from 1 to {LARGEST_SIDE}",
                             "choose both in this range")

    def build_dataset(self, split: str) -> Dataset:
        """Open one split of the data, with the run's tasks."""
        return self.dataset.build(split=split, tasks=tuple(self.tasks))

    def located(self) -> Run:
        """The run with absolute paths of its data, so that it finds the data from any working directory."""
        return dataclasses.replace(self, dataset=locations.absolute(self.dataset))

    def build_tasks(self, labels: dict[str, LabelInfo]) -> dict[str, Task]:
        return {name: config.build(labels=labels[name]) for name, config in self.tasks.items()}

    def build_network(self, tasks: dict[str, Task], *, pretrained: bool = True) -> Network:
        """Build the network; ``pretrained=False`` loads no pretrained weights, if a checkpoint will be loaded
        anyway."""
        channels = {name: task.channels for name, task in tasks.items()}
        backbone = self.backbone if pretrained else self.backbone.without_weights()
        whole = frozenset(name for name, task in tasks.items() if not task.dense)
        return Network.build(backbone, self.encoder, self.decoder, channels, whole)

    def build_balancer(self, tasks: dict[str, Task]) -> Balancer:
        return self.balancer.build(standard_weights={name: task.standard_weight for name, task in tasks.items()},
                                   likelihoods={name: task.likelihood for name, task in tasks.items()})


def numerics(run: Run) -> dict[str, int]:
    """The versions of the numbers (:data:`polyptych.component.NUMERICS`) that this code produces for the run: the
    global one, and that of every component that changed its own since its first version."""
    parts = [run.dataset, run.backbone, run.encoder, run.decoder, run.balancer, *run.tasks.values()]
    return {"polyptych": NUMERICS} | {f"{part.catalog.kind} {part.name}": part.owner.numerics for part in parts
                                      if part.owner.numerics != Component.numerics}


@dataclass(frozen=True)
class Facts:
    """Facts about the data, recorded when the run began, so that the network can be rebuilt without the data.

    Attributes:
        protocol: protocol of the data; empty if a network was imported without its data.
        dataset: name of the dataset, if it differs from that of its component.
    """

    protocol: str
    labels: dict[str, LabelInfo]
    dataset: str = ""

    @staticmethod
    def of(dataset: Dataset) -> Facts:
        return Facts(dataset.protocol, {task: dataset.labels[task] for task in dataset.tasks}, dataset.title)


def write_run(path: Path, run: Run, facts: Facts) -> None:
    """Record a run in ``run.json``, with absolute paths of its data."""
    write_json(path, {"version": __version__, "run": encode(run.located()), "facts": encode(facts)})


def require_data(folder: Path, moved_to: Path | None, command: str) -> None:
    """Make sure that the data of a run is where its ``run.json`` says; if it moved, record the new place.

    Args:
        moved_to: the folder that holds the data now; None if it did not move.
        command: the command that the user gave, with the folder, for the message.

    Raises:
        InputError: the folder of the data does not exist, or ``moved_to`` holds other data.
    """
    run, facts = read_run(folder)
    found = located_data(run, facts, moved_to, f"data of {folder}", command)
    if found is not run:
        if not facts.protocol:  # an imported network, which meets its data for the first time
            facts = dataclasses.replace(facts, protocol=found.build_dataset("train").protocol)
        rewrite_run(folder / "run.json", found, facts)


def rewrite_run(path: Path, run: Run, facts: Facts | None = None) -> None:
    """Rewrite the options in a file that holds them under ``run``, with absolute paths; everything else stays, except
    for the facts about the data if new ones are given."""
    changed = {"run": encode(run.located())} | ({"facts": encode(facts)} if facts is not None else {})
    write_json(path, read_json(path) | changed)


def with_data_of(found: Run, facts: Facts, planned: Run) -> Run:
    """The run with the data folder of a planned run, if the data is the same and no longer in the old place; otherwise
    the same object."""
    places = locations.folders(found.dataset)
    if (all(place.is_dir() for place in places) or not locations.same_elsewhere(found.dataset, planned.dataset)
            or planned.build_dataset("train").protocol != facts.protocol):
        return found
    return dataclasses.replace(found, dataset=planned.dataset)


def run_with_data_of(folder: Path, planned: Run) -> Run:
    """The run of a folder. If its data moved to the planned run's data folder, that is recorded."""
    run, facts = read_run(folder)
    found = with_data_of(run, facts, planned)
    if found is not run:
        rewrite_run(folder / "run.json", found)
    return found


def located_data(run: Run, facts: Facts, moved_to: Path | None, where: str, command: str) -> Run:
    """The run with the current folder of its data; the same object if the data did not move.

    Args:
        facts: facts recorded when the run began, which identify the data.
        where: whose data it is, for messages.
        command: the command that the user gave, for messages.

    Raises:
        InputError: as :func:`require_data`.
    """
    places = locations.folders(run.dataset)
    if moved_to is None:
        if missing := [place for place in places if not place.is_dir()]:
            raise InputError(f"{where} ({missing[0]})", "no such folder", "the data that the run was trained on",
                             f"if it moved, give the new folder: `polyptych {command} --dataset.root DIR`")
        return run
    if not places:
        raise InputError("--dataset.root", f"a run on {run.dataset.name}, which has no folder of its own",
                         "a run on data with files", "leave it out")
    run = dataclasses.replace(run, dataset=locations.moved(run.dataset, moved_to))
    if missing := [place for place in locations.folders(run.dataset) if not place.is_dir()]:
        raise InputError(f"--dataset.root {moved_to}", f"no folder {missing[0]}", "the folder that holds the data now",
                         "check the path")
    found = run.build_dataset("train").protocol
    if facts.protocol and found != facts.protocol:
        raise InputError(f"--dataset.root {moved_to}", f"other data (protocol {found})", f"the data of the run "
                         f"({facts.protocol})", "name the folder that moved, with an unchanged description")
    return run


def read_run(path: Path) -> tuple[Run, Facts]:
    """Rebuild a run from its ``run.json`` (or from the folder that holds it).

    Raises:
        InputError: the file is missing, is not JSON, or a field is unknown or of the wrong type.
    """
    path = path if path.suffix == ".json" else path / "run.json"
    record = read_json(path)
    if not isinstance(record, dict) or not {"run", "facts"} <= record.keys():
        raise InputError(path, "a file without \"run\" and \"facts\"", "a run.json written by polyptych",
                         "check the path")
    run, facts = decode(Run, record["run"], f"{path}: run"), decode(Facts, record["facts"], f"{path}: facts")
    for task in run.tasks:
        if task not in facts.labels:
            raise InputError(f"{path}: facts.labels", f"no labels of task '{task}'", "the labels of each task",
                             "restore the file, or choose another run")
        _check_labels(facts.labels[task], f"{path}: facts.labels.{task}")
    return run, facts


def _check_labels(labels: LabelInfo, where: str) -> None:
    """Refuse labels that no dataset has and that would make drawing a picture or a table fail."""
    number = len(labels.classes)
    if any(not name.isprintable() for name in labels.classes):
        raise InputError(f"{where}.classes", "a name with unprintable characters", "printable names",
                         "write each name on one line")
    if labels.colors and (len(labels.colors) != number or not all(0 <= c <= 255 for rgb in labels.colors for c in rgb)):
        raise InputError(f"{where}.colors", f"{len(labels.colors)} colors for {number} classes, with values up to "
                         f"{max(max(rgb) for rgb in labels.colors)}", "one for each class, red, green and blue from 0 "
                         "to 255", "give every class a color, or leave the colors out")
    for name in ("mirror", "skeleton"):
        if not all(0 <= one < number for pair in getattr(labels, name) for one in pair):
            raise InputError(f"{where}.{name}", "a number that no class has",
                             f"pairs of numbers from 0 to {number - 1}", "remove that pair")


@contextlib.contextmanager
def buildable(where: Path) -> Iterator[None]:
    """Within this context, a failure to build a network becomes one line. Options of a file may each be of the right
    type and yet make no network together (a width of a trillion, an index that no feature has)."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise InputError(where, f"options from which no network can be built ({type(error).__name__}: {said[:200]})",
                         "a run.json written by polyptych", "restore it, or choose another run") from error


def with_components(run: Run, names: dict[str, str]) -> Run:
    """The run with other components, by slot: ``{"encoder": "single"}``. A slot whose name stays keeps its options."""
    changes: dict[str, Any] = {}
    for slot, name in names.items():
        current: Any = getattr(run, slot)
        if current.name != name:
            changes[slot] = current.catalog.load(name).Config()
    return dataclasses.replace(run, **changes)


def with_tasks(run: Run, names: list[str]) -> Run:
    """The run with these tasks; those it had already keep their options. A task whose name is not that of its kind is
    given as ``name:kind``, unless the dataset knows its kind."""
    catalog, known = Task.Config.catalog, run.dataset.kinds()
    tasks: dict[str, Task.Config] = {}
    for name, _, kind in (entry.partition(":") for entry in names):
        kind, kept = kind or known.get(name, name), run.tasks.get(name)
        tasks[name] = kept if kept is not None and kept.name == kind else catalog.load(kind).Config()
    return dataclasses.replace(run, tasks=tasks)
