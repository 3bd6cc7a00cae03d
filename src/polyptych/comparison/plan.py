"""What is to be compared: every method (network x balancer) with every seed, each run in a folder of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

from polyptych import __version__
from polyptych.balancers.equal import Equal
from polyptych.balancers.fixed import Fixed
from polyptych.comparison.specification import spell, with_balancer, with_network
from polyptych.decoders._base import Decoder
from polyptych.decoders.heads import Heads
from polyptych.errors import InputError
from polyptych.record import encode, write_json
from polyptych.run import Run, read_run, with_components


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        network, balancer: labels, as the user wrote them.
        run: its choices; the seed is set for each run.
        reference: this is the single-task reference that delta_mtl compares with.
    """

    network: str
    balancer: str
    run: Run
    reference: bool = False

    @property
    def label(self) -> str:
        return f"{self.network} · {self.balancer}"


@dataclass(frozen=True)
class Entry:
    """One run of the grid and its folder."""

    method: Method
    seed: int
    folder: Path

    @property
    def run(self) -> Run:
        return dataclasses.replace(self.method.run, seed=self.seed)

    @property
    def label(self) -> str:
        return f"{self.method.label} · seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Trained, tested (once, at the end) and reported. ``test.json`` appears whole or not at all."""
        return self.tested and (self.folder / "report.html").exists()

    @property
    def tested(self) -> bool:
        return (self.folder / "evaluation" / "test.json").exists()


@dataclass(frozen=True)
class Plan:
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


def make_plan(base: Run, out: Path, networks: Sequence[str], balancers: Sequence[str], seeds: Sequence[int]) -> Plan:
    """The grid, with the single-task reference in front.

    Args:
        base: the recipe with its overrides.
        out: folder of the comparison; runs go to ``out/runs``.
        networks: as :mod:`polyptych.comparison.specification` writes them; none is the recipe's own.
        balancers: likewise.

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
    entries = tuple(Entry(method, seed, out / "runs" / f"{folder_name(method)}--seed{seed}")
                    for method in methods for seed in seeds)
    for entry in entries:
        refuse_other_run(entry)
    return Plan(tuple(methods), tuple(seeds), entries)


def check_parts(plan: Plan) -> None:
    """Open the data and build every network and balancer once, so that what cannot work is refused before anything
    is trained.

    Raises:
        InputError: as the parts raise it.
    """
    tasks = plan.base.build_tasks(plan.base.build_dataset("train").labels)
    for method in plan.methods:
        method.run.build_network(tasks, pretrained=False)
        method.run.build_balancer(tasks)


def reference_run(base: Run) -> Run:
    """The recipe with a network per task: its own decoder, or plain heads where tasks refine each other in that one.
    Its balancer stays if the weights are constant, as then every task trains as if alone; one that adapts would tie the
    tasks together, so equal weights replace it."""
    single = with_components(base, {"encoder": "single"})
    if single.decoder.owner.refines:
        single = dataclasses.replace(single, decoder=Heads.Config())
    return single if _constant(base) else dataclasses.replace(single, balancer=Equal.Config())


def _constant(run: Run) -> bool:
    return isinstance(run.balancer, Equal.Config | Fixed.Config)


def _with_reference(base: Run, methods: list[Method]) -> list[Method]:
    """A listed method with a network per task takes the place of the reference where the recipe has no heads of its own
    for it: they are then the user's choice."""
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


def folder_name(method: Method) -> str:
    """A name for the runs of a method that every file system takes, and that no other method has."""
    return "--".join(_safe(label) for label in (method.network, method.balancer))


def _safe(label: str) -> str:
    if re.fullmatch(r"[a-z0-9_.+=:-]{1,60}", label) and "--" not in label:
        return label.replace(":", ",")
    # What had to be replaced is told apart by a hash.
    kept = re.sub(r"[^a-zA-Z0-9_.+=-]+", "_", label).replace("--", "-")[:50]
    return f"{kept}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def refuse_repeats(where: str, values: Sequence[Any]) -> None:
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        raise InputError(where, f"{repeated[0]} twice", "every one once", "remove the repetition")


def refuse_other_run(entry: Entry) -> None:
    """A folder that already holds a run must hold exactly the planned one."""
    if not (entry.folder / "run.json").exists():
        return
    found = read_run(entry.folder)[0]
    if difference := first_difference(entry.run, found):
        name, needed, got = difference
        raise InputError(entry.folder, f"a run of another recipe ({name} is {got})", f"{name} {needed}",
                         "choose another --out, or remove the folder")


def first_difference(planned: Run, found: Run) -> tuple[str, str, str] | None:
    """The first field in which two runs differ, with both values as JSON; None when they are the same."""
    one, other = dict(flat(encode(planned))), dict(flat(encode(found)))
    for name in {**one, **other}:
        if one.get(name) != other.get(name):
            return name, json.dumps(one.get(name)), json.dumps(other.get(name))
    return None


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``("optimizer.kind", "adamw")`` for every leaf of nested JSON objects."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
