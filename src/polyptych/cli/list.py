"""List everything that can be chosen by name: polyptych list [decoders ...]"""

from __future__ import annotations

from dataclasses import dataclass, field

import tyro

from polyptych.cli._parsing import parse
from polyptych.component import Catalog, Component, Summary
from polyptych.errors import InputError, nearest

ALL = ("recipes", "tasks", "datasets", "backbones", "encoders", "decoders", "balancers", "protocols")
KINDS = (*ALL, "published")  # the last tells more than a line of each, which takes importing them


@dataclass(frozen=True)
class Arguments:
    kinds: tyro.conf.Positional[tuple[str, ...]] = field(default=ALL)
    """Catalogs to list (default: all but `published`, the networks whose checkpoints can be imported)."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "list")
    for kind in options.kinds:
        if kind not in KINDS:
            raise InputError(f"catalog '{kind}'", "an unknown name", nearest(kind, KINDS), "see `polyptych list`")
    from rich.console import Console
    from rich.table import Table

    for kind in options.kinds:
        if kind == "published":
            _show_published()
            continue
        table = Table(title=kind, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        for entry in descriptions(kind):
            table.add_row(f"[bold]{entry.name}", entry.summary, f"[dim]{entry.source}")
        Console().print(table, "")


def _show_published() -> None:
    """Whose checkpoints can come in, their licenses, where the authors keep them, and what they reach."""
    from rich.console import Console
    from rich.table import Table

    from polyptych.published._base import CATALOG

    console = Console()
    for repository in map(CATALOG.load, CATALOG.names()):
        table = Table(title=f"published: {repository.component_name()}, {repository.page}", title_justify="left",
                      box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_row("[bold]networks", "; ".join(form.name for form in repository.forms))
        table.add_row("[bold]files", repository.files)
        table.add_row("[bold]license", repository.license)
        for row in repository.rows:
            table.add_row("[bold]published", f"{row.network}: {row.numbers} [dim]{row.protocol}[/dim]")
        table.add_row("[bold]commands", "polyptych import FILE --out RUN --dataset.root DIR; polyptych evaluate RUN")
        console.print(table, "")


def descriptions(kind: str) -> list[Summary]:
    if kind == "recipes":
        from polyptych.recipes._catalog import descriptions

        return descriptions()
    if kind == "protocols":
        from polyptych.protocols.catalog import PROTOCOLS

        return [Summary(protocol.id, protocol.summary, protocol.source) for protocol in PROTOCOLS.values()]
    catalog: Catalog[Component] = Catalog(kind.removesuffix("s"), f"polyptych.{kind}")
    return [catalog.describe(name) for name in catalog.names()]
