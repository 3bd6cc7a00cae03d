"""The networks to compare a searched one with, at equal budgets and schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random

from polyptych.errors import InputError
from polyptych.search.procedure.conflicts import most_conflicting_own
from polyptych.search.procedure.settings import Search
from polyptych.search.space.policy import OWN, SHARED, Policy
from polyptych.search.space.spaces import Space, make_space
from polyptych.search.supermodel.model import Supermodel

DRAWS = 400
FULL = 0.9
"""A random policy uses at least this share of the budget, or else the most among all draws."""


@dataclass(frozen=True)
class Candidate:
    """One network to be trained.

    Attributes:
        name: the unique name of its runs.
        kind: searched, single, shared, bottom, tree, op or conflict.
        policy: what it shares. The single networks do not use it but have its cost.
        note: what a reader must know.
        same_as: name of an earlier candidate that shares identically and whose runs therefore count for this one.
    """

    name: str
    kind: str
    policy: Policy
    note: str = ""
    same_as: str = ""


def baselines(supermodel: Supermodel, search: Search, use: Callable[[Policy], float], conflicts: list[float],
              seed: int) -> Iterator[Candidate]:
    """The baselines that the search asks for.

    Args:
        use: share of the budget that a policy uses; more than 1 exceeds it.
        conflicts: for every unit, :func:`polyptych.search.procedure.conflicts.count_conflicts`.
    """
    space, chosen = supermodel.space, search.baselines
    # Baselines share or own whole units, without the other choices of a space (skips, norms per task).
    tree = make_space("tree", space.units, space.tasks, space.compilation, skip=False)
    partition = make_space("partition", space.units, space.tasks, space.compilation, skip=False)
    if "single" in chosen:
        yield Candidate("single", "single", tree.all_own(), "a network for every task")
    if "shared" in chosen:
        yield Candidate("shared", "shared", tree.all_shared(), "one backbone for all tasks")
    if "bottom" in chosen:
        for count in range(search.bottom_every, len(space.units), search.bottom_every):
            yield Candidate(f"bottom-{count}", "bottom", tree.bottom_shared(count),
                            f"the first {count} of {len(space.units)} units shared")
    drawn: set[Policy] = set()
    for kind in ("tree", "op"):
        for number in range(search.random if kind in chosen else 0):
            draw = tree.draw if kind == "tree" else partial(shared_or_own, partition)
            candidate = _random(f"{kind}-{number}", kind, draw, use, Random(f"{seed} {kind} {number}"), drawn)
            drawn.add(candidate.policy)
            yield candidate
    if "conflict" in chosen:
        policy = most_conflicting_own(tree if search.space == "tree" else partition, conflicts,
                                      lambda policy: use(policy) <= 1)
        yield Candidate("conflict", "conflict", policy, "the units with the most conflicting gradients of each task's "
                        "own")


def shared_or_own(space: Space, random: Random) -> Policy:
    """A random choice of own or shared for every task at every unit; the probability of own is random, too."""
    share = random.random()
    return space.policy([tuple(OWN if random.random() < share else SHARED for _ in space.tasks)
                         for _ in range(len(space.units))])


def _random(name: str, kind: str, draw: Callable[[Random], Policy], use: Callable[[Policy], float], random: Random,
            drawn: Collection[Policy]) -> Candidate:
    """A random policy that is within the budget, uses most of it, and was not ``drawn`` before."""
    best, most = None, -1.0
    least, fewest = None, float("inf")
    for _ in range(DRAWS):
        policy = draw(random).canonical()
        if policy in drawn:
            continue
        taken = use(policy)
        if most < taken <= 1:
            best, most = policy, taken
        if taken < fewest:
            least, fewest = policy, taken
        if not taken or most >= FULL:  # there is no budget, or it is nearly used up
            break
    if best is not None:
        return Candidate(name, kind, best, f"random, takes {most:.2f} of the budget" if most else "random")
    if least is None:  # every draw was drawn before: the space has too few policies
        return Candidate(name, kind, draw(random).canonical(), "random, once more")
    return Candidate(name, kind, least, f"random; none of {DRAWS} kept the budget, this one takes {fewest:.2f} of it")


def distinct(candidates: Iterator[Candidate] | list[Candidate]) -> list[Candidate]:
    """Mark candidates that share like an earlier one, because each policy is trained only once.

    Raises:
        InputError: two candidates have the same name.
    """
    first: dict[Policy, Candidate] = {}
    kept: list[Candidate] = []
    for candidate in candidates:
        if any(other.name == candidate.name for other in kept):
            raise InputError("the candidates", f"{candidate.name} twice", "names that differ", "report this as a bug")
        plain = dataclasses.replace(candidate.policy.canonical(), space="")
        same = first.get(plain)
        if candidate.kind == "single":  # separate networks with separate initial weights
            kept.append(candidate)
        elif same is None:
            first[plain] = candidate
            kept.append(candidate)
        else:
            kept.append(dataclasses.replace(candidate, same_as=same.name))
    return kept
