"""Training: the loop, and what surrounds it (resume, validation, checkpoints, the final test and report)."""

from __future__ import annotations

import copy
import gc
import math
import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from polyptych import devices, distributed
from polyptych.balancers._base import Balancer
from polyptych.balancers._engine import undisturbed
from polyptych.beginning import begin
from polyptych.checkpoint import TrainingState, fitting, load_state, save_state, step_of, write_tensors
from polyptych.data.cache import cached
from polyptych.data.loading import TrainingBatches, check
from polyptych.data.order import hashed
from polyptych.datasets._base import Dataset, EmptySplit
from polyptych.errors import InputError
from polyptych.evaluation import Evaluator, evaluate
from polyptych.evaluation_record import Evaluation
from polyptych.feature_cache import with_features
from polyptych.folder_lock import hold
from polyptych.freezing import thaw, thaw_step, with_synchronized_norms
from polyptych.host_memory import keep_freed_memory
from polyptych.hub import local_folder
from polyptych.interruption import Interrupted, StopFlag, raise_on_signal, stop_on_signal
from polyptych.logbook import Logbook, environment
from polyptych.metrics._accumulation import shown_name
from polyptych.networks import Network, normalizing
from polyptych.optim import set_learning_rate
from polyptych.passes import EpochMeans, Passes
from polyptych.progress import Display
from polyptych.recomputation import blocks, recompute
from polyptych.record import write_json
from polyptych.reports.tables import terminal_table
from polyptych.run import Facts, Run, buildable, numerics, read_run, write_run
from polyptych.task_gradients import cost, look
from polyptych.tasks._base import Task
from polyptych.types import Batch, Output

SHARDED = 1_000_000  # blocks with at least this many parameters are gathered separately
NOT_FINITE = "a loss that is not finite"
End = Callable[[Path, Callable[[object], None]], Path]
"""What follows the last step: takes the run's folder and a function that shows lines, and returns the path of what it
wrote."""


def finish(folder: Path, say: Callable[[object], None]) -> Path:
    """The end of a run: validation and test numbers, example pictures, and the report.

    Raises:
        InputError: the test split has no label, so there is no number; the report is written first.
    """
    from polyptych.prediction.examples import write_examples  # imports matplotlib, which runs of a grid do not need
    from polyptych.reports.page import write_report

    found = measure_splits(folder, say)
    if distributed.is_main():
        write_examples(folder)
        write_report(folder)
        say(f"report: {folder / 'report.html'}")
    distributed.barrier()
    if "test" in found:
        found["test"].require_numbers(folder)
    return folder / "report.html"


def measure_splits(folder: Path, say: Callable[[object], None]) -> dict[str, Evaluation]:
    """Evaluate a run on its validation and test splits, if its data has them, and show the test numbers."""
    found = evaluate(folder, splits=tuple(find_splits(read_run(folder)[0])[0]))
    if distributed.is_main():
        say(terminal_table(found["test"]) if "test" in found else "the data has no test split: nothing was tested")
    return found


def train(run: Run, folder: Path, *, resume: bool = False, end: End = finish) -> Path:
    """Train, test, and report a run in its own folder.

    Args:
        folder: where everything goes; must not exist yet, unless ``resume``.
        resume: continue from the last checkpoint in the folder, exactly as if nothing had happened.
        end: what follows the last step; tests and reports by default.

    Returns:
        What ``end`` returns: the path of the report.

    Raises:
        InputError: the data, the folder, or the checkpoint does not fit the run, or a loss is not finite.
        Interrupted: Ctrl-C or SIGTERM; the state was saved first.
    """
    if folder.exists() and not resume:
        raise _taken(folder)
    with distributed.group(distributed.local_device(run.execution.device)), ExitStack() as held:
        if folder.exists() and distributed.is_main():
            held.enter_context(hold(folder))
        trainer = Trainer(run, folder, resume, examine=True)
        held.enter_context(trainer.held)
        with stop_on_signal() as stop, trainer.display:
            try:
                trainer.fit(stop)
            except RuntimeError:  # the signal also ended a loader process, perhaps in the middle of a step
                if not stop.asked:
                    raise
                raise Interrupted(f"stopped at step {trainer.state.step} of {run.steps}; continue from the last "
                                  f"checkpoint with `polyptych resume {folder}`") from None
        with raise_on_signal(f"stopped after the last step; everything is saved, measure and report the run with "
                             f"`polyptych resume {folder}`"):
            return end(folder, trainer.display.say)


class Trainer:
    """One run in progress. :meth:`fit` is the loop, :meth:`step` is one optimizer step.

    Args:
        examine: read samples of the validation and test splits before anything is computed.

    Attributes:
        started: what a network that starts from trained ones took from them; empty if it does not.
        splits: the validation and test splits, if the data has them.
        held: holds the folder of the run until it is closed.
    """

    started: str = ""
    model: torch.nn.Module
    forward: Callable[[Tensor], Output]

    def __init__(self, run: Run, folder: Path, resume: bool, *, examine: bool = False):
        self.run, self.folder, self.resume, self.held = run, folder, resume, ExitStack()
        self.device = distributed.local_device(run.execution.device)
        self.last = folder / "checkpoints" / "last.safetensors"
        self.resumed = resume and self.last.exists()
        devices.check_precision(self.device, run.execution.precision)
        if self.device.type == "cpu":
            keep_freed_memory()
        seed_everything(run.seed)
        dataset = open_dataset(run, "train")
        self.tasks = run.build_tasks(dataset.labels)
        self.splits, remarks = find_splits(run)
        if examine and not self.resumed:
            for source in run.start:  # said before many images are read
                read_run(local_folder(source))
            remarks += examine_splits(run, self.tasks, self.splits)
        # Some doubts name their split, others are the same for all of them.
        remarks += dict.fromkeys(doubt for each in (dataset, *self.splits.values()) for doubt in each.doubts)
        size = run.size or dataset.read(0).info.native
        with buildable(folder / "run.json") if resume else nullcontext():
            self.state = self._build_state()
        self.balancer = cast(Balancer, self.state.balancer)
        self.thaw_step = thaw_step(self.state.network)
        if self.thaw_step and self.sharded:
            raise InputError("--backbone.freeze-until", f"{self.thaw_step}, with --execution.shard", "one of the two",
                             "leave one out")
        if self.resumed and 0 < self.thaw_step < step_of(self.last):  # in time for a balancer that keeps gradients
            thaw(self.state.network)
        self.size = size
        self._measure_sharing(size)
        self.epoch = EpochMeans(tuple(self.tasks), self.device)
        if self.resumed:
            load_state(self.last, self.state)
            with fitting(self.last):
                self.epoch.restore(self.state.progress["epoch"])
        self.display = Display(run.steps, self.state.step, quiet=not distributed.is_main())
        samples: Dataset = dataset
        if run.loading.feature_views:
            samples = with_features(run, cast(Network, self.state.network), dataset, self.tasks, size,
                                    self.display.say)
        self.batches = TrainingBatches(
            samples, self.tasks, None if run.loading.feature_views else run.augment, size, run.batch_size, run.seed,
            start=self.state.step * run.accumulate, rank=distributed.rank(), world=distributed.world(),
            workers=run.loading.workers, pin_memory=devices.pins(self.device), on_fault=run.loading.on_fault)
        self.epoch_length = max(1, len(dataset) // (run.batch_size * run.accumulate * distributed.world()))
        sharing = self._described_sharing()
        self._spread()
        self.evaluator = Evaluator(run, self.tasks, self.device)
        loaded = dict.fromkeys(getattr(module, "loaded", "") for module in self.state.network.modules())
        for remark in (*remarks, *loaded, self.started):
            if remark:
                self.display.say(remark)
        for line in sharing:
            self.display.say(line)
        self._first_bad = torch.zeros(len(self.tasks), dtype=torch.long, device=self.device)
        self._prepare_folder(dataset)
        if dataset.title and not self.resumed and distributed.is_main():  # described by its user, perhaps wrongly
            from polyptych.reports.label_sheet import show_data

            for line in show_data(dataset, self.tasks, folder):
                self.display.say(line)
        self.log = Logbook(folder, self.state.step, run.monitoring.tensorboard) if distributed.is_main() else None

    def _build_state(self) -> TrainingState:
        run = self.run
        network = run.build_network(self.tasks, pretrained=not (self.resumed or run.start))
        if run.start and not self.resumed:
            self.started = begin(network, self.tasks, run.start)
        if run.execution.sync_batch_norm and distributed.world() > 1:
            network = with_synchronized_norms(network)
        # A network to be sharded may be too large for one device, so it stays on the host until then.
        network.to("cpu" if self.sharded else self.device).to(memory_format=self.memory_format)
        balancer = run.build_balancer(self.tasks).to(self.device)
        return TrainingState(
            network=network, balancer=balancer, optimizer=run.optimizer.build(network, balancer),
            scaler=torch.amp.GradScaler(self.device.type, enabled=run.execution.precision == "float16"),
            average=copy.deepcopy(network).requires_grad_(False) if run.ema else None)

    def _measure_sharing(self, size: tuple[int, int]) -> None:
        """Show the balancer which parameters are shared, by one pass over a blank image."""
        network = self.state.network.train()
        place = next(network.parameters()).device
        image = torch.zeros(min(self.run.batch_size, 2), 3, *size, device=place)
        with undisturbed(network), normalizing(len(image), size):
            self.balancer.prepare(network, network(image))

    def _spread(self, again: bool = False) -> None:
        """Compile or distribute the network, or make it save memory. A balancer that needs the gradients of every task
        averages them over processes itself, and gets a network that is compiled in parts, so that its graph still has
        the cut."""
        network, compiled = self.state.network, self.run.execution.compile
        if self.run.execution.recompute and not again:  # once, and not the moving average, which takes no gradients
            recompute(network)
        if self.sharded:
            self._shard()
            self.model = self.forward = network
            return
        if self.balancer.one_backward:
            unused = self.balancer.reach.unused if self.balancer.reach else ()
            self.model = distributed.parallel(network, self.device, unused)
            self.forward = torch.compile(self.model) if compiled else self.model
            return
        distributed.spread_from_main(network)
        self.model = self.forward = network
        if compiled:
            for part in network.children():  # encoder and decoder
                part.compile()

    def _thaw(self) -> None:
        """Unfreeze the backbone from this step on."""
        thaw(self.state.network)
        del self.model, self.forward  # a wrapper for several processes keeps hooks on parameters while it lives
        gc.collect()
        self._measure_sharing(self.size)
        sharing = self._described_sharing()
        self._spread(again=True)
        self.display.say(f"step {self.state.step}: the whole backbone learns")
        for line in sharing:
            self.display.say(line)

    def _described_sharing(self) -> list[str]:
        """Which parameters the balancer found to be shared, and its remark on what it cannot do with them."""
        return [f"balancer {self.run.balancer.name}: {line}" for line in (self.balancer.reach, self.balancer.remark)
                if line]

    @property
    def sharded(self) -> bool:
        """Whether each process keeps only a part of the parameters; a single process keeps them all."""
        return self.run.execution.shard and distributed.world() > 1

    def _shard(self) -> None:
        """Shard the parameters of the state over the processes, on the device."""
        state, before = self.state, self.state.optimizer
        for network in (state.network, state.average):
            if network is not None:
                distributed.shard(network, [block for block in blocks(network)
                                            if sum(p.numel() for p in block.parameters()) >= SHARDED], self.device)
        self.balancer.reach = None  # it would keep the whole parameters alive
        state.optimizer = self.run.optimizer.build(state.network, self.balancer)
        for old, new in zip(before.param_groups, state.optimizer.param_groups, strict=True):
            for whole, part in zip(old["params"], new["params"], strict=True):
                state.optimizer.state[part] = {name: distributed.share_of(value, part, numbers_too=new["fused"])
                                               for name, value in before.state[whole].items()}

    def fit(self, stop: StopFlag) -> None:
        """Train to the last step."""
        run, state, watch = self.run, self.state, self.run.monitoring
        batches = iter(self.batches)
        look_every = self._look_every()
        logged, clock = state.step, _clock()
        while state.step < run.steps:
            micro_batches = [next(batches) for _ in range(run.accumulate)]
            losses, weights = self.step(micro_batches)
            self.display.step(state.step)
            ended = state.step == run.steps
            if ended or state.step % watch.log_every == 0:
                images = (state.step - logged) * run.batch_size * run.accumulate
                self._record(losses, weights, images, *(_clock() - clock))
                logged, clock = state.step, _clock()
            if look_every and state.step % look_every == 0:
                clock += self._look(micro_batches[0], weights)
            if "val" in self.splits and (ended or state.step % watch.validate_every == 0):
                clock += self._validate()  # throughput is that of training
            if ended or stop.asked or state.step % watch.save_every == 0:
                self._save()
            if stop.asked and not ended:
                raise Interrupted(f"stopped at step {state.step} of {run.steps}; everything is saved, continue with "
                                  f"`polyptych resume {self.folder}`")
        self._settle_best()
        self._report_faults()

    def step(self, micro_batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        """One optimizer step over all micro-batches; returns the mean losses and the weights of the tasks."""
        run, state = self.run, self.state
        if state.step and state.step == self.thaw_step:
            self._thaw()
        if distributed.world() > 1:
            # The checkpoint holds the random numbers of one process, and all would draw the same dropout.
            seed_everything(hashed(run.seed, distributed.rank(), state.step))
        state.network.train()
        self.learning_rate = set_learning_rate(state.optimizer, run.schedule.share(state.step, run.steps))
        passes = Passes(self.model, self.forward, self.tasks, micro_batches, self.device, self.memory_format,
                        self.autocast)
        scale: float | Tensor = 1.0
        if state.scaler.is_enabled():
            scale = state.scaler.scale(torch.ones((), device=self.device))
        self.active = passes.active
        losses, weights = self.balancer.accumulate(passes(), state.network, scale, self.active)
        state.scaler.unscale_(state.optimizer)
        if run.clip:
            torch.nn.utils.clip_grad_norm_(state.network.parameters(), run.clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        self._update_average()
        if self.balancer.wants_after_step:
            self.balancer.after_step(lambda: passes.again(state.network))
        self.epoch.add(losses, passes.counts)
        if state.step % self.epoch_length == 0:
            self.balancer.on_epoch_end(self.epoch.take())
        self._watch(losses)
        return losses, weights

    def autocast(self) -> torch.autocast:
        precision = getattr(torch, self.run.execution.precision)
        return torch.autocast(self.device.type, precision, enabled=precision is not torch.float32)

    @property
    def memory_format(self) -> torch.memory_format:
        # On MPS no kernel gains from channels_last, and torch copies to the layout that its kernels take.
        gains = self.run.execution.channels_last and self.device.type != "mps"
        return torch.channels_last if gains else torch.contiguous_format

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential moving average of the weights; early steps count less, so that the random start is forgotten."""
        state = self.state
        if state.average is not None:
            decay = min(self.run.ema, (1 + state.step) / (10 + state.step))
            torch._foreach_lerp_(list(state.average.parameters()), list(state.network.parameters()), 1 - decay)
            for average, buffer in zip(state.average.buffers(), state.network.buffers(), strict=True):
                average.copy_(buffer)

    def _look_every(self) -> int:
        """Steps between diagnoses of how the tasks affect each other, such that these take at most the requested share
        of the time; 0 if there is nothing to diagnose, or if parameters are sharded."""
        share, shared = self.run.monitoring.diagnose, self.balancer.reach.shared if self.balancer.reach else ()
        if not share or len(self.tasks) < 2 or not shared or self.sharded:
            return 0
        return math.ceil(cost(len(self.tasks)) / (share * self.run.accumulate))

    def _look(self, batch: Batch, weights: Mapping[str, float | Tensor]) -> np.ndarray:
        """Diagnose the tasks on a batch that was just trained on; returns the seconds it took."""
        start = _clock()
        network, state = self.state.network, self.state
        passes = Passes(network, network, self.tasks, [batch], self.device, self.memory_format, self.autocast)
        found = look(lambda: passes()[0]()[0], network, step=state.step, known=self.balancer.reach,
                     weights={name: float(weight) for name, weight in weights.items()},
                     scale=state.scaler.get_scale() if state.scaler.is_enabled() else 1.0)
        if self.log is not None:
            self.log.write("diagnosis", **found.to_json())
        return _clock() - start

    def _watch(self, losses: dict[str, Tensor]) -> None:
        """Remember on the device at which step each task's loss was first not finite; the host looks when it logs."""
        finite = torch.isfinite(torch.stack(list(losses.values())))
        now = torch.full_like(finite, self.state.step, dtype=torch.long)
        self._first_bad = torch.where((self._first_bad == 0) & ~finite, now, self._first_bad)
        if self.device.type == "cpu":
            self._check_finite()

    def _check_finite(self) -> None:
        for task, step in zip(self.tasks, self._first_bad.tolist(), strict=True):
            if step:
                raise InputError(f"task '{task}', step {step}", NOT_FINITE, "finite losses",
                                 "lower --optimizer.learning-rate, set --clip, or use --execution.precision "
                                 f"bfloat16; checkpoints before it are in {self.last.parent}")

    def _record(self, losses: dict[str, Tensor], weights: dict[str, float | Tensor], images: int,
                seconds: float, processor_seconds: float) -> None:
        self._check_finite()
        means = {name: float(distributed.total(value)) / distributed.world() for name, value in losses.items()}
        speed = images * distributed.world() / max(seconds, 1e-9)
        progress = self.state.progress
        progress["seconds"] = progress.get("seconds", 0.0) + seconds
        progress["processor_seconds"] = progress.get("processor_seconds", 0.0) + processor_seconds
        shares = {name: float(weight) for name, weight in weights.items() if name in self.active}
        self.display.status(self.state.step, means, speed, self.learning_rate, shares)
        if self.log is not None:
            self.log.write("train", self.state.step, losses=means, weights=shares,
                           diagnostics={name: float(value) for name, value in self.balancer.diagnostics.items()},
                           learning_rate=self.learning_rate, images_per_second=speed,
                           seconds=progress["seconds"], processor_seconds=progress["processor_seconds"])

    def _validate(self) -> float | np.ndarray:
        """Measure on the validation split and keep the best weights; returns the seconds it took."""
        start = _clock()
        self._check_finite()
        distributed.share_buffers([self.state.network, self.state.average])
        subject = self.state.average or self.state.network
        with distributed.with_whole_parameters(subject):
            found = self.evaluator.evaluate(subject, "val")
        metrics = {name: task.own_metrics for name, task in found.tasks.items()}
        self.balancer.on_validation(metrics)
        headlines = "  ".join(f"{name} {shown_name(task.own_headline)} {task.headline_value:.3g}"
                              for name, task in found.tasks.items())
        known, skill = found.known_skill
        of = "" if known == len(self.tasks) else f" ({known} of {len(self.tasks)} tasks have one)"
        self.display.say(f"step {self.state.step}: validation  {headlines}  skill {skill:.3f}{of}")
        if self.log is not None:
            self.log.write("validation", self.state.step, metrics=metrics, skill=skill,
                           seconds=self.state.progress.get("seconds", 0.0))
        progress = self.state.progress
        # A checkpoint without the number comes from a version that needed the skill of every task.
        beaten = known > 0
        if "best_skill" in progress:
            beaten = (known, skill) > (progress.get("best_known", len(self.tasks)), progress["best_skill"])
        if beaten:
            progress["best_known"], progress["best_skill"] = known, skill
            self._keep(subject)
        return _clock() - start

    def _keep(self, subject: torch.nn.Module) -> None:
        """Save these weights as the best."""
        tensors = distributed.whole({f"network.{name}": value for name, value in subject.state_dict().items()})
        if distributed.is_main():
            write_tensors(self.last.with_name("best.safetensors"), tensors, {"step": self.state.step})

    def _settle_best(self) -> None:
        """If no validation could tell which weights are best, a run that selects the best keeps the last."""
        if self.run.select == "best" and "best_skill" not in self.state.progress:
            self.display.say("no validation gave any task a finite skill, so nothing could be selected: the last "
                             "weights are kept as the best")
            self._keep(self.state.average or self.state.network)

    def _save(self) -> None:
        self._check_finite()
        # State that differs between processes is not saved, so they continue with what a resumed run would have.
        distributed.share_buffers([self.state.network, self.state.average])
        self.state.progress["epoch"] = self.epoch.saved()
        self.epoch.restore(self.state.progress["epoch"])
        save_state(self.last, self.state)
        distributed.barrier()

    def _prepare_folder(self, dataset: Dataset) -> None:
        """Make the run folder and record what will happen in it; nothing is made before the parts are known to fit."""
        if distributed.is_main():
            try:
                self.folder.mkdir(parents=True, exist_ok=self.resume)
            except FileExistsError:  # made by another process since this one began
                raise _taken(self.folder) from None
            self.held.enter_context(hold(self.folder))
            self.last.parent.mkdir(exist_ok=True)
            write_run(self.folder / "run.json", self.run, Facts.of(dataset))
            write_json(self.folder / "environment.json", environment(self.device) | {"numerics": numerics(self.run)})
        distributed.barrier()

    def _report_faults(self) -> None:
        if faults := self.batches.faults:
            self.display.say(f"skipped {len(faults)} training samples that could not be used, for instance: "
                             f"{next(iter(faults.values()))}")


def find_splits(run: Run) -> tuple[dict[str, Dataset], list[str]]:
    """The validation and test splits of a run's data, and a remark on each that is missing.

    Raises:
        InputError: a split cannot be read, or there is none to select the best weights on.
    """
    splits: dict[str, Dataset] = {}
    remarks = []
    for split, without in (("val", "the run trains without validation"), ("test", "the run is not tested")):
        try:
            splits[split] = run.build_dataset(split)
        except EmptySplit as missing:
            if split == "val" and run.select == "best":
                raise InputError("--select", f"best, but the data has no validation split ({missing.where}: "
                                 f"{missing.got})", "a split on which weights can be selected",
                                 f"use --select last, or get one: {missing.do}") from None
            remarks.append(f"no {split} split ({missing.where}: {missing.got}): {without}")
    return splits, remarks


def examine_splits(run: Run, tasks: Mapping[str, Task], splits: Mapping[str, Dataset]) -> list[str]:
    """Read samples of the splits that training does not read, so that faults in them are known at once.

    Returns:
        Remarks on tasks that have no label.

    Raises:
        InputError: a sample cannot be read, or none of the test samples has any label.
    """
    remarks = []
    for split, dataset in splits.items():
        number = min(run.loading.check, len(dataset))
        labelled: set[str] = set()
        read: set[str] = set()
        for position in range(number):
            try:
                sample = dataset.read(position * len(dataset) // number)
                check(sample, tasks)
            except InputError:
                if run.loading.on_fault == "stop":
                    raise
                continue
            read |= sample.valid.keys()
            labelled |= {name for name, valid in sample.valid.items() if valid.any()}
        missing = [name for name in tasks if name not in labelled]
        if number and number == len(dataset) and missing:
            if split == "test" and not labelled:
                raise InputError(f"test split of {dataset.config.name}", f"{number} images without a label "
                                 "for any task" + " (labels were read; none of their pixels has one)" * bool(read),
                                 "images with labels to test on", "check which stored numbers mean no label" if read
                                 else "check the paths of the labels and the splits")
            remarks.append(f"no image of the {split} split has a label of {', '.join(missing)}")
    return remarks


def _taken(folder: Path) -> InputError:
    return InputError(folder, "a folder that exists", "a new folder for the run",
                      f"choose another --out, or continue with `polyptych resume {folder}`")


def _clock() -> np.ndarray:
    """Wall-clock seconds, and processor seconds of this process (all its threads)."""
    return np.array([time.monotonic(), time.process_time()])


def open_dataset(run: Run, split: str) -> Dataset:
    """One split of the run's data, through the cache if the run has one."""
    dataset = run.build_dataset(split)
    if run.loading.cache is None or run.loading.feature_views:  # the features' labels are stored with them
        return dataset
    return cached(dataset, run.loading.cache, run.build_tasks(dataset.labels), run.loading.on_fault)


def seed_everything(seed: int) -> None:
    """Seed initialization, dropout, and whatever libraries draw from the global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
