"""Every adapter says what the list and the page need, and its tables can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyptych.cli import main
from polyptych.protocols.catalog import PROTOCOLS
from polyptych.published._base import CATALOG
from polyptych.recipes._catalog import names as recipes
from polyptych.renaming import pattern

PAGE = Path(__file__).parents[2] / "docs" / "published.md"


@pytest.mark.parametrize("name", CATALOG.names())
def test_an_adapter_is_whole(name: str) -> None:
    repository = CATALOG.load(name)
    assert repository.page.startswith("https://") and repository.license and repository.files and repository.__doc__
    assert f"`{name}`" in PAGE.read_text()
    assert {row.protocol for row in repository.rows} <= PROTOCOLS.keys()
    assert set(repository.order) <= repository.names.keys()
    for form in repository.forms:
        assert set(form.recipes or repository.recipes) <= set(recipes())
        for text in (*form.signs, *form.never, *form.outputs, *form.left_out, *(rule.theirs for rule in form.rules)):
            pattern(text)
        assert ("{task}" in form.outputs[0]) == (form.tasks is None and "decoder." not in form.outputs[0])


def test_the_list_names_repositories_networks_and_licenses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "published"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for repository in map(CATALOG.load, CATALOG.names()):
        assert repository.page in said and repository.license.partition(";")[0] in said
        assert all(form.name in said for form in repository.forms)
