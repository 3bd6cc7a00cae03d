from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from itertools import islice

import pytest
import torch

from polyptych.data import cache
from polyptych.data.cache import cached
from polyptych.data.loading import TrainingBatches
from polyptych.data.transforms import Augment
from polyptych.errors import InputError


def copies(folder) -> list[str]:
    """What lies in a cache folder, except locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


def test_a_copy_equals_the_original(noise, tmp_path):
    dataset, tasks = noise()
    seen = []
    copy = cached(dataset, tmp_path, tasks, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 11) for i in range(11)]
    assert len(copy) == 11 and copy.protocol == "noise" and copy.labels == dataset.labels
    assert copy.config == dataset.config and copy.split == "train" and copy.tasks == dataset.tasks
    for index in range(11):
        a, b = dataset.read(index), copy.read(index)
        assert a.info == b.info and torch.equal(a.image, b.image)
        assert a.target.keys() == b.target.keys()  # sample 0 has no depth
        for name, target in a.target.items():
            mask = a.valid[name]
            assert torch.equal(mask, b.valid[name])
            assert b.target[name].dtype == target.dtype and b.target[name].shape == target.shape
            if name == "keypoints":
                assert torch.equal(target, b.target[name])
            else:
                assert torch.allclose(b.target[name][..., mask].float(), target[..., mask].float(), rtol=2**-11)


def test_a_second_use_decodes_nothing(noise, tmp_path, monkeypatch):
    dataset, tasks = noise()
    cached(dataset, tmp_path, tasks)
    monkeypatch.setattr(type(dataset), "read", lambda *_: pytest.fail("decoded again"))
    assert cached(dataset, tmp_path, tasks).read(3).info.id == "3"


def test_each_choice_has_its_own_copy(noise, tmp_path):
    for options in ({}, {"count": 5}, {"tasks": ("depth",)}, {"size": (9, 9)}):
        cached(*_swap(noise(**options), tmp_path))
    assert len(copies(tmp_path)) == 4


def test_batches_from_a_copy(noise, tmp_path, same):
    dataset, tasks = noise(tasks=("semseg", "boundaries"))
    copy = cached(dataset, tmp_path, tasks)
    stream = {(name, workers): list(islice(TrainingBatches(data, tasks, Augment(), (16, 20), 3, 1, workers=workers), 3))
              for name, data in (("read", dataset), ("copy", copy)) for workers in (0, 2)}
    for k in range(3):
        same(stream["copy", 0][k], stream["copy", 2][k])
        assert torch.equal(stream["copy", 0][k].image, stream["read", 0][k].image)
        assert torch.equal(stream["copy", 0][k].valid["semseg"], stream["read", 0][k].valid["semseg"])


def test_what_lies_under_the_mask_need_not_fit(noise, tmp_path, monkeypatch):
    dataset, tasks = noise(tasks=("semseg", "depth"))
    read = type(dataset).read

    def with_junk(self, index):
        sample = read(self, index)
        for name, target in sample.target.items():
            target[~sample.valid[name]] = -1 if name == "semseg" else 1e30
        return sample

    monkeypatch.setattr(type(dataset), "read", with_junk)
    copy = cached(dataset, tmp_path, tasks)
    assert torch.isfinite(copy.read(1).target["depth"]).all()


def test_different_sizes_are_refused(noise, tmp_path):
    dataset, tasks = noise(growing=True)
    message = "sample 1: got 19x24 pixels where sample 0 has 18x23; needs one size for all samples of a cached "
    with pytest.raises(InputError, match=message):
        cached(dataset, tmp_path, tasks)
    assert copies(tmp_path) == []


def test_a_value_beyond_float16_is_refused(noise, tmp_path, monkeypatch):
    dataset, tasks = noise(tasks=("depth",))
    read = type(dataset).read

    def far(self, index):
        sample = read(self, index)
        sample.target["depth"] = torch.full(sample.info.native, 1e5)
        sample.valid["depth"] = torch.ones(sample.info.native, dtype=torch.bool)
        return sample

    monkeypatch.setattr(type(dataset), "read", far)
    monkeypatch.setattr(cache, "check", lambda *_: None)
    with pytest.raises(InputError, match=r"sample 0: got values from 100000 to 100000; needs .*float16"):
        cached(dataset, tmp_path, tasks)
    assert copies(tmp_path) == []


def test_a_fault_stops_or_is_kept(noise, tmp_path):
    dataset, tasks = noise(broken=(2,))
    with pytest.raises(InputError, match=r"noise/2\.jpg: got a truncated file"):
        cached(dataset, tmp_path, tasks)
    assert copies(tmp_path) == []
    copy = cached(dataset, tmp_path, tasks, on_fault="skip")
    assert copy.read(3).info.id == "3"
    with pytest.raises(InputError, match=r"noise/2\.jpg: got a truncated file.*then delete the cache"):
        copy.read(2)


def test_a_full_disk_leaves_nothing(noise, tmp_path, monkeypatch):
    dataset, tasks = noise()
    written = []

    def write(self, name, values):
        written.append(name)
        if len(written) > 12:
            raise OSError(28, "No space left on device")
        original(self, name, values)

    original = cache._Writer._write
    monkeypatch.setattr(cache._Writer, "_write", write)
    with pytest.raises(InputError, match="No space left on device while writing the cache; needs a writable folder"):
        cached(dataset, tmp_path / "deep" / "cache", tasks)
    assert copies(tmp_path / "deep" / "cache") == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_really_full_device_raises_an_error(noise, tmp_path, monkeypatch):
    """The same without a fake: every file of the copy is /dev/full."""
    dataset, tasks = noise(size=(200, 200))
    real = cache.Path.open
    monkeypatch.setattr(cache.Path, "open", lambda self, mode="r", **options: real(cache.Path("/dev/full"), mode)
                        if mode == "wb" else real(self, mode, **options))
    with pytest.raises(InputError, match="No space left on device"):
        cached(dataset, tmp_path, tasks)
    assert copies(tmp_path) == []


def test_a_killed_process_leaves_nothing_usable(noise, tmp_path):
    dataset, tasks = noise()

    def die(done, total):
        if done == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=cached, args=(dataset, tmp_path, tasks, "stop", die))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert len(copies(tmp_path)) == 1 and ".partial-" in copies(tmp_path)[0]
    assert len(cached(dataset, tmp_path, tasks)) == 11  # made anew
    assert len(copies(tmp_path)) == 1 and ".partial-" not in copies(tmp_path)[0]


def test_a_second_process_waits_and_uses_the_first_copy(noise, tmp_path):
    dataset, tasks = noise()
    started, other = threading.Event(), []

    def slow(done, total):
        started.set()
        time.sleep(0.02)

    def second():
        started.wait(10)
        other.append(cached(dataset, tmp_path, tasks, progress=lambda *_: pytest.fail("decoded twice")))

    thread = threading.Thread(target=second)
    thread.start()
    first = cached(dataset, tmp_path, tasks, progress=slow)
    thread.join(10)
    assert other and other[0].folder == first.folder
    assert torch.equal(other[0].read(3).image, first.read(3).image)


def test_an_unwritable_folder_is_named(noise, tmp_path):
    dataset, tasks = noise()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/cache: got .*while writing the cache"):
        cached(dataset, tmp_path / "file" / "cache", tasks)


def _swap(built, folder):
    dataset, tasks = built
    return dataset, folder, tasks


def test_the_stream_of_a_copy_is_that_of_the_original(noise, tmp_path, monkeypatch):
    """A mixture draws its parts by weight; its copy must too."""
    dataset, tasks = noise()
    monkeypatch.setattr(dataset, "index_at", lambda position, seed: 10 - position - seed)
    copy = cached(dataset, tmp_path, tasks)
    assert [copy.index_at(position, 1) for position in range(3)] == [9, 8, 7]
