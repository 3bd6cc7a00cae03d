"""TaskPrompter: a learned token per task inside the transformer; its attention picks the task's places and channels.

Source: Ye, Xu, ICLR 2023, https://openreview.net/forum?id=-CwPopPJda
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.backbones._base import Backbone
from polyptych.backbones.timm import Timm
from polyptych.encoders._base import Encoder
from polyptych.encoders._prompted_swin import PromptedSwin
from polyptych.encoders._prompted_vit import PromptedViT
from polyptych.encoders._task_prompts import Level, PromptedStages, PromptOptions, over_windows
from polyptych.errors import InputError
from polyptych.types import Features, FeatureSpec, TaskFeatures

RUNNERS: tuple[type[PromptedViT | PromptedSwin], ...] = (PromptedViT, PromptedSwin)


class TaskPrompter(Encoder):
    """One prompt per task runs through all blocks of a vision transformer alongside the patches, with the blocks' own
    weights, so that prompts, positions and other tasks' prompts attend to each other. A second attention, with weights
    of its own, attends to channels (:class:`polyptych.encoders._task_prompts.ChannelPrompts`).

    After each stage (in a plain vision transformer: each quarter of the blocks, whatever ``backbone.vit_pyramid`` is;
    the last one after the final norm) task t gets the map

        concat(x + S_t x, x + R_t x)                                                   twice as many channels as x

    where S_t (heads h w) are the attention scores of its prompt for positions, each head's applied to that head's slice
    of channels, and R_t (channels n n) are those for channels, in n x n windows. Any decoder can read these maps.
    Scores between prompts are passed along as ``TaskFeatures.affinities``, for the decoder of the same name. S_t and
    R_t are kept in float32.

    Differs from the published code on vision transformers in five options; ``channel="published"``, ``scores="raw"``,
    ``stochastic_depth="separate"``, ``initial="published"`` and ``prefix_tokens=False`` are that code. By default, the
    value of the channel attention is used; scores are divided by the square root of the number of products in them, as
    in any attention (raw scores are tens of times larger than the features that they multiply); stochastic depth skips
    a block for prompts and patches together; and class and register tokens are kept if the backbone has them. In a Swin
    transformer, prompts join every window; :class:`polyptych.encoders._prompted_swin.PromptedSwin` lists the
    differences from the published Swin network.

    The layers of the channel attention have the grid of ``size``; for other image sizes, maps are resized to it.

    Raises:
        InputError: a bad option, or a backbone that is neither a plain vision transformer nor a Swin transformer (v1)
            of timm.
    """

    example = "test_vit"

    @dataclass(frozen=True, kw_only=True)
    class Config(Encoder.Config):
        size: tuple[int, int] = (448, 576)
        """Height and width of the training images, which determine the layer sizes of the channel attention."""
        windows: int = 1
        """Number of channel attention windows along each side (published: 1 on PASCAL, 4 on NYUD)."""
        channel: Literal["attended", "published"] = "attended"
        """What channel attention passes to the prompts: its value (the paper), or its query, as in the published
        code."""
        scores: Literal["scaled", "raw"] = "scaled"
        """Multiply features by attention scores divided by the square root of the number of products, or by raw scores,
        as published."""

        stochastic_depth: Literal["together", "separate"] = "together"
        """For each image, draw --backbone.drop-path once for prompts and patches together, or separately for each, as
        in the published code."""
        initial: Literal["uniform", "published"] = "uniform"
        """Initial weights of the channel attention's linear layers: PyTorch's uniform ones, or normal with standard
        deviation 0.02 and zero biases, as published."""
        prefix_tokens: bool = True
        """Keep the class and register tokens of a vision transformer; the published code drops them."""

        def __post_init__(self) -> None:
            if self.windows < 1:
                raise InputError("encoder.windows", str(self.windows), "1 or more", "change --encoder.windows")
            if min(self.size) < 1:
                raise InputError("encoder.size", f"{self.size[0]} {self.size[1]}", "a height and a width of 1 or more",
                                 "change --encoder.size")

    def __init__(self, config: Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        self.config, self.tasks = config, tasks
        self.backbone, runner = _build(backbone)
        self.prompted: PromptedStages = runner(self.backbone.stages, PromptOptions(
            len(tasks), config.size, config.windows, config.channel, config.initial,
            config.stochastic_depth == "separate", config.prefix_tokens))
        if not config.prefix_tokens:
            for name, parameter in self.backbone.named_parameters():
                if name.endswith(("cls_token", "reg_token")):
                    parameter.requires_grad_(False)  # nothing reads them
        own = self.backbone.spec
        spec = FeatureSpec(tuple(2 * c for c in own.channels), own.strides, self.prompted.heads)
        self.spec = dict.fromkeys(tasks, spec)
        self.multiple, self.mean, self.std = self.backbone.multiple, self.backbone.mean, self.backbone.std

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        """``shared`` has everything that the tasks' maps are computed from: the maps, and the scores as maps (b k _
        _)."""
        levels = [_branches(replace(level, map=self.backbone.normed(number, level.map)), self.config.scores)
                  for number, level in enumerate(self.prompted(self.backbone.stages, image))]
        features = {task: Features(tuple(self._for_task(*level[:3], number) for level in levels))
                    for number, task in enumerate(self.tasks)}
        return TaskFeatures(features, tuple(x for level in levels for x in level), tuple(level[3] for level in levels))

    def _for_task(self, x: Float[Tensor, "b c h w"], spatial: Float[Tensor, "b s h w"],
                  channel: Float[Tensor, "b r n n"], task: int) -> Float[Tensor, "b d h w"]:
        """x weighted by the scores for positions, and x weighted by those for channels, each added to x itself."""
        places = spatial.unflatten(1, (-1, len(self.tasks)))[:, :, task]
        channels = channel.unflatten(1, (len(self.tasks), -1))[:, task]
        asked = (x.unflatten(1, (places.shape[1], -1)) * places.unsqueeze(2)).flatten(1, 2)
        return torch.cat([x + asked, x + x * over_windows(channels, x.shape[-2], x.shape[-1])], dim=1)


def _build(config: Backbone.Config) -> tuple[Timm, type[PromptedViT | PromptedSwin]]:
    """The backbone, and the class that runs prompts through it."""
    where = f"backbone '{config.name}'"
    if isinstance(config, Timm.Config):
        where = f"backbone.model '{config.model}'"
        backbone = cast(Timm, replace(config, vit_pyramid="taps").build())
        for runner in RUNNERS:
            if runner.fits(backbone.stages):
                return backbone, runner
    raise InputError(where, "a network whose attention does not support the prompts of 'task_prompter'",
                     "a plain vision transformer or a Swin transformer (not v2)",
                     "choose for instance --backbone.model vit_base_patch16_384")


def _branches(level: Level, kind: Literal["scaled", "raw"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The map (b c h w), the scores for places (b heads*t h w), for channels (b t*c n n) and for prompts (b heads t t),
    scaled as they multiply features. Each is a branch of its own, so that the gradient by one does not pass through
    another."""
    places, channels = (level.width**-0.5, level.pixels**-0.5) if kind == "scaled" else (1.0, 1.0)
    return (level.map.view_as(level.map), (level.spatial * places).flatten(1, 2),
            (level.channel * channels).flatten(1, 2), level.affinities * places)
