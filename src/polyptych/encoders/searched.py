"""Searched: the compact network of a sharing policy, on any backbone.

Source: Zhang, Liu, Guan, AutoMTL, NeurIPS 2022, arXiv 2110.13076 (the space); the tree space and compaction are ours
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from polyptych.backbones._base import Backbone
from polyptych.encoders._base import Encoder
from polyptych.errors import InputError
from polyptych.search.space.policy import Compilation, Policy
from polyptych.search.supermodel.extraction import extract
from polyptych.search.supermodel.model import compile
from polyptych.types import TaskFeatures


class Searched(Encoder):
    """Parts that tasks share exist once, parts that they do not share exist once per task, and unused parts are
    removed.

    The backbone is built (with its weights), captured and compacted; every copy of a part starts with the backbone's
    weights. Without a policy everything is shared. The tasks of the run must be those of the policy, in any order.

    ``shared`` are the values at which the tasks branch. If they branch in several steps, these are the values before
    the first branching, and those that all tasks still share at the end.

    Raises:
        InputError: the policy is missing, invalid, or for another backbone or other tasks.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Encoder.Config):
        policy: str = ""
        """Policy file written by `polyptych search`; run.json keeps its text."""

        def __post_init__(self) -> None:
            if self.policy and not self.policy.lstrip().startswith("{"):
                text = json.dumps(Policy.read(Path(self.policy)).encode(), separators=(",", ":"))
                object.__setattr__(self, "policy", text)

    def __init__(self, config: Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        policy = None if not config.policy else decode(config.policy).for_tasks(tasks)
        how = Compilation() if policy is None else policy.compilation
        network = backbone.build()
        self.spec = dict.fromkeys(tasks, network.spec)
        self.multiple, self.mean, self.std = network.multiple, network.mean, network.std
        supermodel = compile(network, tasks, space="partition", granularity=how.granularity, size=how.size,
                             whole=how.whole, any_size=how.any_size)
        self.network = extract(supermodel, policy or supermodel.space.all_shared(), share_weights=True)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        features = self.network(image)
        assert isinstance(features, TaskFeatures)  # a backbone gives Features
        return features


def decode(text: str) -> Policy:
    """Parse the text of a policy.

    Raises:
        InputError: it is not a policy.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError("encoder.policy", f"a text that is not JSON ({error})", "a policy",
                         "name a file written by `polyptych search`") from None
    return Policy.decode(data, "encoder.policy")
