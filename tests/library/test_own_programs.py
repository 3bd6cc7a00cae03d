"""The programs of docs/own-program.md run as they stand, and a person's type checker finds nothing in them."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "own-program.md"
PROGRAMS = {title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
            for title, _, text in (part.partition("\n") for part in PAGE.read_text().split("\n## ")[1:])}
LIBRARIES = {"Lightning Trainer": "lightning", "Lightning Fabric": "lightning", "Accelerate": "accelerate"}
OWN_LOOPS = ["Plain PyTorch, with a balancer", *LIBRARIES]


def test_short_programs() -> None:
    scope: dict = {"__name__": "page"}
    for program in (*PROGRAMS["A network in three lines"], *PROGRAMS["Tasks: losses, metrics, colors"]):
        exec(compile(program, PAGE.name, "exec"), scope)
    assert scope["picture"].shape == (64, 96, 3) and set(scope["losses"]) == {"semseg", "depth", "flow"}


@pytest.mark.parametrize("title", OWN_LOOPS)
@pytest.mark.filterwarnings("ignore")
def test_own_loops_end_in_a_picture(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if title in LIBRARIES:
        pytest.importorskip(LIBRARIES[title])
    monkeypatch.chdir(tmp_path)
    [program] = PROGRAMS[title]
    scope: dict = {"__name__": "page"}
    exec(compile(program, PAGE.name, "exec"), scope)
    assert Image.open("depth.png").size == (64, 48)
    if "trainer" in scope:
        assert {"loss/depth", "semseg/mIoU", "depth/RMSE"} <= scope["trainer"].callback_metrics.keys()


TWO_PROCESSES = """
import json, sys
torch.manual_seed(0)
devices = int(sys.argv[1])
trainer = lightning.Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
                            logger=False, enable_checkpointing=False, enable_progress_bar=False)
[found] = trainer.validate(Multitask(), DataLoader(val, batch_size=1, collate_fn=val.collate), verbose=False)
if trainer.is_global_zero:
    json.dump(found, open(sys.argv[2], "w"))
"""


@pytest.mark.slow
def test_lightning_logs_the_same_metrics_with_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    [program] = PROGRAMS["Lightning Trainer"]
    (tmp_path / "program.py").write_text(program.partition("trainer = ")[0] + TWO_PROCESSES)
    found = []
    for devices in ("1", "2"):
        subprocess.run([sys.executable, "program.py", devices, f"{devices}.json"], cwd=tmp_path, check=True,
                       env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
        found.append(json.loads((tmp_path / f"{devices}.json").read_text()))
    assert found[0].keys() >= {"semseg/mIoU", "depth/RMSE"}
    assert found[1] == pytest.approx(found[0], rel=1e-4, nan_ok=True)


def test_a_dataset_of_ones_own(tmp_path: Path) -> None:
    import polyptych

    [program] = PROGRAMS["Your data in our training"]
    (tmp_path / "my_data.py").write_text(program)
    data = polyptych.dataset("python", "train", ["semseg"], source=f"{tmp_path / 'my_data.py'}:mine")
    assert len(data) == 4 and data.tasks["semseg"].channels == 2


def test_the_table_counts_lines_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    program = importlib.import_module("lines_of_code")
    said = [int(number) for number in re.findall(r"^\| with .* \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)]
    assert said == [program.lines(program.ours), program.lines(program.theirs)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel, as a reader has it; what the wheel needs is lent to it."""
    pytest.importorskip("build")
    pytest.importorskip("twine")
    place, run = tmp_path_factory.mktemp("wheel"), partial(subprocess.run, check=True, capture_output=True, text=True)
    source = place / "source"  # a build leaves folders behind
    source.mkdir()
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place, source])
    [wheel] = place.glob("*.whl")
    run([sys.executable, "-m", "twine", "check", "--strict", wheel])
    run([sys.executable, "-m", "venv", place / "env"])
    python = place / "env" / "bin" / "python"
    run([python, "-m", "pip", "install", "--no-deps", "--no-index", wheel])
    [packages] = (place / "env").glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return python


def in_fresh_environment(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run outside of the repository, which must not be found."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_wheel_holds_what_it_needs(installed: Path, tmp_path: Path) -> None:
    program = ("import importlib.metadata, pathlib, polyptych; home = pathlib.Path(polyptych.__file__).parent; "
               "files = {p.relative_to(home).as_posix() for p in home.rglob('*') if p.suffix != '.pyc'}; "
               "print(home); print(polyptych.__version__, importlib.metadata.version('polyptych')); "
               "print(*sorted(files), sep='\\n')")
    done = in_fresh_environment([installed, "-c", program], tmp_path)
    assert done.returncode == 0, done.stderr
    home, versions, *files = done.stdout.splitlines()
    assert home.startswith(str(installed.parents[1])) and len({*versions.split()}) == 1
    ours = ROOT / "src" / "polyptych"
    assert {path.relative_to(ours).as_posix() for path in ours.rglob("*") if path.suffix != ".pyc"
            and path.name != "__pycache__"} <= {*files}
    done = in_fresh_environment([installed.parent / "polyptych", "--version"], tmp_path)
    assert done.stdout.split() == versions.split()[:1]


@pytest.mark.slow
@pytest.mark.parametrize("checker", [["mypy", "--strict", "--disable-error-code", "import-untyped",
                                      "--python-executable"], ["pyright", "--pythonpath"]], ids=["mypy", "pyright"])
def test_type_checkers_find_nothing(checker: list[str], installed: Path, tmp_path: Path) -> None:
    pytest.importorskip(checker[0])  # (accelerate has no py.typed, which is no fault of the program)
    for number, program in enumerate("\n".join(programs) for programs in PROGRAMS.values() if programs):
        imports = "" if "import polyptych" in program else "import polyptych\n"
        defined = "" if "images, ids" not in program else "import torch\n"
        (tmp_path / f"program{number}.py").write_text(imports + defined + program)
    for page in ("README.md", "docs/diagnose.md"):
        [program] = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        (tmp_path / f"{Path(page).stem.lower()}.py").write_text(program)
    done = in_fresh_environment([sys.executable, "-m", *checker, installed, "."], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
