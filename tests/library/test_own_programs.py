"""The programs of docs/own-program.md run as they stand, and a person's type checker finds nothing in them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "own-program.md"
PROGRAMS = {title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
            for title, _, text in (part.partition("\n") for part in PAGE.read_text().split("\n## ")[1:])}
LIBRARIES = {"Lightning Trainer": "lightning", "Lightning Fabric": "lightning", "Accelerate": "accelerate"}
OWN_LOOPS = ["Plain PyTorch, with a balancer", *LIBRARIES]


def test_short_programs() -> None:
    scope: dict = {"__name__": "page"}
    for program in (*PROGRAMS["A network in three lines"], *PROGRAMS["Tasks: losses, metrics, colors"]):
        exec(compile(program, PAGE.name, "exec"), scope)
    assert scope["picture"].shape == (64, 96, 3) and set(scope["losses"]) == {"semseg", "depth"}


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


def test_a_dataset_of_ones_own(tmp_path: Path) -> None:
    import polyptych

    [program] = PROGRAMS["Your data in our training"]
    (tmp_path / "my_data.py").write_text(program)
    data = polyptych.dataset("python", "train", ["semseg"], source=f"{tmp_path / 'my_data.py'}:mine")
    assert len(data) == 4 and data.tasks["semseg"].channels == 2


@pytest.mark.slow
@pytest.mark.parametrize("checker", [["mypy", "--strict", "--disable-error-code", "import-untyped"], ["pyright"]],
                         ids=["mypy", "pyright"])
def test_type_checkers_find_nothing(checker: list[str], tmp_path: Path) -> None:
    pytest.importorskip(checker[0])  # (accelerate has no py.typed, which is no fault of the program)
    for number, program in enumerate(program for programs in PROGRAMS.values() for program in programs):
        imports = "" if "import polyptych" in program else "import polyptych\n"
        defined = "" if "images, ids" not in program else "import torch\n"
        (tmp_path / f"program{number}.py").write_text(imports + defined + program)
    done = subprocess.run([sys.executable, "-m", *checker, "."], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
