"""DeMT: deformable mixers make each task's features, which then query the tokens of all tasks.

Source: Xu, Yang, Zhang, AAAI 2023, arXiv 2301.03461
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import SingleValueBatchNorm, common_spec, for_each_pyramid
from polyptych.decoders._deformable_mixer import DeformableMixer
from polyptych.decoders._necks import NECKS
from polyptych.decoders._task_attention import Attention, by_pixel, reduced
from polyptych.errors import InputError
from polyptych.types import Features, FeatureSpec, Output, TaskFeatures


class DeMT(Decoder):
    """All scales at the finest resolution, a linear map to ``width`` and a LayerNorm; then, with T tasks, a
    :class:`DeformableMixer` per task (q_t), and

        Z = LN(Linear(MHA(Z0, Z0, Z0)))            Z0: the tokens of all q_t in one sequence (task interaction)
        y_t = q_t + LN_t(Linear_t(MHA_t(q_t, Z, Z)))                                         (task query)

    and a head of a 3x3 and a 1x1 convolution at the finest resolution. As published, there is no position encoding, and
    no residual connection around the interaction.

    In the paper, attention is over all T h w tokens. The published code swaps the batch and token axes of its attention
    layers: with one image per device, as for the published numbers, the interaction is a linear map of each token, and
    a query attends to the T tokens at its own pixel; with more images, it would mix images. Both forms exist here, and
    images are never mixed: ``attention="global"`` is the paper, with keys and values averaged over windows of
    ``reduction`` x ``reduction`` positions so that it fits (memory linear in the number of tokens, no matrix of scores
    is stored), and ``attention="pixel"`` is what the code computes; the query and key weights of its interaction exist
    but have no effect. The code's offsets contain absolute positions (``offsets="published"``).

    Published: 4,549,561 parameters on Swin-T with four tasks (``attention="pixel"``, ``offsets="published"``). "Depth
        2" in the README's tables adds 4.5 M parameters, which no repetition of the mixer explains; here ``depth``
        repeats the mixer.

    Raises:
        InputError: a bad option, or tasks whose pyramids differ in shape.
    """

    refines = True

    # The defaults had the best mean in our only comparison of the four combinations of attention and offsets (60 steps
    # on NYUv2, two seeds), but all were within noise.
    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        attention: Literal["global", "pixel"] = "global"
        """Between all positions of all tasks (the paper), or between the tasks at each pixel (the published code)."""
        offsets: Literal["local", "published"] = "local"
        """Offsets of the deformation: local ones, learned around each pixel and initially zero, or those of the
        published code, which contain absolute positions."""
        offset_groups: int = 8
        """Number of channel groups, each moved together by local offsets; published offsets move every channel
        separately."""
        depth: int = 1
        """Number of deformable mixers in sequence."""
        heads: int = 4
        """Number of attention heads."""
        width: int = 256
        """Channels of all features; must be a multiple of the heads and of the offset groups."""
        reduction: int = 8
        """Side of the windows over which the keys of global attention are averaged (1: no averaging)."""
        mixer: bool = True
        """Use the deformable mixers (ablation)."""
        interaction: bool = True
        """Use the task interaction (ablation)."""
        query: bool = True
        """Use the task query; without it, a task's own tokens from the interaction are added to its features
        (ablation)."""
        neck: Literal["concat", "fpn", "bifpn"] = "concat"
        """How scales are combined: concatenated (the paper), or added by a feature pyramid."""
        scales: int = 0
        """How many of the finest maps are used (0: all)."""

        def __post_init__(self) -> None:
            do = "choose such a value"
            for field in ("offset_groups", "depth", "heads", "width", "reduction"):
                self.require(field, getattr(self, field) >= 1, "1 or more", do)
            self.require("scales", self.scales >= 0, "0 (all) or more", do)
            self.require("width", self.width % self.heads == 0, f"a multiple of the {self.heads} heads", do)
            self.require("width", self.width % self.offset_groups == 0,
                         f"a multiple of the {self.offset_groups} groups", do)

        def ablation(self) -> dict[str, Decoder.Config]:
            none = replace(self, mixer=False, interaction=False, query=False)
            return {"none of its parts": none, "+ deformable mixer": replace(none, mixer=self.mixer),
                    "+ task interaction": replace(self, query=False), "+ task query": self,
                    "attention at each pixel": replace(self, attention="pixel"),
                    "published offsets": replace(self, offsets="published"),
                    "neck fpn": replace(self, neck="fpn"), "neck bifpn": replace(self, neck="bifpn")}

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        self.config = config
        spec, width = common_spec(features, "demt"), config.width
        if config.scales > len(spec.channels):
            raise InputError("decoder.scales", str(config.scales), f"at most {len(spec.channels)}, the number of maps",
                             "lower --decoder.scales, or use 0 for all")
        scales = config.scales or len(spec.channels)
        read = FeatureSpec(spec.channels[:scales], spec.strides[:scales])
        self.embed = Embedding(config.neck, read, width)
        self.mixers = nn.ModuleDict({
            task: nn.Sequential(*(DeformableMixer(width, config.offset_groups, config.offsets == "published")
                                  for _ in range(config.depth if config.mixer else 0))) for task in channels})
        self.interact = Attention(width, config.heads) if config.interaction else None
        self.interacted = _linear_norm(width) if config.interaction else None
        asking = tuple(channels) if config.query else ()
        self.queries = nn.ModuleDict({task: Attention(width, config.heads) for task in asking})
        self.queried = nn.ModuleDict({task: _linear_norm(width) for task in asking})
        inside = max(sum(read.channels) // 8, 1)
        self.heads = nn.ModuleDict({task: _head(width, inside, c) for task, c in channels.items()})

    def forward(self, features: TaskFeatures) -> Output:
        embedded = for_each_pyramid(self.embed, features)
        own = {task: mixer(embedded[task]) for task, mixer in self.mixers.items()}
        tokens = torch.stack(list(own.values()), dim=1)
        refined = own if self.interact is None and not self.queries else self._refine(own, self._interact(tokens))
        return Output({task: head(refined[task]) for task, head in self.heads.items()})

    def _interact(self, tokens: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
        if self.interact is None or self.interacted is None:
            return tokens
        b, t, c, h, w = tokens.shape
        sequence = tokens.permute(0, 1, 3, 4, 2).flatten(1, 3)
        if self.config.attention == "pixel":
            attended = self.interact.alone(sequence)
        else:
            attended = self.interact(sequence, reduced(tokens, self.config.reduction))
        return self.interacted(attended).view(b, t, h, w, c).permute(0, 1, 4, 2, 3)

    def _refine(self, own: dict[str, Tensor], tokens: Float[Tensor, "b t c h w"]) -> dict[str, Tensor]:
        """Every task's features, plus what they gather from the tokens."""
        if not self.queries:
            return {task: x + tokens[:, number] for number, (task, x) in enumerate(own.items())}
        pixel = self.config.attention == "pixel"
        keys = by_pixel(tokens) if pixel else reduced(tokens, self.config.reduction)
        refined = {}
        query: Any
        for task, query in self.queries.items():
            b, c, h, w = own[task].shape
            sequence = own[task].permute(0, 2, 3, 1).reshape(b, h * w, c)
            attended = query.by_position(sequence, keys) if pixel else query(sequence, keys)
            found = self.queried[task](attended)
            refined[task] = own[task] + found.view(b, h, w, c).permute(0, 3, 1, 2)
        return refined


class Embedding(nn.Module):
    """The neck, a linear map and a LayerNorm of every position."""

    def __init__(self, neck: str, spec: FeatureSpec, width: int):
        super().__init__()
        self.scales = len(spec.channels)
        self.neck = NECKS[neck](spec, width)
        self.linear = nn.Sequential(nn.Linear(self.neck.channels, width), nn.LayerNorm(width))

    def forward(self, pyramid: Features) -> Float[Tensor, "b c h w"]:
        x = self.neck(pyramid.maps[:self.scales])
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _linear_norm(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))


def _head(width: int, inside: int, channels: int) -> nn.Sequential:
    predict = nn.Conv2d(inside, channels, 1)
    nn.init.normal_(predict.weight, std=0.01)
    nn.init.zeros_(predict.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(width, inside, 3, padding=1, bias=False), SingleValueBatchNorm(inside),
                         nn.ReLU(inplace=True), predict)
