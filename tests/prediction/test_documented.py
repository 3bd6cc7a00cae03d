"""What docs/predict.md shows is run as it stands: every command and every program."""

from __future__ import annotations

import re
import shlex
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyptych.cli import main
from polyptych.prediction.video import Moment, Writer

PAGE = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()


@pytest.fixture
def desk(tmp_path, monkeypatch, run_folder) -> Path:
    """A folder with the files that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_folder, tmp_path / "runs" / "rooms")
    random = np.random.default_rng(0)
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    for name, size in (("photo.jpg", (60, 80)), ("large.jpg", (150, 200)), ("folder/b.png", (40, 50)),
                       ("folder/deep/a.png", (40, 50))):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(name)
    return tmp_path


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found


def test_programs(desk, capsys) -> None:
    scope: dict = {}
    for program in blocks("python"):
        exec(compile(program, "predict.md", "exec"), scope)
    said = capsys.readouterr().out
    assert "('semseg', 'depth', 'normals', 'boundaries', 'parts', 'saliency', 'keypoints')" in said
    assert "(60, 80) float32 m" in said and "(60, 80, 3)" in said and "(4800, 3) (4800, 3)" in said
    assert {"everything.png", "depth.png", "semseg_over_image.png"} <= {p.name for p in desk.iterdir()}
    assert (desk / "out" / "photo_keypoints.npy").is_file() and (desk / "out" / "photo.ply").is_file()


def test_commands(desk) -> None:
    pytest.importorskip("av")
    with Writer(desk / "clip.mp4", Fraction(10)) as film:
        for index in range(3):
            film.write(np.full((48, 64, 3), 80 * index, np.uint8), Moment(index, Fraction(1, 10)))
    commands = [line for block in blocks("bash") for line in block.splitlines() if line]
    assert len(commands) == 7
    for command in commands:
        program, *arguments = shlex.split(command, comments=True)
        assert program == "polyptych" and main(arguments) == 0, command
    names = {path.name for path in (desk / "predictions").iterdir()}
    assert {"photo_depth.png", "contact_sheet.png", "a_semseg.npy", "clip_panels.mp4", "clip_overlay.mp4", "photo.ply",
            "photo_depth_16bit.png", "large_normals.png"} <= names


def test_the_table_of_arrays(run_folder) -> None:
    """Every task of the catalog has its line."""
    from polyptych.tasks._base import CATALOG

    listed = {name for line in PAGE.splitlines() if line.startswith("| ") and ("(h w" in line or "(k" in line)
              for name in line.split("|")[1].replace(" ", "").split(",")}
    assert listed == set(CATALOG.names())
