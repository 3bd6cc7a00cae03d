"""Docstrings on the site: references that Sphinx would resolve, ``:class:`x```, become plain code."""

from __future__ import annotations

import re
from typing import Any

import griffe


def plain(text: str) -> str:
    return re.sub(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`", r"`\1`", text)


class Roles(griffe.Extension):
    """Applied by mkdocstrings to everything that it reads."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)
