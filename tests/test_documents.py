"""What README and CONTRIBUTING promise is what the project does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_continuous_integration_runs_the_readme_test_command() -> None:
    command = next(line for line in (ROOT / "README.md").read_text().splitlines() if "-m pytest" in line)
    prepared, tests = command.rsplit(" && ", 1)
    script = (ROOT / ".ci" / "run").read_text()
    assert f"\n{prepared} ||" in script and f" {tests} " in script and "\ngroup fast\n" in script


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md",
                                  *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_commands_of_the_readme_parse() -> None:
    """Every command that README shows is one that exists."""
    from polyptych.cli import commands

    shown = re.findall(r"^polyptych ([\w-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert shown and set(shown) <= commands().keys()


def test_files_say_what_they_are() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_no_branch_on_a_task_outside_its_own_file() -> None:
    names = "|".join(p.stem for p in (ROOT / "src/polyptych/tasks").glob("[!_]*.py"))
    pattern = re.compile(rf"(==|!=) ?['\"]({names})['\"]")
    for path in (ROOT / "src").rglob("*.py"):
        if path.parent.name not in ("tasks", "recipes") and "datasets" not in path.parts:
            assert not pattern.search(path.read_text()), path
