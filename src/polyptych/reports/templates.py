"""Pages from templates. Everything that a template prints is escaped for its language: names and paths come from
outside.

A page extends ``base.html.j2``, which brings the style sheet (``style.css``), and may import ``tables.html.j2``."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from polyptych.metrics._accumulation import shown_name
from polyptych.reports.tables import escape_markdown


class _Compiled(jinja2.BytecodeCache):
    """Compiled templates of this process: compiling takes longer than rendering, and every page has helpers, and so an
    environment, of its own."""

    def __init__(self) -> None:
        self.code: dict[str, bytes] = {}

    def load_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        if bucket.key in self.code:
            bucket.bytecode_from_string(self.code[bucket.key])

    def dump_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        self.code[bucket.key] = bucket.bytecode_to_string()


_COMPILED = _Compiled()


def render(template: str, helpers: dict[str, Any], *, package: str = __package__, **values: Any) -> str:
    """Render a page.

    Args:
        template: a file of the package, or of this one; its name says whether it is HTML or Markdown.
        helpers: functions and constants for the template.
        package: package with the page's own templates.
        values: the contents of the page.
    """
    markdown = template.endswith(".md.j2")
    loaders = [jinja2.PackageLoader(name, "") for name in (package, __package__)]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=not markdown, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
        finalize=_escape_unless_markup if markdown else None, bytecode_cache=_COMPILED)
    environment.globals.update(helpers)
    environment.filters["shown_name"] = shown_name
    return environment.get_template(template).render(values)


def _escape_unless_markup(value: Any) -> Any:
    return value if isinstance(value, Markup) else escape_markdown(str(value))
