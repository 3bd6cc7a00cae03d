"""Every setting of a search except those of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import FlagConversionOff
from tyro.constructors import PrimitiveConstructorSpec

from polyptych.errors import InputError
from polyptych.search.space.budget import Budget, parse_budget
from polyptych.search.space.policy import SpaceName

STANDARD_BUDGET = "flops=1.5x"
BASELINES = ("single", "shared", "bottom", "tree", "op", "conflict")


def _yes_or_no(words: Sequence[str]) -> bool:
    answer = words[0].lower()
    if answer not in ("yes", "no", "true", "false"):
        raise InputError("--skip", f"'{words[0]}'", "yes or no", "for instance --skip no")
    return answer in ("yes", "true")


def _names(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in words[0].split(",") if name not in ("", "none"))


# On the command line of a search, a list has always been one word with commas, and an answer yes or no.
YesOrNo = Annotated[bool, FlagConversionOff, PrimitiveConstructorSpec(
    nargs=1, metavar="yes|no", instance_from_str=_yes_or_no, is_instance=lambda value: isinstance(value, bool),
    str_from_instance=lambda value: ["yes" if value else "no"])]
Names = Annotated[tuple[str, ...], PrimitiveConstructorSpec(
    nargs=1, metavar="A,B,...", instance_from_str=_names, is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: [",".join(value) or "none"])]


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to search for what to share. A step count of 0 follows the recipe's steps."""

    space: SpaceName = "tree"
    """tree: tasks branch off with depth, so the common trunk is computed once; automtl: the space of the AutoMTL paper;
    partition: any grouping; skip_only: every unit is shared or left out."""
    budget: str = "auto"
    """Cost limit of the encoder, for example params=2x,flops=1.5x; auto means flops=1.5x, or no limit for automtl."""
    granularity: Literal["auto", "op", "region", "stage"] = "auto"
    """What a policy decides about: operations, regions or stages; auto means op for automtl, region otherwise."""
    skip: YesOrNo = True
    """Allow tasks to leave units out."""
    warmup: int = 0
    """Steps with everything shared (automtl: with equal weights on all choices); 0 means half of the recipe's steps."""
    sampling: int = 0
    """Steps on sampled policies (automtl: network and policy steps together); 0 means the recipe's steps."""
    candidates: int = 32
    """Number of policies to rank on the supermodel."""
    calibration: int = 20
    """Training batches for estimating batch statistics before each policy is ranked."""
    images: int = 128
    """Maximum number of validation images for ranking policies."""
    finalists: int = 3
    """Number of top-ranked policies (automtl: samples) to train with every seed; the best on the validation split
    wins."""
    weights: Literal["fresh", "inherited"] = "fresh"
    """Initial weights of finalists: fresh, as for every baseline, or the supermodel's."""
    baselines: Names = BASELINES
    """Any of single, shared, bottom, tree (random trees), op (random per unit), conflict (Recon), joined by commas; or
    none."""
    bottom_every: int = 1
    """Train every Nth of the baselines that share the first units; 1 trains all of them."""
    random: int = 3
    """Number of random trees, and of random policies per unit, to train as baselines."""
    network_steps: int = 400
    """automtl: weight steps between policy steps."""
    policy_steps: int = 100
    """automtl: policy steps between weight steps."""
    regularizer: float = 5e-4
    """automtl: weight of the term that favors sharing."""
    scale: float = 6.0
    """automtl: s in that term; the authors' code uses 6, their paper states 1."""
    policy_rate: float = 0.01
    """automtl: learning rate of the policy."""
    share_first: int = 0
    """automtl: number of first units that every sampled policy shares."""

    def __post_init__(self) -> None:
        for name, least in (("warmup", 0), ("sampling", 0), ("candidates", 1), ("calibration", 1), ("images", 1),
                            ("finalists", 1), ("bottom_every", 1), ("random", 0), ("network_steps", 1),
                            ("policy_steps", 1), ("share_first", 0)):
            if getattr(self, name) < least:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(flag, str(getattr(self, name)), f"{least} or more", "raise it")
        for name in self.baselines:
            if name not in BASELINES:
                raise InputError("--baselines", f"'{name}'", f"any of {', '.join(BASELINES)}, or none",
                                 "write --baselines none for none")
        _ = self.limits

    @property
    def is_automtl(self) -> bool:
        """Whether to follow the procedure of the AutoMTL paper."""
        return self.space == "automtl"

    @property
    def limits(self) -> Budget:
        """The budget."""
        standard = "" if self.is_automtl else STANDARD_BUDGET
        return parse_budget(standard if self.budget == "auto" else "" if self.budget == "none" else self.budget)
