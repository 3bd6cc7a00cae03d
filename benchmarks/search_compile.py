"""How long it takes to make a search space of a backbone, for the smallest member of every family of timm.

    python benchmarks/search_compile.py                      # every family; prints a table and JSON
    python benchmarks/search_compile.py resnet34 mobilenetv2_100 mnasnet_100
    python benchmarks/search_compile.py --document docs/search_families.md --json families.json

The time is that of ``polyptych.search.compile``: capture, check against the network bit for bit at two sizes (of two
numbers of images where it takes one size only), units, supermodel. Building the network is not part of it. Families,
and which member is the smallest, are in ``timm_families.json`` (``--find`` looks again).
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from polyptych.errors import InputError
from polyptych.search import compile
from polyptych.search.capture.examples import same
from polyptych.search.capture.structure import take_apart
from polyptych.search.space.units import GRANULARITIES, find_units

FAMILIES = Path(__file__).with_name("timm_families.json")


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        seconds: best of the repeats.
        size: of the example image.
        units: by granularity.
        skips: regions that may be left out.
        any_size: whether the graph holds for other sizes too.
        closed: layers that lie in modules which stay whole, of all layers.
        reasons: by class of such modules, why.
        exact: whether all tasks get the network's own values, bit for bit, when everything is shared.
    """

    family: str
    model: str
    parameters: int
    seconds: float
    size: tuple[int, int]
    nodes: int
    units: dict[str, int]
    skips: int
    any_size: bool
    closed: tuple[int, int]
    reasons: dict[str, str]
    notes: tuple[str, ...]
    exact: bool
    failure: str = ""


def find() -> dict[str, str]:
    """The member of each family with the fewest parameters. Takes minutes: every model is built, without memory."""
    smallest: dict[str, tuple[int, str]] = {}
    for family in timm.list_modules():
        for name in timm.list_models(module=family):
            with torch.device("meta"):
                count = sum(p.numel() for p in timm.create_model(name).parameters())
            smallest[family] = min(smallest.get(family, (count, name)), (count, name))
    return {family: name for family, (_, name) in smallest.items()}


def measure(family: str, model: str, repeats: int) -> Row:
    torch.manual_seed(0)
    network = timm.create_model(model).eval()
    parameters = sum(p.numel() for p in network.parameters())
    layers = sum(isinstance(m, torch.nn.Linear | torch.nn.modules.conv._ConvNd) for m in network.modules())
    seconds = []
    try:
        for _ in range(repeats):
            start = time.perf_counter()
            supermodel = compile(network, ("first", "second"))
            seconds.append(time.perf_counter() - start)
    except InputError as error:
        return Row(family, model, parameters, 0.0, (0, 0), 0, {}, 0, False, (layers, layers), {}, (), False, str(error))
    capture = supermodel.capture
    units = {granularity: len(find_units(capture, granularity)) for granularity in GRANULARITIES}
    skips = sum(unit.skip is not None for unit in supermodel.units)
    image = torch.rand(1, *capture.shape[1:], generator=torch.Generator().manual_seed(1))
    supermodel.eval()
    with torch.no_grad():
        expected = take_apart(network(image))[0]
        got = supermodel(image, supermodel.space.all_shared())
    exact = all(same(take_apart(result)[0], expected) for result in got.values())
    return Row(family, model, parameters, min(seconds), (capture.shape[2], capture.shape[3]), len(capture.graph.nodes),
               units, skips, capture.any_size, (sum(c.layers for c in capture.closed), layers),
               {c.kind: c.reason for c in capture.closed}, capture.notes, exact)


def table(rows: list[Row]) -> str:
    lines = ["| family | smallest member | units (op / region / stage) | may skip | sizes "
             "| layers in closed modules | s |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        if row.failure:
            lines.append(f"| {row.family} | {row.model} | does not compile: {row.failure} | | | | |")
            continue
        counts = " / ".join(str(row.units[g]) for g in GRANULARITIES)
        sizes = "any" if row.any_size else f"{row.size[0]}x{row.size[1]}"
        closed, layers = row.closed
        reasons = "; ".join(f"`{kind}` ({reason.partition(' (')[0]})" for kind, reason in row.reasons.items())
        hidden = f"{closed} of {layers}: {reasons}" if closed else "0"
        cells = (row.family, row.model, counts, row.skips, sizes, hidden, f"{row.seconds:.2f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def summary(rows: list[Row]) -> str:
    compiled = [row for row in rows if not row.failure]
    exact = sum(row.exact for row in compiled)
    share = 100 * len(compiled) / len(rows)
    return (f"{len(compiled)} of {len(rows)} compile ({share:.1f} %), {exact} of them equal the network bit for bit;\n"
            f"{sum(row.any_size for row in compiled)} hold for any size; "
            f"{sum(row.closed[0] > 0 for row in compiled)} have layers in closed modules.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="models instead of the smallest of every family")
    parser.add_argument("--repeats", type=int, default=3, help="compile so often and take the best time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--find", action="store_true", help="look for the smallest members again")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--document", type=Path, help="write the table as a page of the documentation")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.find:
        FAMILIES.write_text(json.dumps(find(), indent=1) + "\n")
    chosen = {name: name for name in arguments.models} or json.loads(FAMILIES.read_text())
    rows = []
    for family, model in chosen.items():
        rows.append(measure(family, model, arguments.repeats))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        gc.collect()
    print(summary(rows))
    machine = {"timm": timm.__version__, "torch": torch.__version__, "threads": arguments.threads,
               "machine": platform.processor() or platform.machine()}
    if arguments.json:
        arguments.json.write_text(json.dumps({**machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if arguments.document:
        arguments.document.write_text(page(rows, machine))


def page(rows: list[Row], machine: dict[str, Any]) -> str:
    return f"""# Which families of timm compile

The smallest member of every family of timm {machine['timm']}, with torch {machine['torch']}, written by
`python benchmarks/search_compile.py --document docs/search_families.md`.
{summary(rows)}

Units are what a policy decides about, in the three granularities. *Sizes*: the graph holds for images of any size, or
for one (which the network itself wants, or the graph checks). *Layers in closed modules*: convolutions and linear
layers that lie inside of modules which stay whole, so that a policy decides about them together. Seconds are those of
`polyptych.search.compile` at the granularity `region`, {machine['threads']} thread.

{table(rows)}
"""


if __name__ == "__main__":
    main()
