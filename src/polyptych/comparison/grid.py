"""What to compare: every method (network x balancer) with every seed, each run in its own folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

from polyptych import __version__
from polyptych.balancers.equal import Equal
from polyptych.balancers.fixed import Fixed
from polyptych.comparison.records import check, refuse_other_numbers
from polyptych.comparison.specification import spell, with_balancer, with_network
from polyptych.decoders._base import Decoder
from polyptych.decoders.heads import Heads
from polyptych.errors import InputError
from polyptych.record import encode, first_difference, read_json, write_json
from polyptych.run import Run, run_with_data_of, with_components


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        network, balancer: labels, as the user wrote them.
        run: its settings; the seed is set for each run.
        reference: whether it is the single-task reference that delta_mtl compares with.
        settings: options for which tuning chose another value than the recipe: ``{"learning-rate": 0.003}``.
        untuned: whether it is a row with the recipe's settings in a tuned comparison.
    """

    network: str
    balancer: str
    run: Run
    reference: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    untuned: bool = False

    @property
    def label(self) -> str:
        return row_label(self.network, self.balancer, self.untuned)


def row_label(network: str, balancer: str, untuned: bool = False) -> str:
    return f"{network} · {balancer}{' · untuned' if untuned else ''}"


@dataclass(frozen=True)
class Entry:
    """One run of the grid and its folder.

    Attributes:
        record: path of its :class:`polyptych.comparison.records.Record`, which is then all of it that must be kept;
            None for a run whose folder is kept, with its own report.
        trial: whether it is a tuning trial: its validation results choose settings of other runs, and it is not tested.
        keep: whether its weights stay in the folder although it has a record.
    """

    method: Method
    seed: int
    folder: Path
    record: Path | None = None
    trial: bool = False
    keep: bool = False

    @property
    def run(self) -> Run:
        return dataclasses.replace(self.method.run, seed=self.seed)

    @property
    def label(self) -> str:
        return f"{self.method.label} · seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Trained, tested (once, at the end), and reported or recorded. These files appear whole or not at all."""
        if self.record is not None:
            return self.record.exists()
        return self.tested and (self.folder / "report.html").exists()

    @property
    def tested(self) -> bool:
        """Whether it has numbers."""
        return self.finished if self.record is not None else (self.folder / "evaluation" / "test.json").exists()


@dataclass(frozen=True)
class Grid:
    """The grid of a comparison. The single-task reference is its first method."""

    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    entries: tuple[Entry, ...]

    @property
    def base(self) -> Run:
        return self.methods[0].run

    def of(self, method: Method) -> list[Entry]:
        return [entry for entry in self.entries if entry.method is method]

    def record(self, out: Path) -> None:
        """Write ``plan.json``: every run with all its choices, so that a machine elsewhere can train any of them."""
        write_json(out / "plan.json", {"version": __version__, "runs": [
            {"network": entry.method.network, "balancer": entry.method.balancer, "seed": entry.seed,
             "reference": entry.method.reference, "folder": entry.folder.relative_to(out).as_posix(),
             "run": encode(entry.run)} for entry in self.entries]})


def make_grid(base: Run, out: Path, networks: Sequence[str], balancers: Sequence[str], seeds: Sequence[int],
              records: Path | None = None) -> Grid:
    """The grid, with the single-task reference in front.

    Args:
        base: the recipe with its overrides.
        out: folder of the comparison; runs go to ``out/runs``.
        networks: as :mod:`polyptych.comparison.specification` writes them; none is the recipe's own.
        balancers: likewise.
        records: folder of records; None keeps the folder of every run instead.

    Raises:
        InputError: a name is unknown, something is listed twice, or a folder holds another run.
    """
    networks = networks or [spell(base.encoder, base.decoder)]
    balancers = balancers or [spell(base.balancer)]
    if not seeds:
        raise InputError("--seeds", "no seed", "at least one", "for instance `--seeds 3`")
    for flag, values in (("--networks", networks), ("--balancers", balancers), ("--seeds", seeds)):
        refuse_repeats(flag, values)
    methods = [Method(network, balancer, with_balancer(with_network(base, network), balancer))
               for network, balancer in product(networks, balancers)]
    for one, other in combinations(methods, 2):
        if one.run == other.run:
            raise InputError("the grid", f"'{one.label}' and '{other.label}', which are the same",
                             "every method once", "remove one")
    methods = _with_reference(base, methods)
    return with_entries(methods, seeds, out, records)


def with_entries(methods: Sequence[Method], seeds: Sequence[int], out: Path, records: Path | None) -> Grid:
    """Every method with every seed.

    Raises:
        InputError: a folder or a record is of another run.
    """
    entries = tuple(
        Entry(method, seed, out / "runs" / run_name(method, seed),
              record=None if records is None else records / f"{run_name(method, seed)}.json", keep=seed == seeds[0])
        for method in methods for seed in seeds)
    for entry in entries:
        refuse_other_run(entry)
    return Grid(tuple(methods), tuple(seeds), entries)


def check_parts(grid: Grid, entries: Sequence[Entry] | None = None) -> None:
    """Open the data and build every network and balancer once, so that what cannot work is refused before anything
    is trained. If there is nothing left to train, neither is needed.

    Args:
        entries: the runs to train (default: the whole grid).

    Raises:
        InputError: a part cannot be built, or the data cannot be opened.
    """
    if all(entry.finished for entry in (grid.entries if entries is None else entries)):
        return
    tasks = grid.base.build_tasks(grid.base.build_dataset("train").labels)
    for method in grid.methods:
        method.run.build_network(tasks, pretrained=False)
        method.run.build_balancer(tasks)


def reference_run(base: Run) -> Run:
    """The recipe with a network per task: with its own decoder, or with plain heads if tasks refine each other in that
    decoder. A balancer with constant weights stays, because every task then trains as if alone; an adaptive one would
    couple the tasks, so equal weights replace it."""
    single = with_components(base, {"encoder": "single"})
    if single.decoder.owner.refines:
        single = dataclasses.replace(single, decoder=Heads.Config())
    return single if _constant(base) else dataclasses.replace(single, balancer=Equal.Config())


def _constant(run: Run) -> bool:
    return isinstance(run.balancer, Equal.Config | Fixed.Config)


def _with_reference(base: Run, methods: list[Method]) -> list[Method]:
    """A listed method with a network per task replaces the reference if the recipe has no heads for it: the heads are
    then the user's choice."""
    run = reference_run(base)
    if base.decoder.owner.refines:
        run = next((method.run for method in methods if _constant(method.run)
                    and method.run.encoder == run.encoder and not method.run.decoder.owner.refines), run)
    same = [method for method in methods if method.run == run]
    network = same[0].network if same else next(
        (method.network for method in methods if method.run.encoder == run.encoder
         and method.run.decoder == run.decoder), spell(run.encoder, *_unless_same(run.decoder, base.decoder)))
    reference = Method(network, same[0].balancer if same else spell(run.balancer), run, reference=True)
    return [reference, *(method for method in methods if method.run != run)]


def _unless_same(decoder: Decoder.Config, given: Decoder.Config) -> list[Decoder.Config]:
    return [] if decoder == given else [decoder]


def run_name(method: Method, seed: int) -> str:
    """A unique name for a run in a grid, which every file system accepts."""
    settings = [_safe(f"{name}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}")
                for name, value in method.settings.items()]
    return "--".join([*map(_safe, (method.network, method.balancer)), *settings, f"seed{seed}"])


def _safe(label: str) -> str:
    if re.fullmatch(r"[a-z0-9_.+=:-]{1,60}", label) and "--" not in label:
        return label.replace(":", ",")
    # A hash tells apart names that differ only in replaced characters.
    kept = re.sub(r"[^a-zA-Z0-9_.+=-]+", "_", label).replace("--", "-")[:50]
    return f"{kept}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def refuse_repeats(where: str, values: Sequence[Any]) -> None:
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        raise InputError(where, f"{repeated[0]} twice", "each of them once", "remove the repetition")


def refuse_other_run(entry: Entry) -> None:
    """Refuse an existing folder or record that is not of exactly the planned run."""
    if entry.record is not None and entry.record.exists():
        check(entry.record, entry.run)
        return
    if not (entry.folder / "run.json").exists():
        return
    found = run_with_data_of(entry.folder, entry.run)
    if difference := first_difference(entry.run.located(), found.located()):
        name, needed, got = difference
        raise InputError(entry.folder, f"a run of another recipe ({name} is {got})", f"{name} {needed}",
                         "choose another --out, or remove the folder")
    if (environment := entry.folder / "environment.json").exists() and entry.record is not None:
        refuse_other_numbers(entry.folder, read_json(environment).get("numerics", {}), entry.run)
