"""The loop in docs/balancers.md runs as it stands."""

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
