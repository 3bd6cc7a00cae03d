"""The supermodel as an encoder, so that it trains in the ordinary loop with any decoder and loss."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from polyptych.backbones._base import Backbone
from polyptych.encoders._base import Encoder
from polyptych.networks import Network, described
from polyptych.run import Run
from polyptych.search.procedure.settings import Search
from polyptych.search.supermodel.model import compile
from polyptych.search.supermodel.soft_choices import Logits, Mixer
from polyptych.tasks._base import Task
from polyptych.types import TaskFeatures


class SuperEncoder(Encoder):
    """Runs the current policy.

    The running statistics of single streams are not saved: they come and go with the sampled policies, training does
    not use them, and they are re-estimated before a policy is judged.

    Attributes:
        supermodel: the supermodel with its space.
        policy: the current policy.
        weights: weights of a soft policy, which replaces the current one; None without one.
        logits: logits of the soft policy, without gradients unless requested.
    """

    def __init__(self, search: Search, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        network = backbone.build()
        self.spec = dict.fromkeys(tasks, network.spec)
        self.multiple, self.mean, self.std = network.multiple, network.mean, network.std
        granularity: Any = None if search.granularity == "auto" else search.granularity
        self.supermodel = compile(network, tasks, space=search.space, granularity=granularity, skip=search.skip)
        self.policy = self.supermodel.space.all_shared()
        self.weights: list[Tensor] | None = None
        self.mixer: Mixer | None = None
        if search.is_automtl:
            self.logits = Logits(self.supermodel).requires_grad_(False)
            self.mixer = Mixer(self.supermodel)
        self.register_state_dict_post_hook(_without_streams)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        if self.weights is not None and self.mixer is not None:
            mixed = self.mixer(image, self.weights)
            assert isinstance(mixed, TaskFeatures)
            return mixed
        features = self.supermodel(image, self.policy)
        assert isinstance(features, TaskFeatures)
        return features


def _without_streams(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}supermodel.banks.streams.")]:
        del state[name]


def build_supernetwork(run: Run, search: Search, tasks: dict[str, Task], *, pretrained: bool) -> Network:
    """A run's network with the supermodel in place of its encoder."""
    backbone = run.backbone if pretrained else run.backbone.without_weights()
    channels = {name: task.channels for name, task in tasks.items()}
    encoder = SuperEncoder(search, backbone=backbone, tasks=tuple(tasks))
    whole = frozenset(name for name, task in tasks.items() if not task.dense)
    return Network(encoder, run.decoder.build(features=described(encoder), channels=channels), whole)


def encoder_of(network: Any) -> SuperEncoder:
    """The supermodel of a network made by :func:`build_supernetwork`."""
    encoder = network.encoder
    assert isinstance(encoder, SuperEncoder)
    return encoder
