"""Programs of README, the overview and the pages on search run as they stand. (Other pages have tests of their own.)"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from polyptych.recipes import rooms as recipe
from polyptych.run import with_tasks

ROOT = Path(__file__).parents[1]


def run_programs(page: str) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    programs = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert programs
    for program in programs:
        exec(compile(program, page, "exec"), scope)
    return scope


def test_search(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = run_programs("docs/search.md")
    found["network"].eval(), found["supermodel"].eval()
    with torch.no_grad():
        expected = found["supermodel"](found["image"], found["policy"])
        for task, maps in found["network"](found["image"]).items():
            assert all(torch.equal(x, y) for x, y in zip(maps, expected[task], strict=True))
    assert Path("policy.json").is_file()


def test_layer_lists() -> None:
    assert run_programs("docs/searching.md")["backbone"](torch.randn(1, 3, 64, 96)) is not None


def test_diagnose(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    found = run_programs("docs/diagnose.md")["diagnosis"].findings
    assert "The weighted gradient of right is" in capsys.readouterr().out and Path("diagnosis/diagnosis.json").is_file()
    assert found.task_rows[1].share > 0.8


NOTEBOOK = json.loads((ROOT / "docs/notebooks/rooms.ipynb").read_text())["cells"]


def test_the_notebook_shows_what_it_does() -> None:
    """It is kept as it was executed: without errors, and with its pictures."""
    code = [cell for cell in NOTEBOOK if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert all(output.get("name") != "stderr" for output in outputs)


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch, capsys) -> None:
    """On fewer rooms; cell by cell, as Jupyter would, without needing it."""
    matplotlib.use("agg")
    scope: dict[str, Any] = {}
    for cell in NOTEBOOK:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]).replace("frames=256", "frames=32"), "rooms.ipynb", "exec"), scope)
    assert {name: len(curve) for name, curve in scope["curve"].items()} == dict.fromkeys(scope["names"], 8)
    assert len(scope["painted"]) == 3 and "cosine of" in capsys.readouterr().out


def test_readme() -> None:
    found = run_programs("README.md")
    assert found["network"](torch.rand(1, 3, 64, 64)).keys() == found["metrics"].keys() == {"semseg", "depth"}


@pytest.mark.slow
def test_overview(tmp_path, monkeypatch, small_run, capsys) -> None:
    """On rooms that are small enough."""
    monkeypatch.chdir(tmp_path)
    rarely = replace(small_run.monitoring, validate_every=100, save_every=100)
    small = with_tasks(replace(small_run, monitoring=rarely), ["depth", "normals"])
    monkeypatch.setattr(recipe, "rooms", lambda: small)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save("photo.jpg")
    found = run_programs("docs/contents.md")
    assert set(found["scene"].tasks) == {"depth", "normals"} and capsys.readouterr().out.endswith(" m\n")
