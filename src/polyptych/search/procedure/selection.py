"""Choosing policies under a hard budget: every distinct one where they are few, else evolution.

Regularized evolution (Real, Aggarwal, Huang, Le, AAAI 2019, arXiv 1802.01548) without ageing: parents are the best of a
random few, children differ a little; a child that breaks the budget or was judged before is drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from polyptych.search.space.policy import Policy
from polyptych.search.space.spaces import Space

FIRST = 0.4
"""Share of the policies that is drawn at random before evolution begins."""
PARENTS = 5
"""From how many the better parent is taken."""
TRIES = 400
"""Draws in a row without a new policy that keeps the budget, after which the space counts as exhausted."""


@dataclass
class Judged:
    """Policies and their scores, in the order in which they were judged. Policies that share alike are one."""

    scores: dict[Policy, float] = field(default_factory=dict)

    def best(self, number: int) -> list[Policy]:
        """Highest scores first; of equals the earlier."""
        return sorted(self.scores, key=self.rank, reverse=True)[:number]

    def rank(self, policy: Policy) -> float:
        """Its score; one that is not a number comes after all others, where plain comparison would put it anywhere."""
        score = self.scores[policy]
        return score if math.isfinite(score) else -math.inf


def select(space: Space, allowed: Callable[[Policy], bool], judge: Callable[[Policy], float], number: int, seed: int,
           starts: Iterable[Policy] = (), judged: Judged | None = None) -> Judged:
    """Judge ``number`` policies that keep the budget, or all where there are fewer.

    Args:
        judge: the score of a policy, higher is better; the same policy is never judged twice.
        starts: policies to begin with, those that keep the budget.
        judged: what was judged before an interruption; the result is as without it.
    """
    known = judged or Judged()
    done = Judged()

    def add(policy: Policy) -> None:
        if policy not in done.scores:
            done.scores[policy] = known.scores[policy] if policy in known.scores else judge(policy)

    for start in starts:
        if len(done.scores) < number and allowed(start):
            add(start.canonical())
    for position in range(len(done.scores), number):
        random = Random(f"{seed} {position}")  # of its own for every position, so that a resumed choice is the same
        policy = _next(space, allowed, done, random, evolve=position >= FIRST * number)
        if policy is None:
            break
        add(policy)
    return done


def _next(space: Space, allowed: Callable[[Policy], bool], done: Judged, random: Random, evolve: bool
          ) -> Policy | None:
    for attempt in range(TRIES):
        if evolve and done.scores and attempt < TRIES // 2:
            some = random.sample(list(done.scores), min(PARENTS, len(done.scores)))
            policy = max(some, key=done.rank)
            for _ in range(random.choice((1, 1, 2, 3))):
                policy = space.mutate(policy, random)
        else:
            policy = space.draw(random)
        policy = policy.canonical()
        if policy not in done.scores and allowed(policy):
            return policy
    return None
