"""The report of a search: one self-contained HTML page, the same in Markdown, and the numbers as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from polyptych.comparison.statistics import Estimate
from polyptych.metrics._accumulation import shown_name
from polyptych.record import encode
from polyptych.reports import templates
from polyptych.reports.cells import Column, estimated, exact, short, signed
from polyptych.reports.tables import TIMES, escape_markdown, format_pair, is_number
from polyptych.search.procedure.folder import read_networks
from polyptych.search.report import pictures, sharing
from polyptych.search.report.outcome import ENOUGH, Outcome, TrainedNetwork, gather
from polyptych.search.space.budget import KINDS, CostKind
from polyptych.search.space.policy import Policy
from polyptych.search.supermodel.costs import threads_in_words

VALUE = "mean skill, validation split"


@dataclass(frozen=True)
class SearchPage:
    """A search in words and cells, for every form of the report."""

    outcome: Outcome
    policies: dict[str, Policy]
    folder: Path

    @property
    def title(self) -> str:
        return self.outcome.setup.run.recipe or "search"

    @property
    def networks(self) -> tuple[TrainedNetwork, ...]:
        return self.outcome.networks

    @property
    def axis(self) -> CostKind:
        """The cost on the axis of the plot: the first one in the budget, or multiply-adds."""
        limits = self.outcome.setup.search.limits.limits
        return KINDS[limits[0].name if limits else "flops"]

    @property
    def limit(self) -> float | None:
        """The budget on the axis of the plot, in units of one shared backbone."""
        limits = self.outcome.setup.search.limits.limits
        if not limits:
            return None
        return limits[0].value(self.outcome.shared) / max(getattr(self.outcome.shared, self.axis.field), 1e-30)

    @cached_property
    def points(self) -> list[pictures.Point]:
        found = []
        for network in self.networks:
            kind = network.kind if network.kind != "searched" else (
                "searched" if network.label == "searched" else "finalist")
            if not network.same_as and is_number(network.skill.mean):
                found.append(pictures.Point(network.label, kind, network.relative.get(self.axis.field, 0.0),
                                            network.skill.mean, network.skill.half_width, network.supermodel))
        return found

    def tradeoff(self, page: bool = True) -> Markup:
        cost = f"{self.axis.title} of the encoder, in units of one shared backbone"
        return Markup(pictures.tradeoff_svg(self.points, cost, VALUE, self.limit, page=page))

    def ranks(self, page: bool = True) -> Markup:
        return Markup(pictures.ranks_svg(self.points, VALUE, page=page))

    @property
    def sharing(self) -> Markup:
        return Markup(sharing.svg(self.policies[self.outcome.searched.name]))

    @property
    def tree(self) -> str:
        return "\n".join(sharing.tree_lines(self.policies[self.outcome.searched.name]))

    @cached_property
    def skills(self) -> list[Column]:
        """What every network reaches, and the cost that the plot shows."""
        rows = self.networks
        found = [
            self._relative(self.axis),
            estimated("skill", [row.skill for row in rows], lambda value: f"{value:.4f}", "validation", True),
            estimated("skill", [row.test for row in rows], lambda value: f"{value:.4f}", "test, chose nothing", True)]
        if all(row.delta is not None for row in rows):
            found.append(estimated("delta_mtl", [row.delta or Estimate(float("nan"), None, {}) for row in rows],
                                   signed, "%, validation", True))
        found.append(exact("supermodel", [row.supermodel for row in rows], lambda value: f"{value:.4f}",
                           "skill there", None))
        return found

    @cached_property
    def costs(self) -> list[Column]:
        """Every cost of the encoder; a table of its own, because beside the skills a page has no room for all."""
        rows = self.networks
        return [
            exact("parameters", [row.cost.parameters / 1e6 for row in rows], short, "million", None),
            *(self._relative(kind) for kind in KINDS.values() if any(kind.field in row.relative for row in rows))]

    def _relative(self, kind: CostKind) -> Column:
        return exact(kind.title, [row.relative.get(kind.field, float("nan")) for row in self.networks],
                     lambda value: f"{value:.2f}", f"{TIMES} one backbone", False)

    @cached_property
    def tasks(self) -> list[Column]:
        """The headline metric of every task on the validation split."""
        columns = []
        for task, result in self.outcome.tasks.items():
            values = [row.headlines[task] for row in self.networks]
            largest = max((abs(value) for value in values if is_number(value)), default=0)
            columns.append(exact(task, values, lambda value, top=largest: format_pair(value, top)[0],  # type: ignore[misc]
                                 shown_name(result.headline), result.higher_is_better.get(result.headline)))
        return columns

    @property
    def verdicts(self) -> list[str]:
        """The comparisons with random trees or policies, or a sentence that says there are none."""
        return [versus.verdict for versus in self.outcome.versus] or [
            "No random tree or policy was trained, so whether the search was worth it is unknown."]

    @property
    def rank_words(self) -> str:
        found = self.outcome.correlation
        if found.spearman is None or found.kendall is None:
            return f"Ranks cannot be compared: only {found.policies} different policies were trained."
        few = "" if found.policies >= ENOUGH else f" (at least {ENOUGH} are needed for a meaningful number)"
        low = (" Below 0.5 the supermodel is a weak guide: what it ranks highest is little better than chance."
               if found.spearman < 0.5 else "")
        return (f"Ranks on the supermodel against ranks after training: Spearman {found.spearman:+.2f}, Kendall "
                f"{found.kendall:+.2f}, over {found.policies} policies{few}.{low}")

    @property
    def summary(self) -> list[tuple[str, str]]:
        setup = self.outcome.setup
        run, search = setup.run, setup.search
        seeds = ", ".join(map(str, setup.seeds))
        size = f" at {run.size[0]} {TIMES} {run.size[1]}" if run.size else ""
        steps = (search.warmup or run.steps // 2, search.sampling or run.steps)
        return [
            ("Space", f"{search.space}, {next(iter(self.policies.values())).compilation.granularity} units: "
             f"{len(next(iter(self.policies.values())).units)}, tasks: {', '.join(run.tasks)}"),
            ("Budget", search.limits.text or "none"),
            ("Supermodel", f"{steps[0]} steps of warm-up, {steps[1]} steps on "
             + ("the mixture of all choices" if search.is_automtl else "sampled policies")),
            ("Networks", f"each trained {run.steps} steps of {run.batch_size * run.accumulate} images{size}, "
             f"{'seeds' if len(setup.seeds) > 1 else 'seed'} {seeds}"),
            ("Finalists", f"started from {search.weights} weights, baselines from fresh ones"),
            ("Costs", "of the encoder alone; latency on " + threads_in_words(self.outcome.table.setting)
             if self.outcome.table.setting.timed else "of the encoder alone; latency was not measured"),
        ]

    @property
    def notes(self) -> list[str]:
        several = len(self.outcome.setup.seeds) > 1
        return [
            "Everything was chosen on the validation split, which is carved out of the training images. The test split "
            "was evaluated once per network, after its training.",
            "The winning finalist is the best of all finalists on the validation split, so its skill there is "
            "slightly optimistic; on the test split it is not.",
            "± is half the 95% interval of the mean over seeds (Student t)." if several else
            "There is one seed, so no interval: differences may be chance.",
            *(f"{row.label}: {row.note}" + (f" (shares like {row.same_as}: the same runs)" if row.same_as else "") + "."
              for row in self.networks if row.note or row.same_as),
        ]

    @property
    def settings(self) -> list[tuple[str, str]]:
        return [(name, " ".join(map(str, value)) if isinstance(value, list) else str(value))
                for name, value in encode(self.outcome.setup.search).items()]


def write_search_report(folder: Path) -> Path:
    """Write ``search.html``, ``search.md``, ``results.json``, and the pictures for the Markdown.

    Returns:
        The path of ``search.html``.

    Raises:
        InputError: some networks of the search are not trained yet.
    """
    outcome = gather(folder)
    policies = {network.candidate.name: network.candidate.policy for network in read_networks(folder)}
    page = SearchPage(outcome, policies, folder)
    outcome.write(folder / "results.json")
    (folder / "front.svg").write_text(page.tradeoff(page=False), encoding="utf-8")
    (folder / "ranks.svg").write_text(page.ranks(page=False), encoding="utf-8")
    sharing.write_png(policies[outcome.searched.name], folder / "sharing.png", "searched")
    for name in ("search.md", "search.html"):
        (folder / name).write_text(_render(f"{name}.j2", page), encoding="utf-8")
    return folder / "search.html"


def _markdown_table(page: SearchPage, columns: list[Column]) -> Markup:
    lines = ["| network | " + " | ".join(escape_markdown(column.plain_title) for column in columns) + " |",
             "|---|" + "---:|" * len(columns)]
    for index, network in enumerate(page.networks):
        cells = [column.cells[index] for column in columns]
        name = f"**{network.label}**" if network.label == "searched" else escape_markdown(network.label)
        lines.append(f"| {name} | " + " | ".join(f"**{c.whole}**" if c.best else c.whole for c in cells) + " |")
    return Markup("\n".join(lines) + "\n")


def _render(template: str, page: SearchPage) -> str:
    return templates.render(template, {"table": _markdown_table, "raw": Markup}, package=__package__, page=page)
