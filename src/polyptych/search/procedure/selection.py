"""Choosing policies under a hard budget: every distinct one if there are few, otherwise evolution.

Regularized evolution (Real, Aggarwal, Huang, Le, AAAI 2019, arXiv 1802.01548) without aging: a parent is the best of a
few random policies, and a child differs a little from it; a child that exceeds the budget or was judged before is
drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from polyptych.search.space.policy import Policy
from polyptych.search.space.spaces import Space

FIRST = 0.4
"""Share of the policies drawn at random before evolution begins."""
PARENTS = 5
"""Number of random policies from which the best becomes the parent."""
TRIES = 400
"""Consecutive draws without a new policy within the budget after which the space counts as exhausted."""


@dataclass
class Judged:
    """Policies and their scores, in the order of judging. Policies that share identically are one."""

    scores: dict[Policy, float] = field(default_factory=dict)

    def best(self, number: int) -> list[Policy]:
        """The ``number`` best policies, highest scores first; the earlier of equals."""
        return sorted(self.scores, key=self.rank, reverse=True)[:number]

    def rank(self, policy: Policy) -> float:
        """Its score; one that is not finite ranks last, whereas plain comparison would put NaN anywhere."""
        score = self.scores[policy]
        return score if math.isfinite(score) else -math.inf


def select(space: Space, allowed: Callable[[Policy], bool], judge: Callable[[Policy], float], number: int, seed: int,
           starts: Iterable[Policy] = (), judged: Judged | None = None) -> Judged:
    """Judge ``number`` policies within the budget, or all if there are fewer.

    Args:
        judge: the score of a policy, higher is better; no policy is judged twice.
        starts: policies to judge first, if they are within the budget.
        judged: policies judged before an interruption; they do not change the result.
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
        random = Random(f"{seed} {position}")  # one per position, so that a resumed search chooses the same
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
