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

ROOT = Path(__file__).parents[1]
FILES = re.compile(r"`src/(polyptych/\S+\.py)`\n\n```python\n(.*?)```", re.DOTALL)


def test_the_worked_example_trains(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shutil.copytree(ROOT / "src" / "polyptych", tmp_path / "polyptych", ignore=shutil.ignore_patterns("__pycache__"))
    found = FILES.findall(text)
    assert len(found) == 5
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
