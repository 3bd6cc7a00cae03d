"""What several tests share: a small run on rooms, and the place of the real data."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import settings

import check_imports

check_imports.install("polyptych")

settings.register_profile("polyptych", deadline=None)  # of generated examples: time is not judged
settings.load_profile("polyptych")

# Tests measure nothing; one thread each keeps parallel test processes from fighting over cores. Read when torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Compiled once, the package serves all the processes that tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Of the time of the tests, a tenth went into looking for garbage where imports and graphs make objects that stay.
gc.set_threshold(50_000, 20, 20)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sample", type=int, default=1, metavar="N", help="run one in N tests, always the same ones")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The rest of a grid is slow. A large grid in part: a test's name decides, so that new tests change nothing for the
    others."""
    for item in items:
        if item.get_closest_marker("grid"):
            item.add_marker("slow")
    rest = [item for item in items if crc32(item.nodeid.encode()) % config.getoption("sample")]
    if rest:
        left_out = set(rest)
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=rest)


SOURCES = {f"tests/test_{name}.py" for name in ("dependencies", "floors", "portability")}
"""Tests that parse every file of the package, once a process (``package_sources.py``)."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """With ``-n`` and no choice of ``--dist``, a file's tests stay in one process, and so do those that read the same
    exported files: what they share is made once, not once in each process."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            # What torch.export imports takes as long as many tests; one process for all that use it.
            if file.startswith("tests/export/") or "_export" in test or "_onnx_file" in test:
                return "tests/export"
            return "sources" if file in SOURCES else file

    return ByFile(config, log) if config.getoption("dist") == "load" else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    spare_what_was_imported()
    render_once(item)


IMPORTED = [0]


def spare_what_was_imported() -> None:
    """The search for garbage, which begins again and again, need not look at millions of objects of libraries."""
    if len(sys.modules) > IMPORTED[0] + 50:
        gc.collect()
        gc.freeze()
        IMPORTED[0] = len(sys.modules)


ROOMS: dict = {}
MOST_ROOMS = 1000  # a small one takes about a tenth of a megabyte


def render_once(item: pytest.Item) -> None:
    """Many tests train on the same rooms: each is rendered once, except where rendering is the subject."""
    module = sys.modules.get("polyptych.datasets.rooms")
    if module is None:
        return
    render = getattr(module.Rooms.read, "rendering", module.Rooms.read)
    module.Rooms.read = render if item.path.name == "test_rooms.py" else remembering(render)


def remembering(render):
    """``Rooms.read``, which gives copies of samples that it has rendered before. A room does not depend on how many
    there are, and its labels of all tasks take a tenth of the time of its picture."""
    @wraps(render)
    def read(self, index):
        self._seed(index)  # refuses an index beyond the end
        key = (type(self), replace(self.config, frames=0, val_frames=0, test_frames=0), self.split, index)
        if key not in ROOMS:
            if len(ROOMS) == MOST_ROOMS:
                ROOMS.clear()
            ROOMS[key] = render(type(self)(self.config, split=self.split, tasks=tuple(type(self).labels)), index)
        sample = ROOMS[key]
        return replace(sample, image=sample.image.clone(), **{
            name: {task: getattr(sample, name)[task].clone() for task in self.tasks} for name in ("target", "valid")})

    read.rendering = render
    return read


@pytest.fixture(scope="module")
def without_plots() -> Iterator[None]:
    """Reports in which nothing is drawn, for runs that are not trained for the sake of their report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyptych.reports.style.svg", lambda drawing, name, *, page: "<svg></svg>")
        yield


@pytest.fixture
def without_curves(monkeypatch) -> None:
    """Reports without the curves of their log, which take longer than a short training; ``tests/reports`` has them."""
    monkeypatch.setattr("polyptych.reports.curves.svg", lambda plot, end: "<svg></svg>")
    monkeypatch.setattr("polyptych.reports.curves.sheet", lambda found: "<svg></svg>")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real frames, or a skip that says why."""
    root = Path(os.environ.get("POLYPTYCH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "nyuv2").is_dir():
        pytest.skip(f"no real frames at {root}; set POLYPTYCH_TEST_DATA")
    return root


@pytest.fixture
def small_run():
    """Seven tasks on tiny rooms, a tiny backbone, four steps: all that `polyptych train rooms` does, in seconds."""
    from polyptych.backbones.timm import Timm
    from polyptych.datasets.rooms import Rooms
    from polyptych.recipes.rooms import rooms
    from polyptych.run import Loading, Monitoring

    return replace(
        rooms(), dataset=Rooms.Config(size=(48, 64), val_frames=3, test_frames=4), size=(48, 64),
        backbone=Timm.Config(model="test_resnet"), steps=4, batch_size=2, loading=Loading(),
        monitoring=Monitoring(log_every=1, validate_every=2, save_every=2, examples=2, trivial_samples=4))
