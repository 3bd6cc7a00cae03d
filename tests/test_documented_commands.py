"""Every command that a document or a recipe shows is one that the command line takes, up to where the work begins."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from own_data_files import write_garden
from polyptych import cli
from polyptych.balancers._base import CATALOG as BALANCERS
from polyptych.datasets._folder.describing import describe
from polyptych.datasets._folder.fixture import LAYOUTS as FIXTURES
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.errors import InputError
from polyptych.recipes import _catalog as recipes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAPERS = ROOT / "docs" / "from-paper-to-command.md"


def shown(text: str) -> Iterator[str]:
    """Commands in blocks, their lines joined and without comments, and those between backquotes."""
    text = re.sub(r"\\\n\s*", " ", text)
    # Of every block its language, or the end of one in Python would be taken for the beginning of the next.
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    for block in (block for language, block in blocks if language in ("", "bash")):
        yield from (line.partition(" #")[0].strip() for line in block.splitlines() if line.startswith("polyptych "))
    yield from re.findall(r"`+(polyptych [^`]+)`+", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


COMMANDS = sorted({(page.name, " ".join(command.split())) for page in PAGES for command in shown(page.read_text())}
                  | {(f"{path.stem}.py", " ".join(command.split()))
                     for path in sorted((ROOT / "src/polyptych/recipes").glob("*.py"))
                     for command in shown(path.read_text())})
RUNS = {command: page for page, command in COMMANDS  # one of the pages that show it
        if command.split()[1] in ("train", "compare") and len(command.split()) > 2}
FIRST_WORDS = {*cli.commands(), "--help", "--version", "COMMAND"}


class Begun(Exception):
    """The work of a command was reached."""


@pytest.fixture
def stop_at_the_work(monkeypatch) -> None:
    def stop(*arguments, **options):
        raise Begun

    for place in ("polyptych.training.train", "polyptych.comparison.compare.compare"):
        monkeypatch.setattr(place, stop)


@pytest.fixture(scope="session")
def own_data(tmp_path_factory) -> Path:
    """A folder with the data sets that the pages train on."""
    folder = tmp_path_factory.mktemp("own")
    write_garden(folder / "garden")
    for name in ("street", "clothing"):
        FIXTURES[name](folder / name)
        (folder / name / "dataset.toml").write_text(describe(folder / name).text)
    return folder


@pytest.mark.parametrize(("command", "page"), RUNS.items())
def test_runs_and_comparisons_parse(command: str, page: str, stop_at_the_work, own_data: Path, monkeypatch) -> None:
    monkeypatch.chdir(own_data)
    arguments = shlex.split(command)[1:]
    if arguments[1] == "DIR" or any(
            word in ("--from", "...", "--help") or (word.isupper() and word != "DIR") for word in arguments[1:]):
        pytest.skip("a form, not a command")
    if any(word.endswith((".json", ".toml")) or ".py:" in word for word in arguments):
        pytest.skip("needs a file that another command, or the reader, writes")
    with pytest.raises(Begun):
        code = cli.main(arguments)
        pytest.fail(f"{page}: exit code {code}")


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_exist(page: str, command: str) -> None:
    assert shlex.split(command)[1] in FIRST_WORDS, page


def test_every_recipe_encoder_decoder_and_balancer_is_among_the_papers() -> None:
    text = PAPERS.read_text()
    for name in recipes.names():
        assert re.search(rf"\b{name}\b", text), f"recipe {name}"
    for catalog in (ENCODERS, DECODERS, BALANCERS):
        for name in catalog.names():
            words = name.replace("_", "[ _-]?")
            assert re.search(words, text, re.IGNORECASE), f"{catalog.kind} {name}"


def test_a_wrong_command_would_be_found(stop_at_the_work, capsys) -> None:
    assert cli.main(["train", "rooms", "--encoder.private", "1"]) == 2
    assert cli.main(["train", "nyuv3"]) == 2
    with pytest.raises(InputError):
        recipes.load("nyuv3")
