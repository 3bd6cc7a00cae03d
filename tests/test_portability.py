"""What would go wrong on Windows or macOS, as far as it can be read or imitated here: nobody has run this there yet."""

from __future__ import annotations

import ast
import errno
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from package_sources import ROOT, nodes, trees
from polyptych import folder_lock
from polyptych.data.cache import cached
from polyptych.data.loading import TrainingBatches
from polyptych.datasets.rooms import Rooms
from polyptych.recipes.rooms import rooms
from polyptych.record import write_whole
from polyptych.run import with_tasks

POSIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "tty"}


def test_every_text_says_its_encoding() -> None:
    """Windows takes the one of the country for files that do not say."""
    wrong = []
    for path in trees():
        for node in nodes(path):
            if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            said = [x.value for x in node.args if isinstance(x, ast.Constant)]
            as_text = name == "open" and any(
                isinstance(x, str) and x.strip("rwaxt+") == "" and x and x not in ("", "+") for x in said)
            as_text |= name == "write_text" and not {"utf-8", "utf-8-sig"} & set(said)
            # A function of that name (polyptych.data.files) looks at byte order marks.
            as_text |= name == "read_text" and isinstance(node.func, ast.Attribute) and not node.args
            if as_text and not ast.unparse(node).startswith("self._av.open"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert wrong == []


def test_modules_of_posix_are_imported_where_there_is_posix() -> None:
    wrong = []
    for path, tree in trees().items():
        for node in tree.body:  # an import below a condition is no part of the body
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [
                node.module] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path.relative_to(ROOT)}: {name}" for name in names if name in POSIX_ONLY]
    assert wrong == []


def test_names_of_files_are_good_on_every_disk() -> None:
    """Disks that do not tell cases apart hold one of two such files; Windows reserves names and characters."""
    place = Path(__file__).parents[1]
    listed = subprocess.run(["git", "ls-files"], cwd=place, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("no checkout")
    names = listed.stdout.splitlines()
    assert [name for name, count in Counter(map(str.casefold, names)).items() if count > 1] == []
    reserved = {"con", "prn", "aux", "nul", *(f"{kind}{i}" for kind in ("com", "lpt") for i in range(1, 10))}
    assert [name for name in names if set(name) & set('<>:"|?*\\') or any(
        part.partition(".")[0].casefold() in reserved or part.endswith((" ", ".")) for part in name.split("/"))] == []


@pytest.fixture
def batches(tmp_path) -> TrainingBatches:
    """Of a cached dataset."""
    run = with_tasks(rooms(), ["semseg", "depth"])
    dataset = Rooms.Config(size=(24, 32), frames=3).build(split="train", tasks=tuple(run.tasks))
    tasks = run.build_tasks(dataset.labels)
    whole = cached(dataset, tmp_path, tasks, "stop")
    return TrainingBatches(whole, tasks, run.augment, (24, 32), batch_size=2, seed=1, workers=1)


def test_what_goes_to_loading_processes_is_small(batches) -> None:
    """Where processes are not forked, they get everything through a pipe: a mapped file is opened again instead."""
    sent = pickle.dumps(batches)
    assert len(sent) < 20_000
    there = pickle.loads(sent)
    assert torch.equal(there.fetch(0)[0].image, batches.fetch(0)[0].image)


@pytest.mark.slow
def test_loading_processes_may_be_spawned(batches, monkeypatch) -> None:
    begin = DataLoader.__init__
    monkeypatch.setattr(DataLoader, "__init__", lambda self, *args, **kwargs: begin(
        self, *args, multiprocessing_context="spawn", **kwargs))
    assert torch.equal(next(iter(batches)).image, batches.fetch(0)[0].image)


@pytest.mark.parametrize("refusals", [0, 3])
def test_a_file_is_replaced_although_somebody_reads_it(refusals, tmp_path, monkeypatch) -> None:
    """Windows refuses as long as it is open."""
    left, replace = [refusals], os.replace

    def refusing(source: Path, target: Path) -> None:
        if left[0]:
            left[0] -= 1
            raise PermissionError(errno.EACCES, "is being used by another process")
        replace(source, target)

    monkeypatch.setattr("polyptych.record.sys.platform", "win32")
    monkeypatch.setattr("polyptych.record.BETWEEN_TRIES", 0)
    monkeypatch.setattr(os, "replace", refusing)
    path = tmp_path / "run.json"
    path.write_bytes(b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_the_lock_of_windows(tmp_path, monkeypatch) -> None:
    """msvcrt.locking, imitated: one byte far behind the text, so that the holder's name can be read."""
    locked: dict[int, int] = {}

    class Msvcrt:
        LK_NBLCK = 2

        @staticmethod
        def locking(descriptor: int, mode: int, count: int) -> None:
            assert mode == Msvcrt.LK_NBLCK and count == 1
            inode, place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
            if locked.get(inode) == place:
                raise PermissionError(errno.EACCES, "Permission denied")
            locked[inode] = place

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt)
    source = Path(folder_lock.__file__).read_text(encoding="utf-8")
    module: dict[str, object] = {"__name__": "imitated"}
    exec(compile(source, "folder_lock.py", "exec"), module)
    with (tmp_path / "a").open("w+", encoding="utf-8") as one, (tmp_path / "a").open("r+", encoding="utf-8") as other:
        assert module["is_taken"](one) and not module["is_taken"](other)
        assert min(locked.values()) >= 2**30
        one.write("process 1")
        one.flush()
        other.seek(0)
        assert other.read() == "process 1"
