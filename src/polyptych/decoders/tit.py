"""TIT's task gate decoder: one gated unit for all tasks, steered by a vector of each.

Source: Lu, Sirejiding, Ding, Wang, Lu, ICASSP 2024, arXiv 2403.00327
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import common_spec
from polyptych.decoders._light import Gathering, HeadKind, light_head
from polyptych.ops.resize import resize
from polyptych.types import FeatureSpec, Output, TaskFeatures


class TITDecoder(Decoder):
    """A task's maps, mixed to F as in PGT's decoder, go through a gated recurrent unit. Its other input E is computed
    from a learned vector of the task, by a linear layer to a coarse map (at 1/32 of ``size``), resized to F:

        u = sigmoid(conv_u [E, F])    r = sigmoid(conv_r [E, F])    c = tanh(conv_o [E, r F])    out = (1 - u) F + u c

    E does not depend on the image: at inference it is a constant per task. It is resampled for images of another size
    than ``size``.

    Raises:
        InputError: tasks with different pyramids, or an option out of range.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        size: tuple[int, int] = (448, 576)
        """Height and width of the images that determine the size of the coarse map."""
        width: int = 0
        """Channels (0: those of the finest map)."""
        embedding: int = 16
        """Channels of the coarse map of a task."""
        vector: int = 64
        """Length of a task's vector."""
        head: HeadKind = "transpose"
        """Head of a task: two transposed convolutions and a 1x1 one, or the last alone."""

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        spec = common_spec(features, "tit")
        for name in ("embedding", "vector"):
            config.require(name, getattr(config, name) >= 1, "1 or more", "raise it")
        config.require("width", config.width >= 0 and min(config.size) >= 1, "0 or more", "raise it")
        width = config.width or spec.channels[0]
        self.grid = (config.embedding, -(-config.size[0] // 32), -(-config.size[1] // 32))
        self.gathering = Gathering(spec, width)
        limit = (6 / (3 * 16 + config.vector)) ** 0.5
        self.vectors = nn.ParameterDict({task: nn.Parameter(torch.empty(config.vector).uniform_(-limit, limit))
                                         for task in channels})
        cells = self.grid[0] * self.grid[1] * self.grid[2]
        self.generators = nn.ModuleDict({task: nn.Linear(config.vector, cells) for task in channels})
        self.update_gate, self.reset_gate, self.out_gate = (
            nn.Conv2d(config.embedding + width, width, 3, padding=1) for _ in range(3))
        self.heads = nn.ModuleDict({task: light_head(config.head, width, channels[task]) for task in channels})

    def forward(self, features: TaskFeatures) -> Output:
        return Output({task: head(self._gated(self.gathering(features[task]), task))
                       for task, head in self.heads.items()})

    def _gated(self, x: Float[Tensor, "b d h w"], task: str) -> Float[Tensor, "b d h w"]:
        coarse = self.generators[task](self.vectors[task]).view(1, *self.grid)
        indicated = resize(coarse, (x.shape[2], x.shape[3])).expand(x.shape[0], -1, -1, -1)
        both = torch.cat([indicated, x], dim=1)
        update, reset = torch.sigmoid(self.update_gate(both)), torch.sigmoid(self.reset_gate(both))
        candidate = torch.tanh(self.out_gate(torch.cat([indicated, reset * x], dim=1)))
        return (1 - update) * x + update * candidate
