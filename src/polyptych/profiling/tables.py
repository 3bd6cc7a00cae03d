"""A profile for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table

from polyptych.profiling.profile import Profile
from polyptych.profiling.structure import Node


def terminal_profile(profile: Profile) -> RenderableType:
    """A profile as tables for rich to render."""
    s = profile.setting
    about = (f"{s.size[0]}x{s.size[1]}, {s.precision}{', channels_last' if s.channels_last else ''}, torch {s.torch}, "
             f"{s.device}: {s.hardware}, {s.threads} CPU thread{'s' if s.threads > 1 else ''}")
    return Group(f"[dim]{about}[/dim]", "", _parts(profile), "", _sharing(profile), "", *_uncounted(profile), "",
                 _memory(profile), "", _time(profile), "", _tree(profile))


def cost_table(title: str, profiles: dict[str, Profile]) -> RenderableType:
    """Several networks, a row for each."""
    table = _grid(title, "parameters", "multiply-adds", "inference", "training", "latency")
    for name, profile in profiles.items():
        memory = profile.memory
        table.add_row(name, count_text(profile.parameters), count_text(profile.multiply_adds),
                      bytes_text(memory.inference), "" if memory.training is None else bytes_text(memory.training),
                      seconds_text(profile.latency.median))
    about = next(iter(profiles.values())).setting
    return Group(f"[dim]one image of {about.size[0]}x{about.size[1]}, {about.precision}, {about.device}: "
                 f"{about.hardware}[/dim]", table)


def count_text(number: float) -> str:
    """Three or more digits and a unit: ``4.09 M``."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{_digits(number / factor)} {unit}"
    return f"{number:.0f}"


def bytes_text(number: float) -> str:
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= factor:
            return f"{_digits(number / factor)} {unit}"
    return f"{number:.0f} B"


def seconds_text(seconds: float) -> str:
    return f"{_digits(1000 * seconds)} ms" if seconds < 1 else f"{_digits(seconds)} s"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _grid(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index else "left", no_wrap=True)
    return table


def _share(number: int, whole: int) -> str:
    return f"[dim]{100 * number / whole:.1f}%[/dim]" if whole else ""


def _parts(profile: Profile) -> Table:
    table = _grid("part", "parameters", "", "multiply-adds", "")
    for part in profile.parts:
        table.add_row(part.name, count_text(part.parameters), _share(part.parameters, profile.parameters),
                      count_text(part.multiply_adds), _share(part.multiply_adds, profile.multiply_adds))
    table.add_row("[bold]network", f"[bold]{count_text(profile.parameters)}", "",
                  f"[bold]{count_text(profile.multiply_adds)}", "")
    return table


def _sharing(profile: Profile) -> Table:
    sharing, table = profile.sharing, _grid("used by", "parameters", "")
    rows = [("all tasks", sharing.shared), ("several tasks", sharing.partly),
            *((f"{task} alone", number) for task, number in sharing.private.items()),
            ("auxiliary predictions alone", sharing.auxiliary), ("no prediction", sharing.unused)]
    for name, number in rows:
        if number:
            table.add_row(name, count_text(number), _share(number, profile.parameters))
    return table


def _uncounted(profile: Profile) -> Iterator[str]:
    """What the number of multiply-adds leaves out."""
    by_kind: dict[str, list[str]] = {"unknown": [], "per_element": [], "movement": []}
    for operator in profile.uncounted:
        by_kind[operator.kind].append(f"{operator.name.rpartition('aten.')[2]} ({operator.calls})")
    if by_kind["unknown"]:
        yield f"[bold yellow]arithmetic missing from the multiply-adds:[/] {', '.join(by_kind['unknown'])}"
    yield f"[dim]not counted by convention: {', '.join(by_kind['per_element']) or 'nothing'}[/dim]"


def _memory(profile: Profile) -> Table:
    memory = profile.memory
    table = _grid(f"memory, {_images(memory.batch_size)}", "")
    table.add_row("activations, inference", bytes_text(memory.inference))
    if memory.training is not None:
        table.add_row("activations, training", bytes_text(memory.training))
    table.add_row("parameters and buffers", bytes_text(memory.parameters + memory.buffers))
    table.add_row("gradients and Adam", bytes_text(memory.gradients + memory.optimizer))
    return table


def _time(profile: Profile) -> Table:
    latency, throughput = profile.latency, profile.throughput
    table = _grid("time", "")
    table.add_row(f"latency, 1 image, median of {latency.runs}", seconds_text(latency.median))
    table.add_row("10th to 90th percentile",
                  f"{seconds_text(latency.percentile_10)} to {seconds_text(latency.percentile_90)}")
    for rate in throughput.rates:
        best = " [dim](best)[/dim]" if rate == throughput.best else ""
        table.add_row(f"throughput, {_images(rate.batch_size)}{best}", f"{_digits(rate.images_per_second)} images/s")
    table.add_row(f"[dim]larger batches: stopped by {throughput.stopped_by}[/dim]", "")
    return table


def _images(number: int) -> str:
    return "1 image" if number == 1 else f"{number} images"


def _tree(profile: Profile) -> Table:
    table = _grid("module", "parameters", "", "multiply-adds", "")

    def add(node: Node, level: int) -> None:
        table.add_row(f"{'  ' * level}{node.name} [dim]{node.type}[/dim]",
                      count_text(node.parameters), _share(node.parameters, profile.parameters),
                      count_text(node.multiply_adds), _share(node.multiply_adds, profile.multiply_adds))
        for child in node.children:
            add(child, level + 1)

    add(profile.tree, 0)
    return table
