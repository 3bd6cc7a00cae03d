"""The worked example of CONTRIBUTING.md runs as written."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = re.compile(r"`src/(polyptych/\S+\.py)`\n\n```python\n(.*?)```", re.DOTALL)


def copy_package(folder: Path) -> None:
    """With what is compiled of it, which stays valid because files keep their times."""
    shutil.copytree(ROOT / "src" / "polyptych", folder / "polyptych",
                    ignore=shutil.ignore_patterns("*.opt-*.pyc"))


def test_the_worked_example_trains(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    copy_package(tmp_path)
    found = FILES.findall(text)
    assert len(found) == 6
    for name, code in found:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(code)
    command = re.search(r"^polyptych (train rooms --dataset discs .*)$", text, re.MULTILINE)[1]  # type: ignore[index]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    small = ["--steps", "2", "--batch-size", "2", "--size", "48", "64",
             "--backbone.model", "test_resnet", "--out", "run", "--monitoring.trivial-samples", "4",
             "--loading.workers", "0", "--monitoring.examples", "1",
             "--decoder.no-bias"]
    done = subprocess.run([sys.executable, "-m", "polyptych", *shlex.split(command), *small], cwd=tmp_path,
                          env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "evaluation" / "test.json").read_text())
    assert result["protocol"] == "discs-1" and set(result["tasks"]) == {"semseg", "brightness"}
    listed = subprocess.run([sys.executable, "-m", "polyptych", "list", "balancers"], cwd=tmp_path, env=environment,
                            capture_output=True, text=True, timeout=60)
    assert "dice" in listed.stdout and "2111.10603" in listed.stdout


MINIATURE = """
import sys
from polyptych.cli import main
for arguments in ("data fixture nyuv2 mini --layout npz", "data info nyuv2",
                  "data verify nyuv2 --root mini --subset --dataset.layout npz"):
    sys.argv[1:] = arguments.split()
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, arguments
from polyptych.record import decode, encode
from polyptych.datasets._base import Dataset
from polyptych.datasets.nyuv2 import NYUv2
found = NYUv2.Config(root="mini").build(split="test", tasks=("semseg", "boundaries"))
print(found.protocol, found.read(1).info.id, sorted(found.labels))
print(decode(Dataset.Config, encode(NYUv2.Config(layout="npz")), "run.json").layout)
"""


@pytest.mark.grid
def test_a_layout_is_one_new_file(tmp_path: Path) -> None:
    """The example of a layout is a choice, is described, writes its miniature and is found without being named."""
    copy_package(tmp_path)
    written = dict(FILES.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8")))
    name = "polyptych/datasets/_nyuv2/layouts/npz.py"
    (tmp_path / name).write_text(written[name], "utf-8")
    done = subprocess.run([sys.executable, "-c", MINIATURE], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert "mini, layout npz" in done.stdout and "frames/ with .npz files" in done.stdout
    assert "8 of 8 opened with semseg, depth, boundaries" in done.stdout and "no fault" in done.stdout
    assert "nyuv2-40-48x64-npz 0002 ['boundaries', 'depth', 'semseg']\nnpz\n" in done.stdout
