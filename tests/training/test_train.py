"""The training step and what a run leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyptych.data.loading import TrainingBatches
from polyptych.decoders.heads import Heads
from polyptych.errors import InputError
from polyptych.interruption import StopFlag
from polyptych.run import Execution, Run, read_run, with_components, with_tasks
from polyptych.training import Trainer, train
from polyptych.types import Batch


def micro(run: Run, trainer: Trainer, number: int) -> list[Batch]:
    """The first batches of a run, by hand."""
    dataset = run.build_dataset("train")
    batches = iter(TrainingBatches(dataset, trainer.tasks, run.augment, run.size, run.batch_size, run.seed))
    return [next(batches) for _ in range(number)]


def gradients_of(run: Run, folder: Path, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """The change that one plain SGD step makes to each parameter, without batch statistics in the way."""
    trainer = Trainer(run, folder, resume=False)
    network = trainer.state.network
    network.train = lambda mode=True: network  # type: ignore[method-assign]
    network.eval()
    torch.nn.Module.eval(network)
    for module in network.modules():
        module.training = False
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trainer.step(batches)
    return {name: p.detach() - before[name] for name, p in network.named_parameters()}


def test_accumulation_equals_one_large_batch(small_run: Run, tmp_path: Path) -> None:
    """Micro-batches with different numbers of labelled pixels, one without any label for a task."""
    optimizer = replace(small_run.optimizer, kind="sgd", weight_decay=0.0, learning_rate=1.0, momentum=0.0)
    tasks = {name: config for name, config in small_run.tasks.items() if name != "keypoints"}
    assert tasks["saliency"].weight is None  # balanced, over the whole step
    # The number of people per batch pads keypoints, so that halves do not fit together.
    run = replace(small_run, optimizer=optimizer, tasks=tasks, accumulate=2,
                  schedule=replace(small_run.schedule, warmup=0))
    parts = micro(run, Trainer(run, tmp_path / "probe", resume=False), 2)
    parts[0].valid["depth"][:] = False
    parts[1].valid["normals"][:, :20] = False
    whole = Batch(torch.cat([p.image for p in parts]), {t: torch.cat([p.target[t] for p in parts]) for t in tasks},
                  {t: torch.cat([p.valid[t] for p in parts]) for t in tasks}, [i for p in parts for i in p.info])
    split = gradients_of(run, tmp_path / "split", parts)
    together = gradients_of(replace(run, accumulate=1), tmp_path / "together", [whole])
    for name in together:
        torch.testing.assert_close(split[name], together[name], rtol=1e-3, atol=1e-6, msg=name)


def test_a_batch_without_labels_for_a_task_trains_the_rest(small_run: Run, tmp_path: Path) -> None:
    trainer = Trainer(small_run, tmp_path / "run", resume=False)
    batches = micro(small_run, trainer, 1)
    for task in trainer.tasks:
        if task != "depth":
            batches[0].valid[task][:] = False
    losses, _ = trainer.step(batches)
    assert {task: float(loss) for task, loss in losses.items() if task != "depth"} == dict.fromkeys(
        [task for task in trainer.tasks if task != "depth"], 0.0)
    assert float(losses["depth"]) > 0
    assert all(torch.isfinite(p).all() for p in trainer.state.network.parameters())


def test_a_run_leaves_everything_behind(small_run: Run, tmp_path: Path, without_curves) -> None:
    folder = tmp_path / "run"
    report = train(replace(small_run, ema=0.5, clip=1.0, select="best"), folder)
    for name in ("run.json", "environment.json", "metrics.jsonl", "checkpoints/last.safetensors", "panels/001.png",
                 "checkpoints/best.safetensors", "evaluation/val.json", "evaluation/test.json", "report.md"):
        assert (folder / name).is_file(), name
    assert report.read_text().count("data:image/png") >= 2
    assert read_run(folder)[0] == replace(small_run, ema=0.5, clip=1.0, select="best")
    result = json.loads((folder / "evaluation" / "test.json").read_text())
    assert result["images"] == 4 and result["protocol"] == "rooms-1-48x64" and result["weights"] == "best"
    assert set(result["tasks"]) == set(small_run.tasks)
    for entry in result["tasks"].values():
        assert entry["headline"] in entry["metrics"] and entry["metrics"].keys() == entry["trivial"].keys()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "train"] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if line["event"] == "validation"] == [2, 4]


def test_a_non_finite_loss_names_task_and_step(small_run: Run, tmp_path: Path) -> None:
    trainer = Trainer(small_run, tmp_path / "run", resume=False)
    batches = micro(small_run, trainer, 2)
    trainer.step(batches[:1])
    batches[1].target["depth"][:] = float("inf")
    batches[1].valid["depth"][:] = True
    with pytest.raises(InputError, match=r"task 'depth', step 2: got a loss that is not finite; needs finite"):
        trainer.step(batches[1:])


def test_a_run_folder_is_never_overwritten(small_run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    with pytest.raises(InputError, match=r"a folder that exists; needs a new folder for the run; choose another --out"):
        train(small_run, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains(small_run: Run, tmp_path: Path, precision: str) -> None:
    run = replace(with_tasks(small_run, ["semseg", "depth"]), size=(32, 32),
                  decoder=Heads.Config(head="fpn", width=4),  # processors are slow at convolutions in float16
                  execution=Execution(precision=precision, device="cpu"))
    trainer = Trainer(run, tmp_path / "run", resume=False)
    batches = micro(run, trainer, 3)
    before = {name: p.detach().clone() for name, p in trainer.state.network.named_parameters()}
    steps_with_all = 0
    for number in range(16):  # float16 first lowers its loss scale, skipping a step each time the gradient overflows
        losses, _ = trainer.step([batches[number % 3]])
        assert all(torch.isfinite(loss) for loss in losses.values())
        moved = [name for name, p in trainer.state.network.named_parameters() if not torch.equal(p, before[name])]
        steps_with_all += len(moved) == len(before)
        if steps_with_all == 4:  # each batch once more
            break
    assert len(moved) == len(before)


def test_the_seed_decides_everything(small_run: Run, tmp_path: Path) -> None:
    def weights(seed: int, folder: str) -> torch.Tensor:
        run = replace(small_run, seed=seed)
        trainer = Trainer(run, tmp_path / folder, resume=False)
        trainer.step(micro(run, trainer, 1))
        return torch.cat([p.detach().flatten() for p in trainer.state.network.parameters()])

    first = weights(1, "a")
    assert torch.equal(first, weights(1, "b"))
    assert not torch.equal(first, weights(2, "c"))


def test_tensorboard_events_are_written_when_asked(small_run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from polyptych.logbook import Logbook

    log = Logbook(tmp_path, 0, tensorboard=True)
    log.write("train", 1, losses={"depth": 0.5})
    log.close()
    assert any((tmp_path / "tensorboard").iterdir())


def test_the_log_is_cut_at_the_resumed_step(tmp_path: Path) -> None:
    from polyptych.logbook import Logbook

    log = Logbook(tmp_path, 0, tensorboard=False)
    for step in range(1, 5):
        log.write("train", step, losses={})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "st')  # killed while writing
    Logbook(tmp_path, 2, tensorboard=False)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("balancer", [
    "nash_mtl", "famo", *(pytest.param(name, marks=pytest.mark.grid) for name in ("dwa", "uncertainty"))])
def test_a_run_with_a_balancer_logs_what_it_saw_and_resumes(balancer: str, small_run: Run, tmp_path: Path) -> None:
    run = replace(with_components(with_tasks(small_run, ["semseg", "depth"]), {"balancer": balancer}), accumulate=2,
                  schedule=replace(small_run.schedule, kind="constant"),
                  monitoring=replace(small_run.monitoring, validate_every=4, examples=0, trivial_samples=1))
    trainers = []
    for folder, stops in (("whole", [4]), ("parts", [2, 4])):
        for stop in stops:
            trainer = Trainer(replace(run, steps=stop), tmp_path / folder, resume=stop != stops[0])
            trainer.epoch_length = 3
            trainer.fit(StopFlag())
        trainers.append(trainer)
    whole, parts = (trainer.state for trainer in trainers)
    for part in ("network", "balancer"):
        expected, found = getattr(whole, part).state_dict(), getattr(parts, part).state_dict()
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4] and all(line["weights"] for line in steps)
    assert steps[-1]["diagnostics"]["fallbacks"] == 0
    assert ("cosine/semseg/depth" in steps[-1]["diagnostics"]) == (balancer == "nash_mtl")


def test_a_level_without_shared_features_is_refused_before_the_first_step(small_run: Run, tmp_path: Path) -> None:
    run = with_components(small_run, {"encoder": "single", "balancer": "mgda"})
    with pytest.raises(InputError, match=r"--balancer\.level: got .*; needs a shared trunk; choose --encoder shared"):
        Trainer(run, tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()
