"""Every choice of a search but those of the runs that it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyptych.errors import InputError
from polyptych.search.space.budget import Budget, parse_budget
from polyptych.search.space.policy import SpaceName

STANDARD_BUDGET = "flops=1.5x"
BASELINES = ("single", "shared", "bottom", "tree", "op", "conflict")


@dataclass(frozen=True, kw_only=True)
class Search:
    """How sharing is searched for. Numbers of steps that are 0 follow the steps of the recipe."""

    space: SpaceName = "tree"
    """tree: tasks part with depth (trunk computed once); automtl: the paper's; partition: any groups; skip_only:
    shared or left out."""
    budget: str = "auto"
    """What the encoder may cost, for instance params=2x,flops=1.5x; auto is flops=1.5x, and nothing for automtl."""
    granularity: Literal["auto", "op", "region", "stage"] = "auto"
    """What a policy decides about: auto is op for automtl, else region."""
    skip: bool = True
    """Whether tasks may leave units out."""
    warmup: int = 0
    """Steps with everything shared (automtl: with equal weights of all choices); 0 is half of the recipe's."""
    sampling: int = 0
    """Steps on sampled policies (automtl: network and policy steps together); 0 is as many as the recipe's."""
    candidates: int = 32
    """Policies that are ranked on the supermodel."""
    calibration: int = 20
    """Training batches for batch statistics before each ranking."""
    images: int = 128
    """Validation images at most that a ranking looks at."""
    finalists: int = 3
    """Highest ranked policies (automtl: samples) that are trained with every seed; the best of them on the validation
    split wins."""
    weights: Literal["fresh", "inherited"] = "fresh"
    """Where the training of finalists begins: as that of every baseline, or with the supermodel's weights."""
    baselines: tuple[str, ...] = BASELINES
    """Of single, shared, bottom, tree (random trees), op (random per unit), conflict (Recon); or none."""
    bottom_every: int = 1
    """Of the policies with the first N units shared, every which is trained."""
    random: int = 3
    """Random trees, and random policies per unit, that are trained."""
    network_steps: int = 400
    """automtl: steps on weights between steps on the policy."""
    policy_steps: int = 100
    """automtl: steps on the policy between steps on weights."""
    regularizer: float = 5e-4
    """automtl: weight of the policy's regularizer."""
    scale: float = 6.0
    """automtl: s of the regularizer; 6 is what the authors' policy steps used, 1 what their paper states."""
    policy_rate: float = 0.01
    """automtl: learning rate of the policy."""
    share_first: int = 0
    """automtl: the first units that are shared whatever was sampled."""

    def __post_init__(self) -> None:
        for name, least in (("warmup", 0), ("sampling", 0), ("candidates", 1), ("calibration", 1), ("images", 1),
                            ("finalists", 1), ("bottom_every", 1), ("random", 0), ("network_steps", 1),
                            ("policy_steps", 1), ("share_first", 0)):
            if getattr(self, name) < least:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(flag, str(getattr(self, name)), f"{least} or more", "raise it")
        for name in self.baselines:
            if name not in BASELINES:
                raise InputError("--baselines", f"'{name}'", f"of {', '.join(BASELINES)}, or none", "correct it")
        _ = self.limits

    @property
    def is_automtl(self) -> bool:
        """Whether this is the procedure of AutoMTL's paper."""
        return self.space == "automtl"

    @property
    def limits(self) -> Budget:
        """The budget."""
        standard = "" if self.is_automtl else STANDARD_BUDGET
        return parse_budget(standard if self.budget == "auto" else "" if self.budget == "none" else self.budget)
