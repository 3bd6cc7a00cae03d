from __future__ import annotations

import itertools
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyptych.data.loading import EvaluationBatches, TrainingBatches, check
from polyptych.data.order import shuffled
from polyptych.data.transforms import Augment, collate
from polyptych.errors import InputError

HOW = Augment(scales=(1.0, 1.5), rotation=10.0, brightness=0.3)


def training(dataset, tasks, **options):
    return TrainingBatches(dataset, tasks, HOW, (16, 20), **{"batch_size": 3, "seed": 7, **options})


def ids(batches) -> list[list[str]]:
    return [[info.id for info in batch.info] for batch in batches]


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 200), epoch=st.integers(0, 3), seed=st.integers(-5, 2**63))
def test_every_epoch_is_a_permutation(length, epoch, seed):
    order = [shuffled(epoch * length + i, length, seed) for i in range(length)]
    assert sorted(order) == list(range(length))


def test_epochs_and_seeds_differ_and_places_are_evenly_used():
    orders = {(seed, epoch): tuple(shuffled(epoch * 50 + i, 50, seed) for i in range(50))
              for seed in range(4) for epoch in range(4)}
    assert len(set(orders.values())) == 16
    first = [shuffled(0, 5, seed) for seed in range(2000)]
    assert all(abs(first.count(i) - 400) < 90 for i in range(5))  # 5 standard deviations
    assert len({tuple(shuffled(i, 4, seed) for i in range(4)) for seed in range(2000)}) == 24
    assert shuffled(123, 2**40, 1) != shuffled(124, 2**40, 1)  # an endless dataset costs nothing


def test_workers_change_nothing(noise, same):
    dataset, tasks = noise()
    alone, shared = (list(islice(training(dataset, tasks, workers=workers), 6)) for workers in (0, 2))
    for a, b in zip(alone, shared, strict=True):
        same(a, b)
    assert alone[0].image.shape == (3, 3, 16, 20)
    assert not torch.equal(alone[0].image, alone[1].image)


def test_resuming_continues_the_stream(noise, same):
    dataset, tasks = noise()
    whole = list(islice(training(dataset, tasks), 7))
    for a, b in zip(whole[4:], islice(training(dataset, tasks, start=4), 3), strict=True):
        same(a, b)


def test_ranks_partition_the_stream(noise, same):
    dataset, tasks = noise()
    one = list(islice(training(dataset, tasks, batch_size=6), 4))
    ranks = [list(islice(training(dataset, tasks, batch_size=3, rank=rank, world=2), 4)) for rank in (0, 1)]
    for k in range(4):
        for row in range(6):
            part = ranks[row // 3][k]
            assert torch.equal(one[k].image[row], part.image[row % 3])
            assert one[k].info[row] == part.info[row % 3]


def test_iterating_leaves_the_global_generator_alone(noise):
    dataset, tasks = noise()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(islice(training(dataset, tasks), 2))
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_differ(noise):
    dataset, tasks = noise()
    a, b = (next(iter(training(dataset, tasks, seed=seed))) for seed in (1, 2))
    assert ids([a]) != ids([b]) or not torch.equal(a.image, b.image)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_stops_with_its_own_error(noise, workers):
    dataset, tasks = noise(broken=(4,))
    with pytest.raises(InputError) as error:
        list(islice(training(dataset, tasks, workers=workers), 6))
    assert str(error.value) == "noise/4.jpg: got a truncated file; needs a picture; copy it again"
    assert error.value.got == "a truncated file"


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_replaces_a_sample_and_records_it(noise, workers):
    dataset, tasks = noise(broken=(4, 9))
    batches = training(dataset, tasks, workers=workers, on_fault="skip")
    seen = ids(islice(batches, 8))
    order = [str(shuffled(p, 11, 7)) for p in range(40)]
    for position, found in enumerate(itertools.chain(*seen)):
        assert found == next(i for i in order[position:] if i not in ("4", "9"))
    assert batches.faults.keys() == {4, 9}
    assert batches.faults[4].startswith("noise/4.jpg: got a truncated file")


def test_skipping_ends_when_most_is_broken(noise):
    dataset, tasks = noise(broken=tuple(range(7)))
    with pytest.raises(InputError, match=r"train split of conftest: got [67] faulty samples among 11; needs most "):
        list(islice(training(dataset, tasks, on_fault="skip", batch_size=1), 50))
    dataset, tasks = noise(count=200, broken=tuple(range(200)))
    with pytest.raises(InputError, match="got 16 faulty samples in a row"):
        next(iter(training(dataset, tasks, on_fault="skip")))


def test_evaluation_gives_every_sample_once(noise, same):
    dataset, tasks = noise()
    whole = EvaluationBatches(dataset, tasks, (9, 12), 4)
    assert ids(whole) == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9", "10"]] and len(whole) == 3
    ranks = [EvaluationBatches(dataset, tasks, (9, 12), 4, rank=r, world=3) for r in range(3)]
    assert sorted(int(i) for rank in ranks for batch in ids(rank) for i in batch) == list(range(11))
    assert ids(ranks[1]) == [["1", "4", "7", "10"]]
    for a, b in zip(whole, EvaluationBatches(dataset, tasks, (9, 12), 4, workers=2), strict=True):
        same(a, b)
        assert a.image.shape[-2:] == (9, 12) and a.valid["semseg"].shape[-2:] == (18, 23)
    same(next(iter(EvaluationBatches(dataset, tasks, None, 2))), collate([dataset.read(0), dataset.read(1)], tasks))


def test_evaluation_of_several_sizes(noise):
    dataset, tasks = noise(growing=True)
    batch = next(iter(EvaluationBatches(dataset, tasks, None, 3)))
    assert batch.image.shape[-2:] == (20, 25) and batch.valid["semseg"].shape == (3, 20, 25)
    assert [info.native for info in batch.info] == [(18, 23), (19, 24), (20, 25)]
    batch = next(iter(EvaluationBatches(dataset, tasks, (16, 16), 3)))
    assert batch.image.shape[-2:] == (16, 16) and batch.valid["semseg"].shape == (3, 20, 25)
    assert not batch.valid["semseg"][0, 18:].any()


def test_evaluation_leaves_faulty_samples_out(noise):
    dataset, tasks = noise(broken=(4, 5))
    batches = EvaluationBatches(dataset, tasks, None, 2, on_fault="skip")
    assert ids(batches) == [["0", "1"], ["2", "3"], ["6", "7"], ["8", "9"], ["10"]]
    assert set(batches.faults) == {4, 5}
    with pytest.raises(InputError, match=r"noise/4\.jpg"):
        ids(EvaluationBatches(dataset, tasks, None, 2))


def test_labels_are_checked(noise):
    dataset, tasks = noise()
    sample = dataset.read(1)
    check(sample, tasks)
    sample.valid["semseg"][2, 3], sample.target["semseg"][2, 3] = True, 57
    with pytest.raises(InputError, match="label 'semseg' of sample 1: got class id 57"):
        check(sample, tasks)
    sample = dataset.read(1)
    sample.image = sample.image[:, 1:]
    with pytest.raises(InputError, match="got a label of 18x23 pixels; needs the size of its image, 17x23"):
        check(sample, tasks)


def test_impossible_settings_are_refused(noise):
    dataset, tasks = noise()
    with pytest.raises(InputError, match="batch size: got 0; needs at least 1"):
        training(dataset, tasks, batch_size=0)
    empty, tasks = noise(count=0)
    with pytest.raises(InputError, match="train split of conftest: got no samples"):
        training(empty, tasks)
