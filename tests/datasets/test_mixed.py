"""Several datasets in one run: shares, agreement of labels, sizes, exact resume."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyptych.checkpoint import read_tensors
from polyptych.cli import main
from polyptych.data.loading import EvaluationBatches, TrainingBatches
from polyptych.data.order import shuffled
from polyptych.data.transforms import Augment
from polyptych.datasets._folder.fixture import write_toml
from polyptych.datasets._mixture import Interleaving, Mixture
from polyptych.datasets.folder import Folder
from polyptych.datasets.mixed import Mixed
from polyptych.datasets.rooms import Rooms
from polyptych.errors import InputError
from polyptych.record import decode, encode
from polyptych.run import Run
from polyptych.tasks._base import CATALOG
from polyptych.training import Trainer, train

pytestmark = pytest.mark.usefixtures("without_plots")

SMALL = Rooms.Config(size=(24, 32), frames=5, val_frames=2, test_frames=3)
LARGE = Rooms.Config(size=(30, 36), frames=7, val_frames=1, test_frames=2)


def mixed(**options) -> Mixed.Config:
    return Mixed.Config(**({
        "parts": {"small": SMALL, "large": LARGE}, "weights": {"large": 3.0},
        "tasks": {"small": ("depth", "normals"), "large": ("depth", "semseg")}} | options))


weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=11)


@given(weights, st.integers(0, 10**12), st.integers(1, 300))
def test_every_window_holds_every_part_by_its_weight(weight, start, length):
    interleaving = Interleaving(weight)
    counts = [0] * len(weight)
    first: dict[int, int] = {}
    for position in range(start, start + length):
        part, ordinal = interleaving.place(position)
        assert ordinal == first.setdefault(part, ordinal) + counts[part]  # each part's own stream has no gap
        counts[part] += 1
    depth = math.ceil(math.log2(len(weight)))
    for count, share in zip(counts, weight, strict=True):
        assert abs(count - length * share / sum(weight)) <= depth + 1e-6


def test_one_to_three_is_exactly_that():
    parts = [Interleaving([0.1, 0.3]).place(position)[0] for position in range(4000)]
    assert {sum(parts[start:start + 4]) for start in range(3997)} == {3}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 10)), min_size=1, max_size=5), st.integers(0, 2**31))
def test_each_part_goes_through_epochs_of_its_own(parts, seed):
    orders = [lambda p, s, n=n: shuffled(p, n, s) for n, _ in parts]
    mixture = Mixture([n for n, _ in parts], [w for _, w in parts], orders)
    assert len(mixture) == sum(n for n, _ in parts)
    streams: dict[int, list[int]] = {}
    for position in range(200):
        part, index = mixture.locate(mixture.index_at(position, seed))
        streams.setdefault(part, []).append(index)
    for part, stream in streams.items():
        n = parts[part][0]
        for start in range(0, len(stream) - n + 1, n):
            assert sorted(stream[start:start + n]) == list(range(n))


def test_a_sample_has_the_labels_of_its_part():
    tasks = ("semseg", "depth", "normals")
    dataset = mixed().build(split="test", tasks=tasks)
    assert len(dataset) == 5 and dataset.protocol == "mixed(rooms-1-24x32+rooms-1-30x36)"
    samples = [dataset.read(index) for index in range(5)]
    assert [sample.info.id for sample in samples] == [
        *(f"small/test/{i:06}" for i in range(3)), *(f"large/test/{i:06}" for i in range(2))]
    assert [set(sample.target) for sample in samples] == [{"depth", "normals"}] * 3 + [{"semseg", "depth"}] * 2
    own = SMALL.build(split="test", tasks=("depth",)).read(1)
    assert torch.equal(samples[1].image, own.image) and torch.equal(samples[1].target["depth"], own.target["depth"])
    with pytest.raises(IndexError):
        dataset.read(5)


def test_sizes_differ_within_a_batch():
    dataset = mixed().build(split="train", tasks=("semseg", "depth", "normals"))
    tasks = {name: CATALOG.load(name).Config().build(labels=dataset.labels[name]) for name in dataset.tasks}
    batch = next(iter(TrainingBatches(dataset, tasks, Augment(), (20, 28), batch_size=4, seed=1)))
    large = [info.id.startswith("large") for info in batch.info]
    assert sum(large) == 3 and batch.image.shape == (4, 3, 20, 28)
    assert batch.valid["semseg"].flatten(1).any(1).tolist() == large
    assert batch.valid["normals"].flatten(1).any(1).tolist() == [not is_large for is_large in large]
    ids = []
    test = mixed().build(split="test", tasks=dataset.tasks)
    for batch in EvaluationBatches(test, tasks, None, batch_size=5):
        assert batch.image.shape == (5, 3, 30, 36) and not batch.valid["depth"][0, 24:].any()
        ids += [info.id for info in batch.info]
    assert len(set(ids)) == len(test)


def test_the_stream_is_a_function_of_the_position():
    dataset = mixed().build(split="train", tasks=("depth",))
    tasks = {"depth": CATALOG.load("depth").Config().build(labels=dataset.labels["depth"])}

    def ids(start: int, count: int, **options) -> list[list[str]]:
        stream = TrainingBatches(dataset, tasks, Augment(), (20, 28), 3, seed=5, start=start, **options)
        return [[info.id for info in batch.info] for batch in itertools.islice(stream, count)]

    whole = ids(0, 4)
    assert ids(3, 1) == whole[3:]
    assert ids(0, 4, workers=2) == whole
    two = [ids(0, 2, rank=rank, world=2) for rank in range(2)]
    assert [batch for pair in zip(*two, strict=True) for batch in pair] == whole


def test_a_config_survives_run_json(small_run: Run):
    run = replace(small_run, dataset=mixed(parts={"small": SMALL, "inner": mixed()}, tasks={}))
    assert decode(Run, json.loads(json.dumps(encode(run))), "run.json") == run


def test_training_on_rooms_and_a_folder_resumes_exactly(small_run: Run, tmp_path: Path):
    """GradNorm's setting in small: one part has semantic segmentation, the other keypoints; both have depth."""
    write_toml(tmp_path / "mine")
    config = Mixed.Config(
        parts={"rooms": SMALL, "mine": Folder.Config(root=tmp_path / "mine")}, weights={"mine": 2.0},
        tasks={"rooms": ("depth", "keypoints"), "mine": ("depth", "semseg")})
    run = replace(small_run, dataset=config, size=(32, 40), steps=4,
                  tasks={name: CATALOG.load(name).Config() for name in ("depth", "semseg", "keypoints")})
    train(run, tmp_path / "whole")
    result = json.loads((tmp_path / "whole/evaluation/test.json").read_text())
    assert result["images"] == 6 and set(result["tasks"]) == {"depth", "semseg", "keypoints"}
    assert all(math.isfinite(entry["skill"]) for entry in result["tasks"].values())

    trainer = Trainer(run, tmp_path / "parted", resume=False)
    batches = iter(trainer.batches)
    for _ in range(2):
        trainer.step([next(batches)])
    trainer._save()
    resumed = Trainer(run, tmp_path / "parted", resume=True)
    batches = iter(resumed.batches)
    for _ in range(2):
        resumed.step([next(batches)])
    resumed._save()
    whole, parted = (read_tensors(tmp_path / name / "checkpoints/last.safetensors")[0] for name in ("whole", "parted"))
    different = [name for name in whole if name.startswith("network") and not torch.equal(whole[name], parted[name])]
    assert not different


def test_the_command_line_takes_a_file(tmp_path: Path):
    (tmp_path / "parts.toml").write_text("""
[parts.a]
name = "rooms"
size = [24, 32]
val_frames = 1
test_frames = 2
[parts.b]
name = "rooms"
size = [30, 36]
val_frames = 1
test_frames = 1
[tasks]
a = ["depth"]
b = ["depth", "semseg"]
""")
    assert main(["train", "rooms", "--dataset", "mixed", "--tasks", "depth,semseg", "--out", str(tmp_path / "run"),
                 "--dataset.description", str(tmp_path / "parts.toml"), "--size", "24", "32", "--steps", "1",
                 "--batch-size", "2", "--backbone.model", "test_resnet", "--monitoring.examples", "1",
                 "--monitoring.trivial-samples", "2", "--loading.workers", "0"]) == 0
    assert json.loads((tmp_path / "run/evaluation/test.json").read_text())["images"] == 3


@pytest.mark.parametrize(("options", "message"), [
    ({"parts": {}}, "parts: got none; needs at least one dataset"),
    ({"weights": {"big": 1.0}}, "weight of 'big': got an unknown name"),
    ({"weights": {"large": 0.0}}, "weight of 'large': got 0; needs a number above 0"),
    ({"weights": {"large": math.nan}}, "weight of 'large': got nan"),
    ({"tasks": {"big": ("depth",)}}, "tasks of 'big': got an unknown part"),
    ({"tasks": {"small": ("depht",)}}, "tasks of 'small': got 'depht', for which it has no labels"),
])
def test_refusals(options, message):
    with pytest.raises(InputError) as refusal:
        mixed(**options).build(split="train", tasks=())
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_task_must_mean_the_same_everywhere(tmp_path: Path):
    write_toml(tmp_path)
    config = Mixed.Config(parts={"rooms": SMALL, "mine": Folder.Config(root=tmp_path)})
    with pytest.raises(InputError, match=r"task 'semseg' of part 'mine': got 3 classes \(not \d+\) where part 'rooms'"):
        config.build(split="train", tasks=("depth",))
    allowed = dataclasses.replace(config, tasks={"mine": ("depth", "normals")})
    dataset = allowed.build(split="train", tasks=("depth", "semseg"))
    assert dataset.labels["normals"].note == "exact; no label on window glass; stored y up, z toward the camera"


@given(st.text(max_size=60))
def test_any_text_as_description_is_refused_in_one_line(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "parts.toml")
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with pytest.raises(InputError, match=r"parts\.toml") as refusal:
            Mixed.Config(description=path).build(split="train", tasks=())
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("text", "message"), [
    ("[parts.a]\nname = 'roomz'", "dataset 'roomz': got an unknown name"),
    ("[parts.a]\nname = 'rooms'\nframes = 'x'", "parts.a.frames: got 'x'"),
    ("[parts.a]\nname = 'rooms'\nframe = 1", "parts.a.frame: got an unknown field"),
    ("[part.a]\nname = 'rooms'", "part: got an unknown field; needs one of parts"),
    ("[parts.a]\nsize = [1, 2]", 'parts.a: got {'),
    ("[parts.a\n", "got a file that is not TOML"),
])
def test_a_wrong_description_is_named(tmp_path, text, message):
    (tmp_path / "parts.toml").write_text(text)
    with pytest.raises(InputError) as refusal:
        Mixed.Config(description=tmp_path / "parts.toml").build(split="train", tasks=())
    assert message in str(refusal.value) and "parts.toml" in str(refusal.value) and "\n" not in str(refusal.value)
