"""The programs in docs/balancers.md run as they stand."""

from __future__ import annotations

import math
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "balancers.md"


def test_the_documented_loop(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    program = PAGE.read_text().partition("```python\n")[2].partition("```")[0]
    assert len([line for line in program.splitlines() if line]) <= 25
    scope: dict = {}
    exec(compile(program, PAGE.name, "exec"), scope)
    assert set(scope["weights"]) == {"semseg", "depth"} and all(map(math.isfinite, scope["weights"].values()))
    assert (tmp_path / "state.pt").is_file() and scope["balancer"].steps == 10
    assert "semseg" in capsys.readouterr().out


def test_the_documented_float16_loop() -> None:
    programs = PAGE.read_text().split("```python\n")[1:]
    assert len(programs) == 2, "a further program needs a test"
    scope: dict = {}
    exec(compile(programs[1].partition("```")[0], PAGE.name, "exec"), scope)
    assert abs(sum(scope["weights"].values()) - 1) < 1e-9
    assert scope["balancer"].steps == 10 and scope["balancer"].fallbacks == 0 and scope["scaler"].get_scale() == 1024
